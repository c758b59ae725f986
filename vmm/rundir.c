/*
 * Run directories: paths, the lock, listing.  See client.h.
 *
 * The lock and the removal of its file: a lock file that is unlinked while
 * somebody waits for it leaves that somebody with a lock on nothing.  So whoever
 * got the lock compares the inode it holds with the one in the directory, and
 * starts again when they differ; whoever removes the file holds the lock.
 *
 * Looking whether a VM lives takes the lock shared, for microseconds.  A claim
 * may meet such a look, so it does not believe the first refusal.
 */
#include "vmm/client.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLAIM_TRIES 10
#define CLAIM_PAUSE_US 20000
#define LOG_TAIL_BYTES 4096

/* ---- paths ----------------------------------------------------------------- */

static int base_fits(char *buf, size_t len, const char *dir, const char *below, struct err *e)
{
	int n = snprintf(buf, len, "%s%s", dir, below);

	if (n < 0 || (size_t)n >= len)
		return err_set(e, -ENAMETOOLONG, "run directory %s%s: the path is too long for a "
			       "socket; set BRIM_RUN_DIR to a shorter path", dir, below);
	return 0;
}

int rundir_base(char *buf, size_t len, struct err *e)
{
	const char *dir = getenv("BRIM_RUN_DIR");

	if (dir && *dir) {
		if (*dir != '/')
			return err_set(e, -EINVAL, "BRIM_RUN_DIR is %s: it must be an absolute "
				       "path", dir);
		return base_fits(buf, len, dir, "", e);
	}
	if (geteuid() == 0)
		return base_fits(buf, len, "/run/brim", "", e);
	dir = getenv("XDG_RUNTIME_DIR");
	if (!dir || *dir != '/')
		return err_set(e, -EINVAL, "there is no place for run directories: set BRIM_RUN_DIR "
			       "to a directory of your own, or log in so that XDG_RUNTIME_DIR is set");
	return base_fits(buf, len, dir, "/brim", e);
}

static bool name_char(char c)
{
	return isalnum((unsigned char)c) || c == '.' || c == '_' || c == '-';
}

int vm_name_check(const char *name, struct err *e)
{
	size_t n = strlen(name);

	if (n == 0)
		return err_set(e, -EINVAL, "a VM's name must not be empty");
	if (n > RUN_NAME_MAX)
		return err_set(e, -EINVAL, "VM name %.20s...: %zu characters, the most are %d", name,
			       n, RUN_NAME_MAX);
	if (!isalnum((unsigned char)name[0]))
		return err_set(e, -EINVAL, "VM name %s: the first character must be a letter or a "
			       "digit", name);
	for (size_t i = 0; i < n; i++)
		if (!name_char(name[i]))
			return err_set(e, -EINVAL, "VM name %s: only letters, digits, '.', '_' and "
				       "'-' are allowed", name);
	return 0;
}

static bool path_join(char out[RUN_PATH_MAX], const char *dir, const char *file)
{
	int n = snprintf(out, RUN_PATH_MAX, "%s/%s", dir, file);

	return n > 0 && (size_t)n < RUN_PATH_MAX;
}

static bool join_all(struct vm_paths *p)
{
	return path_join(p->lock, p->dir, "lock") && path_join(p->control, p->dir, "control.sock") &&
	       path_join(p->console, p->dir, "console.sock") &&
	       path_join(p->hvc, p->dir, "hvc0.sock") && path_join(p->log, p->dir, "log") &&
	       path_join(p->config, p->dir, "config.json") &&
	       path_join(p->stats, p->dir, "stats");
}

int vm_paths_init(struct vm_paths *p, const char *base, const char *name, struct err *e)
{
	struct vm_paths out;
	int rc;

	rc = vm_name_check(name, e);
	if (rc)
		return rc;
	memset(&out, 0, sizeof(out));
	memcpy(out.name, name, strlen(name));
	if (!path_join(out.dir, base, name) || !join_all(&out))
		return err_set(e, -ENAMETOOLONG, "VM %s: the path of a socket in %s/%s would be longer "
			       "than the %zu bytes Linux allows; use a shorter name or set BRIM_RUN_DIR "
			       "to a shorter path", name, base, name, RUN_PATH_MAX - 1);
	*p = out;
	return 0;
}

