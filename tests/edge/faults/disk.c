/* A disk with faults, for one process and its children: LD_PRELOAD this.
 *
 * FAULT_DIR   only files below this directory are meant
 * FAULT_EIO   while this file exists, every flush there fails with EIO
 * FAULT_ONLY  but only of files whose path ends like this
 * FAULT_LOG   every change and every flush there is written to this file, in order, and a flush
 *             does nothing else: lazy.py makes from it what a power cut would have left
 * FAULT_ACKS  what is written to this file goes into the log, too: promises, in their order
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, UNLINK, RENAME, LINK, MKDIR, ACK };

struct record {
    uint32_t what, names;
    uint64_t inode, at, bytes;
};

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static const char *dir, *eio, *only, *acks;
static size_t dir_length;
static int log_fd = -1;

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("FAULT_LOG");
    dir = getenv("FAULT_DIR");
    eio = getenv("FAULT_EIO");
    only = getenv("FAULT_ONLY");
    acks = getenv("FAULT_ACKS");
    dir_length = dir ? strlen(dir) : 0;
    if (log)
        log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

#define REAL(type, name, ...)                                                                      \
    static type (*real)(__VA_ARGS__);                                                              \
    if (!real)                                                                                     \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int below(const char *path) {
    return dir && !strncmp(path, dir, dir_length) && (path[dir_length] == '/' || !path[dir_length]);
}

/* The index of SQLite's log is shared memory, made anew after every power cut. */
static int counts(const char *path) {
    size_t length = strlen(path);
    return below(path) && !(length > 4 && !strcmp(path + length - 4, "-shm"));
}

static int fails(const char *path) {
    size_t length = strlen(path), tail = only ? strlen(only) : 0;
    struct stat found;
    return eio && tail <= length && !(only && strcmp(path + length - tail, only)) &&
           !stat(eio, &found);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return 1;
}

