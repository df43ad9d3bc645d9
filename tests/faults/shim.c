/* Counts every change that a process makes to files under one folder, and stops it at one of them.
 *
 * Preloaded into the parent of tests/faults/parent.py, it sees what Python, pyarrow, safetensors and tokenizers ask of
 * the C library alike. It does nothing until faults_arm is called in a forked child. fsync is counted and not carried
 * out: a killed process loses nothing that it wrote, and no case waits for a disk.
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
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, TEAR, FULL, PAUSE }; /* harness.py: Action */

static char root[PATH_MAX], go_on[PATH_MAX];
static size_t length;
static int action, descriptor = -1;
static long at;
static atomic_long counted;
static int armed;

/* Operation number `at_` is where it happens: killed before it (KILL), killed half-way through it if it is a write
 * (TEAR), failing for want of room from there on (FULL), or waiting before it until the file `go_on_` is there (PAUSE).
 * Every operation is noted in `log`, one line each. */
int faults_arm(const char *root_, int action_, long at_, const char *log, const char *go_on_) {
    length = strlen(root_);
    if (length >= PATH_MAX || strlen(go_on_) >= PATH_MAX) return -1;
    strcpy(root, root_);
    strcpy(go_on, go_on_);
    action = action_;
    at = at_;
    descriptor = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    armed = descriptor >= 0;
    return armed ? 0 : -1;
}

static int under(const char *path) {
    return !strncmp(path, root, length) && (path[length] == '/' || path[length] == 0);
}

static int of_descriptor(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return 1;
}

static int of_name(int fd, const char *name, char *path) {
    char folder[PATH_MAX] = "";
    if (!name) return 0;
    if (name[0] != '/' && !(fd == AT_FDCWD ? getcwd(folder, PATH_MAX) != NULL : of_descriptor(fd, folder))) return 0;
    snprintf(path, PATH_MAX, "%s%s%s", folder, *folder ? "/" : "", name);
    return 1;
}

/* 0: carry the operation out; -1: it fails, with errno set; 1: half of it, then faults_die. */
static int step(const char *what, const char *path, int takes_room) {
    int before = errno;
    char line[PATH_MAX + 64];
    long number = atomic_fetch_add(&counted, 1);
    int n = snprintf(line, sizeof line, "%s %s\n", what, path + length + (path[length] == '/'));
    syscall(SYS_write, descriptor, line, n);
    errno = before;
    if (action == FULL && number >= at && takes_room) {
        errno = ENOSPC;
        return -1;
    }
    if (number != at) return 0;
    if (action == KILL) kill(getpid(), SIGKILL);
    if (action == TEAR) return 1;
    if (action == PAUSE)
        while (syscall(SYS_faccessat, AT_FDCWD, go_on, F_OK)) usleep(2000);
    errno = before;
    return 0;
}

static void die(void) { kill(getpid(), SIGKILL); pause(); }

#define REAL(name) ({ static void *found; if (!found) found = dlsym(RTLD_NEXT, #name); (__typeof__(&name))found; })
#define PATHS char path[PATH_MAX]
#define NAMED(fd, name, what, room)                                                                                    \
    PATHS;                                                                                                             \
    int torn = 0;                                                                                                      \
    if (armed && of_name(fd, name, path) && under(path) && (torn = step(what, path, room)) < 0) return -1;             \
    (void)torn
#define OPENED(fd, what, room)                                                                                         \
    PATHS;                                                                                                             \
    int torn = 0;                                                                                                      \
    if (armed && of_descriptor(fd, path) && under(path) && (torn = step(what, path, room)) < 0) return -1;             \
    (void)torn

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }
#define OPEN(name)                                                                                                     \
    int name(const char *file, int flags, ...) {                                                                       \
        MODE;                                                                                                          \
        if (writes(flags)) { NAMED(AT_FDCWD, file, "open", flags & O_CREAT); }                                         \
        return REAL(name)(file, flags, mode);                                                                          \
    }
