/* Loaded into a daemon before libc (LD_PRELOAD), to do to it what a machine may do: move a clock, break it, or end at a
 * chosen moment; and to see what files it makes. It changes nothing that the daemon decides; without its variables it does
 * nothing at all.
 *
 *   SHIM_CLOCKS    a file of two numbers, 64 bits each: nanoseconds by which CLOCK_REALTIME and CLOCK_BOOTTIME are off
 *   SHIM_BREAKS    a file; once it is there, CLOCK_MONOTONIC fails now and then on the threads of the runtime, which panic
 *   SHIM_SILENT_NAMES  if it is set, no name is ever resolved: the name server is silent
 *   SHIM_DIE_AT    at which sync of a file, from 1, the process is killed: right after the file is durable
 *   SHIM_DIE_IN    count only syncs of files whose path contains this
 *   SHIM_DIED_AT   a file that then says at which sync of which file that was
 *   SHIM_ORDERS    a file that may name a process at any time, which then dies as if the first two said so: its number, the
 *                  sync, counted from when the order is there, and the part of the path
 *   SHIM_MADE      a file that gets a line for each file, directory and socket that the process makes, or gives another mode, as it
 *                  is at that moment: which of the two, what it is, mode, owner, device, inode, path
 */
#undef _FORTIFY_SOURCE
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NANOS 1000000000LL

static const int64_t *clocks;
static long die_at, syncs;
static const char *die_in = "", *died_at = "/dev/null", *orders, *breaks, *made;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("SHIM_CLOCKS");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, 2 * sizeof *clocks, PROT_READ, MAP_SHARED, fd, 0);
	if (mapped != MAP_FAILED)
		clocks = mapped;
	if (fd >= 0)
		close(fd);
	die_at = getenv("SHIM_DIE_AT") ? atol(getenv("SHIM_DIE_AT")) : 0;
	die_in = getenv("SHIM_DIE_IN") ? getenv("SHIM_DIE_IN") : die_in;
	died_at = getenv("SHIM_DIED_AT") ? getenv("SHIM_DIED_AT") : died_at;
	orders = getenv("SHIM_ORDERS");
	breaks = getenv("SHIM_BREAKS");
	made = getenv("SHIM_MADE");
}

/* -- clocks */

static void *next(const char *name)
{
	return dlsym(RTLD_NEXT, name);
}

static int is_broken(clockid_t clock)
{
	/* What handles a panic needs the clock, too, and must not panic. */
	static __thread unsigned calls;
	char name[16];
	return breaks && clock == CLOCK_MONOTONIC && access(breaks, F_OK) == 0
		&& pthread_getname_np(pthread_self(), name, sizeof name) == 0 && strncmp(name, "tokio-r", 7) == 0
		&& calls++ % 100 == 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		real = next("clock_gettime");
	if (is_broken(clock)) {
		errno = EINVAL;
		return -1;
	}
	int result = real(clock, now);
	int number = clock == CLOCK_REALTIME ? 0 : clock == CLOCK_BOOTTIME ? 1 : -1;
	if (result == 0 && clocks && number >= 0) {
		int64_t off = __atomic_load_n(&clocks[number], __ATOMIC_ACQUIRE);
		int64_t nanos = now->tv_sec * NANOS + now->tv_nsec + off;
		now->tv_sec = nanos / NANOS;
		now->tv_nsec = nanos % NANOS;
	}
	return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
	struct timespec fine;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &fine);
	now->tv_sec = fine.tv_sec;
	now->tv_usec = fine.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *now)
{
	struct timespec fine;
	clock_gettime(CLOCK_REALTIME, &fine);
	if (now)
		*now = fine.tv_sec;
	return fine.tv_sec;
}

/* -- death */

static void die_if_due(int fd)
{
	char link[64], path[4096], line[128], ordered_in[65];
	long at = die_at;
	const char *in = die_in;
	if (orders) {
		int file = open(orders, O_RDONLY | O_CLOEXEC), pid = 0;
		ssize_t size = file < 0 ? 0 : read(file, line, sizeof line - 1);
		if (file >= 0)
			close(file);
		line[size < 0 ? 0 : size] = 0;
		if (sscanf(line, "%d %ld %64s", &pid, &at, ordered_in) != 3 || pid != getpid())
			return;
		in = ordered_in;
	}
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof path - 1);
	path[length < 0 ? 0 : length] = 0;
	if (!strstr(path, in) || __atomic_add_fetch(&syncs, 1, __ATOMIC_SEQ_CST) != at)
		return;
	int note = open(died_at, O_WRONLY | O_CREAT | O_APPEND, 0600);
	dprintf(note, "sync %ld, of %s\n", at, path);
	kill(getpid(), SIGKILL);
	pause();
}

static int sync_with(int (*real)(int), int fd)
{
	int result = real(fd);
	if (result == 0 && (die_at > 0 || orders))
		die_if_due(fd);
	return result;
}

int fsync(int fd)
{
	static int (*real)(int);
	if (!real)
		real = next("fsync");
	return sync_with(real, fd);
}

int fdatasync(int fd)
{
	static int (*real)(int);
	if (!real)
		real = next("fdatasync");
	return sync_with(real, fd);
}

