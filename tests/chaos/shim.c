/* Preloaded into a daemon under test: a false clock, a disk that refuses to flush, and a record of
 * what a power cut would leave.
 *
 * What it does is read from a small file that the suite maps, too, so faults come and go while the
 * daemon runs.  CHAOS_SHIM names that file.  CHAOS_STATE and CHAOS_SHADOW name the directory whose
 * flushes are followed and its copy: a file's bytes reach the copy when it is flushed, a rename or
 * a removal when its directory is.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define RANGES 512
#define BILLION 1000000000LL

struct control {
    int64_t real_ns;        /* added to the wall clock */
    int64_t boot_ns;        /* added to the boot-time clock */
    int64_t mono_ns;        /* added to the monotonic clock */
    int64_t rate_ppm;       /* how much faster this machine's clocks run */
    int64_t boot_base_ns;   /* since when, on the boot-time clock */
    int64_t mono_base_ns;   /* since when, on the monotonic clock */
    int64_t flush_fails;    /* not 0: every flush ends with EIO */
    int64_t flushes_failed; /* how many did */
};

static volatile struct control *control;
static char state_dir[PATH_MAX], shadow_dir[PATH_MAX];
static size_t state_length;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_SHIM");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *seen = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (seen != MAP_FAILED)
            control = seen;
        close(fd);
    }
    const char *state = getenv("CHAOS_STATE"), *shadow = getenv("CHAOS_SHADOW");
    if (state && shadow) {
        snprintf(state_dir, sizeof state_dir, "%s", state);
        snprintf(shadow_dir, sizeof shadow_dir, "%s", shadow);
        state_length = strlen(state_dir);
    }
}

/* --- clocks ---------------------------------------------------------------------------------- */

static int true_time(clockid_t clock, struct timespec *found)
{
    return (int)syscall(SYS_clock_gettime, clock, found);
}

int clock_gettime(clockid_t clock, struct timespec *found)
{
    int code = true_time(clock, found);
    if (code || !control)
        return code;
    int64_t now = found->tv_sec * BILLION + found->tv_nsec, rate = control->rate_ppm;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
    case CLOCK_TAI:
        now += control->real_ns;
        break;
    case CLOCK_BOOTTIME:
        now += control->boot_ns;
        if (rate)
            now += (now - control->boot_base_ns) / 1000 * rate / 1000;
        break;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_MONOTONIC_COARSE:
        now += control->mono_ns;
        if (rate)
            now += (now - control->mono_base_ns) / 1000 * rate / 1000;
        break;
    default:
        return code;
    }
    found->tv_sec = now / BILLION;
    found->tv_nsec = now % BILLION;
    return code;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return -1;
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return (time_t)-1;
    if (found)
        *found = now.tv_sec;
    return now.tv_sec;
}

/* --- what is written and not flushed ---------------------------------------------------------- */

struct range {
    dev_t device;
    ino_t inode;
    off_t from, to;
    int used;
};

struct change {
    struct change *next;
    char *from, *to; /* a rename, or a removal where `to` is NULL */
};

static struct range ranges[RANGES];
static struct change *changes;

static struct range *range_of(const struct stat *file, int make)
{
    struct range *room = NULL;
    for (int at = 0; at < RANGES; at++) {
        struct range *one = &ranges[at];
        if (one->used && one->device == file->st_dev && one->inode == file->st_ino)
            return one;
        if (!one->used && !room)
            room = one;
    }
    if (!make || !room)
        return NULL;
    *room = (struct range){file->st_dev, file->st_ino, 0, 0, 1};
    room->from = LONG_MAX;
    return room;
}

static void wrote(int fd, off_t from, ssize_t length)
{
    struct stat file;
    if (!state_length || length <= 0 || fstat(fd, &file) || !S_ISREG(file.st_mode))
        return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    struct range *one = range_of(&file, 1);
    if (one) {
        if (from < one->from)
            one->from = from;
        if (from + length > one->to)
            one->to = from + length;
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static int shadow_of(const char *path, char *shadow)
{
    if (!state_length || strncmp(path, state_dir, state_length))
        return 0;
    if (path[state_length] && path[state_length] != '/')
        return 0;
    return snprintf(shadow, PATH_MAX, "%s%s", shadow_dir, path + state_length) < PATH_MAX;
}

static int path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return 1;
}

static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
}