int vm_paths_from_dir(struct vm_paths *p, const char *dir, struct err *e)
{
	const char *slash = strrchr(dir, '/');
	char base[PATH_MAX];

	if (dir[0] != '/' || (size_t)(slash - dir) >= sizeof(base))
		return err_set(e, -EINVAL, "run directory %s: must be an absolute path", dir);
	memcpy(base, dir, (size_t)(slash - dir));
	base[slash - dir] = '\0';
	return vm_paths_init(p, base, slash + 1, e);
}

/* ---- the lock -------------------------------------------------------------- */

static bool same_file(int fd, const char *path)
{
	struct stat held, there;

	return fstat(fd, &held) == 0 && lstat(path, &there) == 0 &&
	       held.st_dev == there.st_dev && held.st_ino == there.st_ino;
}

static pid_t read_pid(int fd)
{
	char text[32] = "";

	if (pread(fd, text, sizeof(text) - 1, 0) <= 0)
		return 0;
	return (pid_t)strtol(text, NULL, 10);
}

static bool is_dir(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int rundir_probe(const struct vm_paths *p, enum vm_presence *presence, pid_t *pid,
		 struct err *e)
{
	enum vm_presence seen;
	pid_t holder = 0;
	int fd;

	fd = open(p->lock, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); /* a FIFO, even */
	if (fd < 0) {
		if (errno != ENOENT)
			return err_sys(e, -errno, "VM %s: cannot look at %s", p->name, p->lock);
		seen = is_dir(p->dir) ? VM_DIED : VM_ABSENT;
	} else if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
		/* Removed while we looked: an orderly end. */
		seen = same_file(fd, p->lock) ? VM_DIED : VM_ABSENT;
	} else {
		seen = VM_RUNNING;
		holder = read_pid(fd);
	}
	if (fd >= 0)
		close(fd);
	*presence = seen;
	if (pid)
		*pid = holder;
	return 0;
}

static int make_dirs(const char *dir, struct err *e)
{
	char path[RUN_PATH_MAX];
	size_t n = strlen(dir);

	VERIFY(n < sizeof(path));
	memcpy(path, dir, n + 1);
	for (size_t i = 1; i <= n; i++) {
		if (path[i] != '/' && path[i] != '\0')
			continue;
		path[i] = '\0';
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			return err_sys(e, -errno, "cannot make the run directory %s", path);
		path[i] = dir[i];
	}
	return 0;
}

/* Somebody else's directory in a place all may write to must not become ours. */
static int check_owner(const struct vm_paths *p, struct err *e)
{
	struct stat st;

	if (lstat(p->dir, &st) < 0)
		return -errno;
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
		return err_set(e, -EPERM, "run directory %s: not a directory of this user; remove it "
			       "or set BRIM_RUN_DIR", p->dir);
	return 0;
}

/* The lock of the file that is in the directory now.  -EAGAIN: look again. */
static int try_lock(const struct vm_paths *p, int *lock_fd, struct err *e)
{
	int fd, rc;

	fd = open(p->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return errno == ENOENT ? -EAGAIN
				       : err_sys(e, -errno, "VM %s: cannot open %s", p->name, p->lock);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		rc = errno == EWOULDBLOCK ? -EBUSY
					  : err_sys(e, -errno, "VM %s: cannot lock %s", p->name, p->lock);
	else
		rc = same_file(fd, p->lock) ? 0 : -EAGAIN;
	if (rc == -EBUSY)
		err_set(e, rc, "VM %s is running already (pid %d)", p->name, (int)read_pid(fd));
	if (rc)
		close(fd);
	else
		*lock_fd = fd;
	return rc;
}

static int lock_patiently(const struct vm_paths *p, bool create, int *lock_fd, struct err *e)
{
	int rc = -EAGAIN;

	for (int i = 0; i < CLAIM_TRIES && (rc == -EAGAIN || rc == -EBUSY); i++) {
		if (i > 0)
			usleep(CLAIM_PAUSE_US);
		rc = create ? make_dirs(p->dir, e) : 0;
		if (!rc)
			rc = check_owner(p, e);
		if (rc == -ENOENT)
			rc = create ? -EAGAIN : -ENOENT;
		if (!rc)
			rc = try_lock(p, lock_fd, e);
	}
	if (rc == -EAGAIN)
		rc = err_set(e, -EBUSY, "VM %s: others keep making and removing %s", p->name, p->dir);
	return rc;
}

static void remove_files(const struct vm_paths *p)
{
	const char *const files[] = { p->control, p->console, p->hvc, p->log, p->config,
				      p->stats };

	for (size_t i = 0; i < ARRAY_LEN(files); i++)
		if (unlink(files[i]) < 0 && errno != ENOENT)
			log_warn("cannot remove %s: %s", files[i], strerror(errno));
}

static int write_pid(const struct vm_paths *p, int fd, struct err *e)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());

	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n)
		return err_sys(e, errno ? -errno : -EIO, "VM %s: cannot write %s", p->name, p->lock);
	return 0;
}

