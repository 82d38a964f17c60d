/* A disk without room, as long as the file exists that FAULTS_DISKFULL names: writes to regular files, and what
 * brings them to the disk, fail with ENOSPC. One of three writes takes half of what it is given first. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_full(int file) {
    const char *path = getenv("FAULTS_DISKFULL");
    struct stat found;
    int before = errno;
    int full = path && access(path, F_OK) == 0 && fstat(file, &found) == 0 && S_ISREG(found.st_mode);
    errno = before;
    if (full) errno = ENOSPC;
    return full;
}

#define REAL(result, name, ...)                                                     \
    static result (*found)(__VA_ARGS__);                                            \
    if (!found) found = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    static unsigned refused;
    if (is_full(file)) {
        if (refused++ % 3 == 1 && size > 1) return found(file, data, size / 2);
        return -1;
    }
    return found(file, data, size);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    return is_full(file) ? -1 : found(file, data, size, at);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return is_full(file) ? -1 : found(file, parts, count);
}

int fdatasync(int file) {
    REAL(int, fdatasync, int);
    return is_full(file) ? -1 : found(file);
}

int fsync(int file) {
    REAL(int, fsync, int);
    return is_full(file) ? -1 : found(file);
}
