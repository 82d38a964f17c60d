/* The CPU that other processes use, read at the very moment in which the measuring begins and ends. Python's twin,
   which says more, is processes.py. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* In seconds, from the beginning of the process; of the machine, since it started. */
struct usage {
  double total, user, system;
};

static inline size_t read_small_file(const char *path, char *to, size_t size) {
  FILE *file = fopen(path, "r");
  if (file == NULL) return 0;
  size_t got = fread(to, 1, size - 1, file);
  fclose(file);
  to[got] = 0;
  return got;
}

/* False: there is no such process. */
static inline bool usage_of(int pid, struct usage *to) {
  char path[64], text[1024];
  unsigned long user, system;
  struct timespec total;
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  if (!read_small_file(path, text, sizeof text)) return false;
  const char *name_end = strrchr(text, ')'); /* a name may have spaces and brackets */
  if (name_end == NULL ||
      sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
    return false;
  /* The process's CPU clock, as clock_getcpuclockid(3) makes it; in nanoseconds, where /proc has hundredths. */
  if (clock_gettime((clockid_t)((~(unsigned)pid << 3) | 2), &total)) return false;
  double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);
  *to = (struct usage){(double)total.tv_sec + (double)total.tv_nsec / 1e9, (double)user * tick, (double)system * tick};
  return true;
}

/* How long the CPUs of the machine were busy, whoever with, and how long the host gave them to others. */
static inline void machine_usage(double *busy, double *stolen) {
  char text[512];
  unsigned long long user = 0, nice = 0, system = 0, interrupts = 0, soft = 0, taken = 0;
  if (read_small_file("/proc/stat", text, sizeof text))
    sscanf(text, "cpu %llu %llu %llu %*u %*u %llu %llu %llu", &user, &nice, &system, &interrupts, &soft, &taken);
  double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);
  *busy = (double)(user + nice + system + interrupts + soft) * tick;
  *stolen = (double)taken * tick;
}