/* -- names */

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
	static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
	while (getenv("SHIM_SILENT_NAMES"))
		pause();
	if (!real)
		real = next("getaddrinfo");
	return real(host, service, hints, found);
}

/* -- what is made */

static int (*real_openat)(int, const char *, int, ...);

/* Whether something is at this path before the call that may make it. */
static int is_there(int dir, const char *path)
{
	struct stat at;
	return fstatat(dir, path, &at, AT_SYMLINK_NOFOLLOW) == 0;
}

static void note(const char *call, const char *what, const struct stat *at, const char *path)
{
	char line[4400];
	int length = snprintf(line, sizeof line, "%s %s %o %u %llu %llu %s\n", call, what, at->st_mode & 07777, at->st_uid,
		(unsigned long long)at->st_dev, (unsigned long long)at->st_ino, path);
	if (!real_openat)
		real_openat = next("openat");
	int notes = real_openat(AT_FDCWD, made, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	/* One write, so that lines of several processes do not mix. */
	if (notes >= 0 && length > 0 && write(notes, line, length) < 0)
		abort();
	if (notes >= 0)
		close(notes);
}

static void note_path(const char *what, int dir, const char *path)
{
	struct stat at;
	if (made && fstatat(dir, path, &at, AT_SYMLINK_NOFOLLOW) == 0)
		note("made", what, &at, path);
}

static int open_with(int (*real)(int, const char *, int, ...), int dir, const char *path, int flags, mode_t mode)
{
	int makes = made && (flags & O_CREAT) && !is_there(dir, path);
	int fd = real(dir, path, flags, mode);
	struct stat at;
	if (makes && fd >= 0 && fstat(fd, &at) == 0)
		note("made", "file", &at, path);
	return fd;
}

/* `open` is `openat` from the working directory, and on 64 bits there is one size of files. */
#define OPEN(name, real_name, head, dir)                                                  \
	int name(head const char *path, int flags, ...)                                   \
	{                                                                                 \
		static int (*real)(int, const char *, int, ...);                          \
		if (!real)                                                                \
			real = next(real_name);                                           \
		mode_t mode = 0;                                                          \
		if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                \
			va_list rest;                                                     \
			va_start(rest, flags);                                            \
			mode = va_arg(rest, mode_t);                                      \
			va_end(rest);                                                     \
		}                                                                         \
		return open_with(real, dir, path, flags, mode);                           \
	}
#define FROM int dir,
OPEN(open, "openat", , AT_FDCWD)
OPEN(open64, "openat64", , AT_FDCWD)
OPEN(openat, "openat", FROM, dir)
OPEN(openat64, "openat64", FROM, dir)

static FILE *fopen_with(const char *name, const char *path, const char *mode)
{
	FILE *(*real)(const char *, const char *) = next(name);
	int makes = made && mode[0] != 'r' && !is_there(AT_FDCWD, path);
	FILE *file = real(path, mode);
	if (makes && file)
		note_path("file", AT_FDCWD, path);
	return file;
}

FILE *fopen(const char *path, const char *mode)
{
	return fopen_with("fopen", path, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
	return fopen_with("fopen64", path, mode);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
	static int (*real)(int, const char *, mode_t);
	if (!real)
		real = next("mkdirat");
	int result = real(dir, path, mode);
	if (result == 0)
		note_path("directory", dir, path);
	return result;
}

int mkdir(const char *path, mode_t mode)
{
	return mkdirat(AT_FDCWD, path, mode);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
	static int (*real)(int, const struct sockaddr *, socklen_t);
	if (!real)
		real = next("bind");
	int result = real(fd, address, length);
	const struct sockaddr_un *local = (const struct sockaddr_un *)address;
	if (result == 0 && made && address->sa_family == AF_UNIX && length > offsetof(struct sockaddr_un, sun_path)) {
		char path[sizeof local->sun_path + 1] = {0};
		memcpy(path, local->sun_path, length - offsetof(struct sockaddr_un, sun_path));
		if (path[0])
			note_path("socket", AT_FDCWD, path);
	}
	return result;
}

/* -- what gets another mode */

static void note_mode(const struct stat *at, const char *path)
{
	note("mode", S_ISDIR(at->st_mode) ? "directory" : S_ISSOCK(at->st_mode) ? "socket" : "file", at, path);
}

int fchmod(int fd, mode_t mode)
{
	static int (*real)(int, mode_t);
	if (!real)
		real = next("fchmod");
	int result = real(fd, mode);
	struct stat at;
	if (result == 0 && made && fstat(fd, &at) == 0) {
		char link[64], path[4096];
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		ssize_t length = readlink(link, path, sizeof path - 1);
		path[length < 0 ? 0 : length] = 0;
		note_mode(&at, path);
	}
	return result;
}

int fchmodat(int dir, const char *path, mode_t mode, int flags)
{
	static int (*real)(int, const char *, mode_t, int);
	if (!real)
		real = next("fchmodat");
	int result = real(dir, path, mode, flags);
	struct stat at;
	if (result == 0 && made && fstatat(dir, path, &at, 0) == 0)
		note_mode(&at, path);
	return result;
}

int chmod(const char *path, mode_t mode)
{
	return fchmodat(AT_FDCWD, path, mode, 0);
}
