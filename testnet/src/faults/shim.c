/* Loaded into a daemon before libc (LD_PRELOAD), to do to it what a machine may do: move a clock, break it, or end
 * at a chosen moment. It changes nothing that the daemon decides; without its variables it does nothing at all.
 *
 *   SHIM_CLOCKS    a file of two numbers, 64 bits each: nanoseconds by which CLOCK_REALTIME and CLOCK_BOOTTIME are off
 *   SHIM_BREAKS    a file; once it is there, CLOCK_MONOTONIC fails now and then on the threads of the runtime, which panic
 *   SHIM_DIE_AT    at which sync of a file, from 1, the process is killed: right after the file is durable
 *   SHIM_DIE_IN    count only syncs of files whose path contains this
 *   SHIM_DIED_AT   a file that then says at which sync of which file that was
 *   SHIM_ORDERS    a file that may name a process at any time, which then dies as if the first two said so: its number, the
 *                  sync, counted from when the order is there, and the part of the path
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NANOS 1000000000LL

static const int64_t *clocks;
static long die_at, syncs;
static const char *die_in = "", *died_at = "/dev/null", *orders, *breaks;

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