static void put(uint32_t what, const char *one, const char *two, uint64_t inode, uint64_t at,
                const void *data, uint64_t bytes) {
    char names[2 * PATH_MAX + 2];
    int length = 0;
    if (log_fd < 0)
        return;
    if (one)
        length = snprintf(names, sizeof names, "%s%c%s", one, 0, two ? two : "");
    struct record head = {what, length, inode, at, bytes};
    struct iovec parts[3] = {{&head, sizeof head}, {names, length}, {(void *)data, data ? bytes : 0}};
    syscall(SYS_writev, log_fd, parts, 3);
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

static int exists(const char *path) {
    struct stat found;
    return !lstat(path, &found);
}

static void wrote(int fd, uint64_t at, const void *data, uint64_t bytes) {
    char path[PATH_MAX];
    if (log_fd < 0 || !path_of(fd, path))
        return;
    if (acks && !strcmp(path, acks))
        put(ACK, NULL, NULL, 0, 0, data, bytes);
    else if (counts(path))
        put(WRITE, NULL, NULL, inode_of(fd), at, data, bytes);
}

/* --- names --- */

static int opened(int fd, const char *path, int existed) {
    char full[PATH_MAX];
    int saved = errno;
    if (fd >= 0 && !existed && log_fd >= 0 && path_of(fd, full) && counts(full))
        put(CREATE, full, NULL, inode_of(fd), 0, NULL, 0);
    (void)path;
    errno = saved;
    return fd;
}

#define OPEN(function)                                                                             \
    int function(const char *path, int flags, ...) {                                               \
        REAL(int, #function, const char *, int, ...);                                              \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode_t mode = va_arg(more, mode_t);                                                        \
        va_end(more);                                                                              \
        pthread_mutex_lock(&lock);                                                                 \
        int existed = !(flags & O_CREAT) || exists(path);                                          \
        int fd = opened(real(path, flags, mode), path, existed);                                   \
        if (fd >= 0 && existed && (flags & O_TRUNC)) {                                             \
            char full[PATH_MAX];                                                                   \
            if (path_of(fd, full) && counts(full))                                                 \
                put(TRUNCATE, NULL, NULL, inode_of(fd), 0, NULL, 0);                               \
        }                                                                                          \
        pthread_mutex_unlock(&lock);                                                               \
        return fd;                                                                                 \
    }
OPEN(open)
OPEN(open64)

#define TWO_NAMES(function, what)                                                                  \
    int function(const char *from, const char *to) {                                               \
        REAL(int, #function, const char *, const char *);                                          \
        pthread_mutex_lock(&lock);                                                                 \
        int done = real(from, to);                                                                 \
        if (!done && counts(to))                                                                   \
            put(what, from, to, 0, 0, NULL, 0);                                                    \
        pthread_mutex_unlock(&lock);                                                               \
        return done;                                                                               \
    }
TWO_NAMES(rename, RENAME)
TWO_NAMES(link, LINK)

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    pthread_mutex_lock(&lock);
    int done = real(path);
    if (!done && counts(path))
        put(UNLINK, path, NULL, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    pthread_mutex_lock(&lock);
    int done = real(path, mode);
    struct stat found;
    if (!done && below(path) && !stat(path, &found))
        put(MKDIR, path, NULL, found.st_ino, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

/* --- bytes --- */

#define PWRITE(function)                                                                           \
    ssize_t function(int fd, const void *data, size_t bytes, off_t at) {                           \
        REAL(ssize_t, #function, int, const void *, size_t, off_t);                                \
        pthread_mutex_lock(&lock);                                                                 \
        ssize_t done = real(fd, data, bytes, at);                                                  \
        if (done > 0)                                                                              \
            wrote(fd, at, data, done);                                                             \
        pthread_mutex_unlock(&lock);                                                               \
        return done;                                                                               \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *data, size_t bytes) {
    REAL(ssize_t, "write", int, const void *, size_t);
    pthread_mutex_lock(&lock);
    off_t at = log_fd >= 0 ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t done = real(fd, data, bytes);
    if (done > 0)
        wrote(fd, at, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    pthread_mutex_lock(&lock);
    off_t at = log_fd >= 0 ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t done = real(fd, parts, count), left = done;
    for (int part = 0; part < count && left > 0; part++) {
        size_t bytes = parts[part].iov_len < (size_t)left ? parts[part].iov_len : (size_t)left;
        wrote(fd, at, parts[part].iov_base, bytes);
        at += bytes;
        left -= bytes;
    }
    pthread_mutex_unlock(&lock);
    return done;
}

#define FTRUNCATE(function)                                                                        \
    int function(int fd, off_t bytes) {                                                            \
        REAL(int, #function, int, off_t);                                                          \
        char path[PATH_MAX];                                                                       \
        pthread_mutex_lock(&lock);                                                                 \
        int done = real(fd, bytes);                                                                \
        if (!done && log_fd >= 0 && path_of(fd, path) && counts(path))                             \
            put(TRUNCATE, NULL, NULL, inode_of(fd), bytes, NULL, 0);                               \
        pthread_mutex_unlock(&lock);                                                               \
        return done;                                                                               \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

/* --- flushes --- */

#define FLUSH(function)                                                                            \
    int function(int fd) {                                                                         \
        REAL(int, #function, int);                                                                 \
        char path[PATH_MAX];                                                                       \
        int done = 0;                                                                              \
        pthread_mutex_lock(&lock);                                                                 \
        if (!path_of(fd, path) || !counts(path))                                                   \
            done = real(fd);                                                                       \
        else if (fails(path)) {                                                             \
            errno = EIO;                                                                           \
            done = -1;                                                                             \
        } else if (log_fd >= 0) {                                                                  \
            struct stat found;                                                                     \
            int names = !fstat(fd, &found) && S_ISDIR(found.st_mode);                              \
            put(SYNC, names ? path : NULL, NULL, inode_of(fd), 0, NULL, 0);                        \
        } else                                                                                     \
            done = real(fd);                                                                       \
        pthread_mutex_unlock(&lock);                                                               \
        return done;                                                                               \
    }
FLUSH(fsync)
FLUSH(fdatasync)
