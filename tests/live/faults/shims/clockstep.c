/* The wall clock, shifted by the number of seconds in the file that FAULTS_CLOCK names; CLOCK_MONOTONIC never is.
 * The file is looked at every 20 ms at most. Without the variable, or without the file, nothing is shifted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NANOSECONDS 20000000LL

typedef int (*clock_function)(clockid_t, struct timespec *);

static int real(clockid_t clock, struct timespec *at) {
    static clock_function found;
    if (!found) found = (clock_function)dlsym(RTLD_NEXT, "clock_gettime");
    return found(clock, at);
}

static long shift(void) {
    static volatile long long looked_at;
    static volatile long seconds;
    struct timespec now;
    real(CLOCK_MONOTONIC, &now);
    long long at = now.tv_sec * 1000000000LL + now.tv_nsec;
    if (looked_at == 0 || at - looked_at > LOOK_NANOSECONDS) {
        looked_at = at;
        const char *path = getenv("FAULTS_CLOCK");
        char text[32];
        long read_seconds = 0;
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (file >= 0) {
            ssize_t size = read(file, text, sizeof text - 1);
            if (size > 0) {
                text[size] = 0;
                read_seconds = atol(text);
            }
            close(file);
        }
        seconds = read_seconds;
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = real(clock, at);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now) == 0) {
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