static ssize_t true_pwrite(int fd, const void *data, size_t size, off_t at)
{
    return syscall(SYS_pwrite64, fd, data, size, at);
}

static void copy(const char *path, const char *shadow, off_t from, off_t to)
{
    static char buffer[1 << 18];
    int in = open(path, O_RDONLY | O_CLOEXEC);
    int out = open(shadow, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    for (off_t at = from; in >= 0 && out >= 0 && at < to;) {
        size_t want = to - at < (off_t)sizeof buffer ? (size_t)(to - at) : sizeof buffer;
        ssize_t got = pread(in, buffer, want, at);
        if (got <= 0 || true_pwrite(out, buffer, (size_t)got, at) != got)
            break;
        at += got;
    }
    struct stat file;
    if (in >= 0 && out >= 0 && !fstat(in, &file) && syscall(SYS_ftruncate, out, file.st_size))
        perror("chaos: shadow");
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
}

static void flushed_file(const char *path, const struct stat *file)
{
    char shadow[PATH_MAX];
    struct stat old;
    if (!shadow_of(path, shadow))
        return;
    struct range *one = range_of(file, 0);
    /* Only the journal is worth the book-keeping; all else is small, or written once. */
    if (!strstr(path, "sqlite") || stat(shadow, &old)) {
        make_parents(shadow);
        copy(path, shadow, 0, file->st_size);
    } else if (one)
        copy(path, shadow, one->from, one->to);
    if (one)
        one->used = 0;
}

static int inside(const char *directory, const char *path)
{
    size_t length = strlen(directory);
    return !strncmp(path, directory, length) && path[length] == '/' &&
           !strchr(path + length + 1, '/');
}

static void flushed_directory(const char *path)
{
    char from[PATH_MAX], to[PATH_MAX];
    for (struct change **at = &changes; *at;) {
        struct change *one = *at;
        if (!inside(path, one->to ? one->to : one->from)) {
            at = &one->next;
            continue;
        }
        if (shadow_of(one->from, from)) {
            if (!one->to)
                syscall(SYS_unlinkat, AT_FDCWD, from, 0);
            else if (shadow_of(one->to, to)) {
                make_parents(to);
                /* A file whose bytes were never flushed is there, and empty. */
                if (syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0))
                    close(open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
            }
        }
        *at = one->next;
        free(one->from);
        free(one->to);
        free(one);
    }
}

static void changed(const char *from, const char *to)
{
    char shadow[PATH_MAX];
    if (!shadow_of(to ? to : from, shadow))
        return;
    int saved = errno;
    struct change *one = calloc(1, sizeof *one), **at = &changes;
    one->from = strdup(from);
    one->to = to ? strdup(to) : NULL;
    pthread_mutex_lock(&lock);
    while (*at)
        at = &(*at)->next;
    *at = one;
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void flushed(int fd)
{
    char path[PATH_MAX];
    struct stat file;
    if (!state_length || !path_of(fd, path) || fstat(fd, &file))
        return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(file.st_mode))
        flushed_directory(path);
    else if (S_ISREG(file.st_mode))
        flushed_file(path, &file);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static int fails(void)
{
    if (!control || !control->flush_fails)
        return 0;
    __atomic_add_fetch(&control->flushes_failed, 1, __ATOMIC_SEQ_CST);
    errno = EIO;
    return 1;
}

int fsync(int fd)
{
    if (fails())
        return -1;
    int code = (int)syscall(SYS_fsync, fd);
    if (!code)
        flushed(fd);
    return code;
}

int fdatasync(int fd)
{
    if (fails())
        return -1;
    int code = (int)syscall(SYS_fdatasync, fd);
    if (!code)
        flushed(fd);
    return code;
}

ssize_t write(int fd, const void *data, size_t size)
{
    off_t at = state_length ? lseek(fd, 0, SEEK_CUR) : -1;
    ssize_t done = syscall(SYS_write, fd, data, size);
    if (at >= 0)
        wrote(fd, at, done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    ssize_t done = true_pwrite(fd, data, size, at);
    wrote(fd, at, done);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    return pwrite(fd, data, size, at);
}

int rename(const char *from, const char *to)
{
    int code = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (!code)
        changed(from, to);
    return code;
}

int unlink(const char *path)
{
    int code = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (!code)
        changed(path, NULL);
    return code;
}