#define OPENAT(name)                                                                                                   \
    int name(int fd, const char *file, int flags, ...) {                                                               \
        MODE;                                                                                                          \
        if (writes(flags)) { NAMED(fd, file, "open", flags & O_CREAT); }                                               \
        return REAL(name)(fd, file, flags, mode);                                                                      \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                                    \
    FILE *name(const char *file, const char *how) {                                                                    \
        PATHS;                                                                                                         \
        if (armed && strpbrk(how, "wa+") && of_name(AT_FDCWD, file, path) && under(path) && step("open", path, 1) < 0) \
            return NULL;                                                                                               \
        return REAL(name)(file, how);                                                                                  \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
    OPENED(fd, "write", 1);
    ssize_t n = REAL(write)(fd, data, torn ? size / 2 : size);
    if (torn) die();
    return n;
}

#define PWRITE(name, offset_t)                                                                                         \
    ssize_t name(int fd, const void *data, size_t size, offset_t where) {                                              \
        OPENED(fd, "write", 1);                                                                                        \
        ssize_t n = REAL(name)(fd, data, torn ? size / 2 : size, where);                                               \
        if (torn) die();                                                                                               \
        return n;                                                                                                      \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    OPENED(fd, "write", 1);
    ssize_t n = REAL(writev)(fd, parts, torn ? count / 2 : count);
    if (torn) die();
    return n;
}

#define COPY(name, offset_t)                                                                                           \
    ssize_t name(int to, int from, offset_t *where, size_t size) {                                                     \
        OPENED(to, "write", 1);                                                                                        \
        ssize_t n = REAL(name)(to, from, where, torn ? size / 2 : size);                                               \
        if (torn) die();                                                                                               \
        return n;                                                                                                      \
    }
COPY(sendfile, off_t)
COPY(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *source, int to, off64_t *target, size_t size, unsigned flags) {
    OPENED(to, "write", 1);
    return REAL(copy_file_range)(from, source, to, target, size, flags);
}

static int is_file(int fd) {
    struct stat about;
    return !fstat(fd, &about) && S_ISREG(about.st_mode);
}

/* What was written may only now turn out to find no room; the names in a folder have theirs. */
#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        OPENED(fd, "fsync", is_file(fd));                                                                              \
        return armed ? 0 : REAL(name)(fd);                                                                             \
    }
SYNC(fsync)
SYNC(fdatasync)

#define RESIZE(name, offset_t)                                                                                         \
    int name(int fd, offset_t size) {                                                                                  \
        OPENED(fd, "truncate", 1);                                                                                     \
        return REAL(name)(fd, size);                                                                                   \
    }
RESIZE(ftruncate, off_t)
RESIZE(ftruncate64, off64_t)

#define ALLOCATE(name, offset_t)                                                                                       \
    int name(int fd, int mode, offset_t where, offset_t size) {                                                        \
        OPENED(fd, "allocate", 1);                                                                                     \
        return REAL(name)(fd, mode, where, size);                                                                      \
    }
ALLOCATE(fallocate, off_t)
ALLOCATE(fallocate64, off64_t)

int rename(const char *from, const char *to) {
    NAMED(AT_FDCWD, to, "rename", 0);
    return REAL(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    NAMED(b, to, "rename", 0);
    return REAL(renameat)(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    NAMED(b, to, "rename", 0);
    return REAL(renameat2)(a, from, b, to, flags);
}
int unlink(const char *name) {
    NAMED(AT_FDCWD, name, "unlink", 0);
    return REAL(unlink)(name);
}
int unlinkat(int fd, const char *name, int flags) {
    NAMED(fd, name, flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0);
    return REAL(unlinkat)(fd, name, flags);
}
int remove(const char *name) {
    NAMED(AT_FDCWD, name, "unlink", 0);
    return REAL(remove)(name);
}
int rmdir(const char *name) {
    NAMED(AT_FDCWD, name, "rmdir", 0);
    return REAL(rmdir)(name);
}
int mkdir(const char *name, mode_t mode) {
    NAMED(AT_FDCWD, name, "mkdir", 1);
    return REAL(mkdir)(name, mode);
}
int mkdirat(int fd, const char *name, mode_t mode) {
    NAMED(fd, name, "mkdir", 1);
    return REAL(mkdirat)(fd, name, mode);
}
int utimensat(int fd, const char *name, const struct timespec times[2], int flags) {
    NAMED(fd, name, "utime", 0);
    return REAL(utimensat)(fd, name, times, flags);
}
