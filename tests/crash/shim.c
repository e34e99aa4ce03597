/* What a process does to files below a folder, counted; at a chosen one of these calls something happens to it.
 *
 *   LD_PRELOAD=shim.so CRASH_ROOT=/some/folder program
 *
 * The program calls shim_arm, by ctypes, when its calls are to be counted from then on, and shim_count to ask how many
 * there were. Calls of libc that change files, their names or the disk are boundaries; with CRASH_NET so are what is sent
 * over sockets and what is received. Linux and glibc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, KILL_HALF_WRITTEN, SIGNAL, FAIL, FAIL_FROM_THEN_ON };

static atomic_long counted;
static atomic_int armed;
static long chosen;
static int action, code;
static char root[4096];
static int with_net;

void shim_arm(long at, int what, int number) {
    const char *given = getenv("CRASH_ROOT");
    snprintf(root, sizeof root, "%s", given ? given : "/nowhere");
    with_net = getenv("CRASH_NET") != NULL;
    chosen = at;
    action = what;
    code = number;
    atomic_store(&counted, 0);
    atomic_store(&armed, 1);
}

long shim_count(void) { return atomic_load(&counted); }

void shim_disarm(void) { atomic_store(&armed, 0); }

static int below(const char *path) { return path && strncmp(path, root, strlen(root)) == 0; }

static int named(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

/* At the chosen call: 1 when it is to fail, with errno set; 2 when half of it is to be done first. */
static int boundary(int counts) {
    if (!atomic_load(&armed) || !counts) return 0;
    long number = atomic_fetch_add(&counted, 1) + 1;
    if (action == FAIL_FROM_THEN_ON && number >= chosen) { errno = code; return 1; }
    if (number != chosen) return 0;
    switch (action) {
        case KILL: kill(getpid(), SIGKILL); pause(); return 0;
        case KILL_HALF_WRITTEN: return 2;
        case SIGNAL: kill(getpid(), code); return 0;
        case FAIL: errno = code; return 1;
        default: return 0;
    }
}

#define REAL(type, name, ...)                                  \
    static type (*real)(__VA_ARGS__);                          \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static void half_then_die(void) { kill(getpid(), SIGKILL); pause(); }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    int found = atomic_load(&armed) ? boundary(named(fd)) : 0;
    if (found == 1) return -1;
    if (found == 2) { real(fd, data, size / 2); half_then_die(); }
    return real(fd, data, size);
}

#define PWRITE(name, offset)                                                \
    ssize_t name(int fd, const void *data, size_t size, offset at) {        \
        REAL(ssize_t, name, int, const void *, size_t, offset);             \
        int found = atomic_load(&armed) ? boundary(named(fd)) : 0;          \
        if (found == 1) return -1;                                          \
        if (found == 2) { real(fd, data, size / 2, at); half_then_die(); }  \
        return real(fd, data, size, at);                                    \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    int found = atomic_load(&armed) ? boundary(named(fd)) : 0;
    if (found == 1) return -1;
    if (found == 2) { real(fd, parts, count / 2); half_then_die(); }
    return real(fd, parts, count);
}

/* Calls that are done whole or not at all. */
#define WHOLE(condition) do {                                               \
        int found = atomic_load(&armed) ? boundary(condition) : 0;          \
        if (found == 1) return -1;                                          \
        if (found == 2) half_then_die();                                    \
    } while (0)

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    WHOLE(below(to));
    return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    WHOLE(below(to));
    return real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    WHOLE(below(to));
    return real(a, from, b, to, flags);
}
int link(const char *from, const char *to) {
    REAL(int, link, const char *, const char *);
    WHOLE(below(to));
    return real(from, to);
}
int symlink(const char *from, const char *to) {
    REAL(int, symlink, const char *, const char *);
    WHOLE(below(to));
    return real(from, to);
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    WHOLE(below(path));
    return real(path);
}
int unlinkat(int fd, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    WHOLE(fd == AT_FDCWD ? below(path) : named(fd));
    return real(fd, path, flags);
}
int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    WHOLE(below(path));
    return real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    WHOLE(below(path));
    return real(path, mode);
}
int chmod(const char *path, mode_t mode) {
    REAL(int, chmod, const char *, mode_t);
    WHOLE(below(path));
    return real(path, mode);
}
int fsync(int fd) {
    REAL(int, fsync, int);
    WHOLE(named(fd));
    return real(fd);
}
int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    WHOLE(named(fd));
    return real(fd);
}
int ftruncate(int fd, off_t size) {
    REAL(int, ftruncate, int, off_t);
    WHOLE(named(fd));
    return real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL(int, ftruncate64, int, off64_t);
    WHOLE(named(fd));
    return real(fd, size);
}
static int allocation(int fd) {
    int found = atomic_load(&armed) ? boundary(named(fd)) : 0;
    if (found == 2) half_then_die();
    return found == 1 ? errno : 0;
}
int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(int, posix_fallocate, int, off_t, off_t);
    int failed = allocation(fd);
    return failed ? failed : real(fd, at, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(int, posix_fallocate64, int, off64_t, off64_t);
    int failed = allocation(fd);
    return failed ? failed : real(fd, at, size);
}

/* Opening counts where it makes or empties a file. */
#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                            \
        REAL(int, name, const char *, int, ...);                            \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                       \
        WHOLE((flags & (O_CREAT | O_TRUNC)) && below(path));                \
        return real(path, flags, mode);                                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                        \
    int name(int fd, const char *path, int flags, ...) {                    \
        REAL(int, name, int, const char *, int, ...);                       \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                       \
        WHOLE((flags & (O_CREAT | O_TRUNC)) && below(path));                \
        return real(fd, path, flags, mode);                                 \
    }
OPENAT(openat)
OPENAT(openat64)

static int sent(void) {
    int found = atomic_load(&armed) ? boundary(with_net) : 0;
    if (found == 2) half_then_die();
    return found == 1;
}
ssize_t send(int fd, const void *data, size_t size, int flags) {
    REAL(ssize_t, send, int, const void *, size_t, int);
    return sent() ? -1 : real(fd, data, size, flags);
}
ssize_t recv(int fd, void *data, size_t size, int flags) {
    REAL(ssize_t, recv, int, void *, size_t, int);
    return sent() ? -1 : real(fd, data, size, flags);
}
