/* Preloaded into a process: fsync fails, and the clock is an hour fast, where a variable asks for it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

int fsync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (getenv("SHIM_NO_FSYNC") == NULL) return real(file);
    errno = EINVAL;
    return -1;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int said = real(which, now);
    if (which == CLOCK_REALTIME && getenv("SHIM_FAST_CLOCK") != NULL) now->tv_sec += 3600;
    return said;
}