int rundir_claim(const struct vm_paths *p, int *lock_fd, struct err *e)
{
	int fd = -1, rc;

	rc = lock_patiently(p, true, &fd, e);
	if (rc)
		return rc == -EBUSY ? -EEXIST : rc;
	remove_files(p);
	rc = write_pid(p, fd, e);
	if (rc)
		rundir_release(p, &fd);
	else
		*lock_fd = fd;
	return rc;
}

void rundir_release(const struct vm_paths *p, int *lock_fd)
{
	if (*lock_fd < 0)
		return;
	/* When somebody removed the directory by hand, it may be another VM's now. */
	if (same_file(*lock_fd, p->lock)) {
		remove_files(p);
		if (unlink(p->lock) < 0)
			log_warn("cannot remove %s: %s", p->lock, strerror(errno));
		/* ENOTEMPTY: the next VM of this name is already moving in, or there is
		 * a file that is not ours. */
		if (rmdir(p->dir) < 0 && errno != ENOTEMPTY)
			log_warn("cannot remove %s: %s", p->dir, strerror(errno));
	}
	close(*lock_fd);
	*lock_fd = -1;
}

int rundir_clean(const struct vm_paths *p, struct err *e)
{
	int fd = -1, rc;

	rc = lock_patiently(p, false, &fd, e);
	if (rc == -ENOENT)
		return 0;
	if (!rc)
		rundir_release(p, &fd);
	return rc;
}

/* ---- listing --------------------------------------------------------------- */

static int by_version(const void *a, const void *b)
{
	return strverscmp(*(char *const *)a, *(char *const *)b);
}

static int list_add(char ***names, size_t *count, const char *name)
{
	char **grown = reallocarray(*names, *count + 1, sizeof(char *));

	if (!grown)
		return -ENOMEM;
	*names = grown;
	grown[*count] = strdup(name);
	if (!grown[*count])
		return -ENOMEM;
	(*count)++;
	return 0;
}

int rundir_list(const char *base, char ***names, size_t *count, struct err *e)
{
	char **found = NULL;
	size_t n = 0;
	struct dirent *d;
	int rc = 0;
	DIR *dir;

	dir = opendir(base);
	if (!dir && errno != ENOENT)
		return err_sys(e, -errno, "cannot read the run directory %s", base);
	while (dir && !rc && (d = readdir(dir)))
		if (vm_name_check(d->d_name, NULL) == 0 &&
		    (d->d_type == DT_DIR || d->d_type == DT_UNKNOWN))
			rc = list_add(&found, &n, d->d_name);
	if (dir)
		closedir(dir);
	if (rc) {
		rundir_list_free(&found, n);
		return err_sys(e, rc, "cannot list the run directory %s", base);
	}
	if (n > 1)
		qsort(found, n, sizeof(*found), by_version);
	*names = found;
	*count = n;
	return 0;
}

void rundir_list_free(char ***names, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free((*names)[i]);
	free(*names);
	*names = NULL;
}

void rundir_last_log(const struct vm_paths *p, char *buf, size_t len)
{
	char tail[LOG_TAIL_BYTES + 1];
	ssize_t n = 0;
	char *start;
	int fd;

	fd = open(p->log, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd >= 0) {
		off_t size = lseek(fd, 0, SEEK_END);

		n = pread(fd, tail, LOG_TAIL_BYTES, size > LOG_TAIL_BYTES ? size - LOG_TAIL_BYTES : 0);
		close(fd);
	}
	if (n < 0)
		n = 0;
	while (n > 0 && isspace((unsigned char)tail[n - 1]))
		n--;
	tail[n] = '\0';
	start = memrchr(tail, '\n', (size_t)n);
	snprintf(buf, len, "%s", start ? start + 1 : tail);
}
