/* Faults at an exact place: the n-th call that touches a folder fails, or ends the process.
 *
 * Loaded with LD_PRELOAD, so that it sees what Python, torch (C++) and tokenizers (Rust) do alike. Armed from inside
 * the process with fault_arm; until then it only passes calls on. Counted are calls on paths at or below the watched
 * folder, of the kinds asked for; a descriptor's path comes from /proc/self/fd.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 'w', CREATE = 'c', RENAME = 'r', SYNC = 's', REMOVE = 'd', READ = 'i' };

static char watched[PATH_MAX], kinds[16];
atomic_long fault_total; /* calls counted so far */
static long strike_at;  /* 0: count only */
static int failure;     /* an errno; negative: a signal */
static int sticks;      /* whether every later call fails, too, as on a full disk */

void fault_arm(const char *folder, const char *of_kinds, long nth, int how, int is_sticky) {
    snprintf(watched, sizeof watched, "%s", folder);
    snprintf(kinds, sizeof kinds, "%s", of_kinds);
    strike_at = nth;
    failure = how;
    sticks = is_sticky;
    atomic_store(&fault_total, 0);
}

/* Whether the call is to fail, with errno set. A signal that the process catches lets the call go on. */
static int strikes(char kind, const char *path) {
    if (!watched[0] || !strchr(kinds, kind) || strncmp(path, watched, strlen(watched))) return 0;
    long number = atomic_fetch_add(&fault_total, 1) + 1;
    if (!strike_at || number < strike_at || (number > strike_at && !sticks)) return 0;
    if (failure < 0) {
        if (number == strike_at) kill(getpid(), -failure);
        return 0;
    }
    errno = failure;
    return 1;
}

static int strikes_at(char kind, int folder, const char *path) {
    char whole[2 * PATH_MAX], base[PATH_MAX] = "", link[64];
    if (!watched[0]) return 0;
    if (path[0] == '/') return strikes(kind, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return strikes(kind, whole);
}

static int strikes_fd(char kind, int descriptor) {
    char link[64], path[PATH_MAX];
    if (!watched[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int kept = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(kind, path);
}

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

#define CALL(result, name, declared, passed, strike)    \
    result name declared {                              \
        static result(*go) declared;                    \
        if (!go) go = (result(*) declared)real(#name);  \
        if (strike) return -1;                          \
        return go passed;                               \
    }

CALL(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), strikes_fd(WRITE, fd))
CALL(ssize_t, writev, (int fd, const struct iovec *data, int n), (fd, data, n), strikes_fd(WRITE, fd))
CALL(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), strikes_fd(WRITE, fd))
CALL(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), strikes_fd(WRITE, fd))
CALL(ssize_t, pwritev, (int fd, const struct iovec *data, int n, off_t at), (fd, data, n, at), strikes_fd(WRITE, fd))
CALL(ssize_t, sendfile, (int out, int in, off_t *at, size_t n), (out, in, at, n), strikes_fd(WRITE, out))
CALL(ssize_t, sendfile64, (int out, int in, off64_t *at, size_t n), (out, in, at, n), strikes_fd(WRITE, out))
CALL(ssize_t, copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags),
     (in, from, out, to, n, flags), strikes_fd(WRITE, out))
CALL(int, ftruncate, (int fd, off_t n), (fd, n), strikes_fd(WRITE, fd))
CALL(int, ftruncate64, (int fd, off64_t n), (fd, n), strikes_fd(WRITE, fd))
CALL(int, fsync, (int fd), (fd), strikes_fd(SYNC, fd))
CALL(int, fdatasync, (int fd), (fd), strikes_fd(SYNC, fd))
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), strikes_at(CREATE, AT_FDCWD, path))
CALL(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), strikes_at(CREATE, at, path))
CALL(int, link, (const char *from, const char *to), (from, to), strikes_at(CREATE, AT_FDCWD, to))
CALL(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags),
     strikes_at(CREATE, b, to))
CALL(int, rename, (const char *from, const char *to), (from, to), strikes_at(RENAME, AT_FDCWD, to))
CALL(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), strikes_at(RENAME, b, to))
CALL(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags),
     strikes_at(RENAME, b, to))
CALL(int, unlink, (const char *path), (path), strikes_at(REMOVE, AT_FDCWD, path))
CALL(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), strikes_at(REMOVE, at, path))
CALL(int, rmdir, (const char *path), (path), strikes_at(REMOVE, AT_FDCWD, path))
CALL(ssize_t, read, (int fd, void *data, size_t n), (fd, data, n), strikes_fd(READ, fd))
CALL(ssize_t, pread, (int fd, void *data, size_t n, off_t at), (fd, data, n, at), strikes_fd(READ, fd))
CALL(ssize_t, pread64, (int fd, void *data, size_t n, off64_t at), (fd, data, n, at), strikes_fd(READ, fd))
CALL(ssize_t, preadv, (int fd, const struct iovec *data, int n, off_t at), (fd, data, n, at), strikes_fd(READ, fd))
CALL(ssize_t, preadv64, (int fd, const struct iovec *data, int n, off64_t at), (fd, data, n, at),
     strikes_fd(READ, fd))

/* Opening: only what may make or change a file. */
#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                  \
        static int (*go)(const char *, int, ...);                                                 \
        if (!go) go = (int (*)(const char *, int, ...))real(#name);                               \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                   \
        va_end(rest);                                                                             \
        if (flags & (O_CREAT | O_WRONLY | O_RDWR) && strikes_at(CREATE, AT_FDCWD, path)) return -1; \
        return go(path, flags, mode);                                                             \
    }
#define OPENAT(name)                                                                       \
    int name(int at, const char *path, int flags, ...) {                                   \
        static int (*go)(int, const char *, int, ...);                                     \
        if (!go) go = (int (*)(int, const char *, int, ...))real(#name);                   \
        va_list rest;                                                                      \
        va_start(rest, flags);                                                             \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;            \
        va_end(rest);                                                                      \
        if (flags & (O_CREAT | O_WRONLY | O_RDWR) && strikes_at(CREATE, at, path)) return -1; \
        return go(at, path, flags, mode);                                                  \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
