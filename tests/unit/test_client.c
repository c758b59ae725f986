/*
 * The run directory (I1 and I2 of client.h) and the client side of the control
 * socket, against a thread that answers as it is told to.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/client.h"

static char base[64];
static struct vm_paths paths;

static void begin(void)
{
	snprintf(base, sizeof(base), "/tmp/test_client.XXXXXX");
	cr_assert(mkdtemp(base));
	cr_assert_eq(vm_paths_init(&paths, base, "web1", NULL), 0);
}

static void finish(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", base);
	cr_expect_eq(system(cmd), 0);
}

static enum vm_presence presence(pid_t *pid)
{
	enum vm_presence seen = VM_ABSENT;
	struct err e = { "" };

	cr_assert_eq(rundir_probe(&paths, &seen, pid, &e), 0, "%s", e.msg);
	return seen;
}

static void write_log(const char *text)
{
	int fd = open(paths.log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

/* A VM that dies: claims in a child and is gone without a release. */
static void leave_dead(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		int fd;

		_exit(rundir_claim(&paths, &fd, NULL) ? 1 : 0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(status, 0);
}

/* ---- names and paths ------------------------------------------------------------ */

Test(client, names_are_checked)
{
	static const char *const good[] = { "a", "web1", "A.b_c-d", "0" };
	static const char *const bad[] = { "", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "\xc3\xa4",
		"a0123456789012345678901234567890123456789012345678901234567890123" };

	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		cr_expect_eq(vm_name_check(good[i], NULL), 0, "%s", good[i]);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		cr_expect_eq(vm_name_check(bad[i], NULL), -EINVAL, "%s", bad[i]);
}

Test(client, paths_that_fit_no_socket_are_refused)
{
	char deep[RUN_PATH_MAX];
	struct vm_paths p;
	struct err e = { "" };

	memset(deep, 'd', sizeof(deep));
	deep[0] = '/';
	/* "/d...d" "/web1" "/control.sock" and a NUL: the longest that fits */
	deep[RUN_PATH_MAX - 1 - strlen("/web1/control.sock")] = '\0';
	cr_expect_eq(vm_paths_init(&p, deep, "web1", &e), 0, "%s", e.msg);
	cr_expect_eq(strlen(p.control), RUN_PATH_MAX - 1);
	cr_expect_eq(vm_paths_init(&p, deep, "web10", &e), -ENAMETOOLONG);
	cr_expect(strstr(e.msg, "BRIM_RUN_DIR"), "%s", e.msg);
}

Test(client, paths_are_the_same_from_a_directory)
{
	struct vm_paths a, b;

	cr_assert_eq(vm_paths_init(&a, "/run/brim", "web1", NULL), 0);
	cr_assert_eq(vm_paths_from_dir(&b, "/run/brim/web1", NULL), 0);
	cr_expect_eq(memcmp(&a, &b, sizeof(a)), 0);
	cr_expect_eq(vm_paths_from_dir(&b, "web1", NULL), -EINVAL);
	cr_expect_eq(vm_paths_from_dir(&b, "/run/brim/", NULL), -EINVAL);
}

Test(client, base_follows_the_environment)
{
	char buf[RUN_PATH_MAX];
	struct err e = { "" };

	setenv("BRIM_RUN_DIR", "/srv/vms", 1);
	cr_expect_eq(rundir_base(buf, sizeof(buf), &e), 0);
	cr_expect_str_eq(buf, "/srv/vms");
	setenv("BRIM_RUN_DIR", "here", 1);
	cr_expect_eq(rundir_base(buf, sizeof(buf), &e), -EINVAL);
	cr_expect(strstr(e.msg, "absolute"), "%s", e.msg);
	unsetenv("BRIM_RUN_DIR");
	if (geteuid() == 0 && seteuid(65534) < 0)
		cr_skip_test("cannot stop being root");
	setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
	cr_expect_eq(rundir_base(buf, sizeof(buf), &e), 0);
	cr_expect_str_eq(buf, "/run/user/7/brim");
	unsetenv("XDG_RUNTIME_DIR");
	cr_expect_eq(rundir_base(buf, sizeof(buf), &e), -EINVAL);
	cr_expect(strstr(e.msg, "set BRIM_RUN_DIR"), "%s", e.msg);
	cr_expect_eq(seteuid(getuid()), 0);
}

/* ---- life and death --------------------------------------------------------------- */

TestSuite(rundir, .init = begin, .fini = finish);

Test(rundir, claim_is_seen_and_release_leaves_nothing)
{
	struct stat st;
	pid_t pid = 0;
	int fd = -1;

	cr_assert_eq(presence(NULL), VM_ABSENT);
	cr_assert_eq(rundir_claim(&paths, &fd, NULL), 0);
	cr_expect_eq(presence(&pid), VM_RUNNING);
	cr_expect_eq(pid, getpid());
	cr_assert_eq(stat(paths.dir, &st), 0);
	cr_expect_eq(st.st_mode & 07777, 0700);
	cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	write_log("x\n");
	rundir_release(&paths, &fd);
	cr_expect_eq(fd, -1);
	cr_expect_eq(presence(NULL), VM_ABSENT);
	cr_expect(stat(paths.dir, &st) < 0 && errno == ENOENT);
}

Test(rundir, second_claim_of_a_name_fails_I1)
{
	struct err e = { "" };
	int fd = -1, again = -1;

	cr_assert_eq(rundir_claim(&paths, &fd, NULL), 0);
	cr_expect_eq(rundir_claim(&paths, &again, &e), -EEXIST);
	cr_expect(strstr(e.msg, "running already (pid "), "%s", e.msg);
	cr_expect_eq(again, -1);
	cr_expect_eq(rundir_clean(&paths, &e), -EBUSY);
	cr_expect_eq(presence(NULL), VM_RUNNING);
	rundir_release(&paths, &fd);
}

Test(rundir, dead_vm_is_seen_keeps_its_log_and_can_be_cleaned)
{
	char line[64];

	leave_dead();
	cr_expect_eq(presence(NULL), VM_DIED);
	write_log("first\nlast words\n\n");
	rundir_last_log(&paths, line, sizeof(line));
	cr_expect_str_eq(line, "last words");
	cr_expect_eq(rundir_clean(&paths, NULL), 0);
	cr_expect_eq(presence(NULL), VM_ABSENT);
	cr_expect_eq(rundir_clean(&paths, NULL), 0);
	rundir_last_log(&paths, line, sizeof(line));
	cr_expect_str_eq(line, "");
}

Test(rundir, claim_takes_over_from_a_dead_vm)
{
	int fd = -1;

	leave_dead();
	write_log("old\n");
	cr_assert_eq(rundir_claim(&paths, &fd, NULL), 0);
	cr_expect_eq(access(paths.log, F_OK), -1);
	rundir_release(&paths, &fd);
}

Test(rundir, release_spares_the_next_vm_of_the_name_I1)
{
	char cmd[128];
	int mine = -1, next = -1;

	cr_assert_eq(rundir_claim(&paths, &mine, NULL), 0);
	snprintf(cmd, sizeof(cmd), "rm -r '%s'", paths.dir);
	cr_assert_eq(system(cmd), 0);
	cr_assert_eq(rundir_claim(&paths, &next, NULL), 0);
	rundir_release(&paths, &mine);
	cr_expect_eq(presence(NULL), VM_RUNNING);
	rundir_release(&paths, &next);
}

Test(rundir, claim_refuses_what_is_not_a_directory)
{
	struct err e = { "" };
	int fd = -1;

	cr_assert_eq(symlink("/tmp", paths.dir), 0);
	cr_expect_eq(rundir_claim(&paths, &fd, &e), -EPERM, "%s", e.msg);
	cr_expect_eq(access("/tmp/lock", F_OK), -1);
}

static void *look_briefly(void *arg)
{
	int *look = arg;

	usleep(50000);
	close(*look);
	return NULL;
}

/* A look takes the lock for a moment; a claim must not believe it. */
Test(rundir, claim_outlasts_a_look)
{
	int fd = -1, look;
	pthread_t t;

	leave_dead();
	look = open(paths.lock, O_RDONLY);
	cr_assert(look >= 0 && flock(look, LOCK_SH | LOCK_NB) == 0);
	cr_assert_eq(pthread_create(&t, NULL, look_briefly, &look), 0);
	cr_expect_eq(rundir_claim(&paths, &fd, NULL), 0);
	pthread_join(t, NULL);
	rundir_release(&paths, &fd);
}

#define RACERS 8
#define ROUNDS 40

static void *race(void *arg)
{
	_Atomic int *holders = arg;

	for (int i = 0; i < ROUNDS; i++) {
		int fd = -1;

		if (rundir_claim(&paths, &fd, NULL))
			continue;
		/* more than one at a time would be two VMs of one name */
		VERIFY(atomic_fetch_add(holders, 1) == 0);
		VERIFY(access(paths.lock, F_OK) == 0);
		atomic_fetch_sub(holders, 1);
		rundir_release(&paths, &fd);
		rundir_clean(&paths, NULL);
	}
	return NULL;
}

Test(rundir, many_claims_have_one_holder_I1)
{
	_Atomic int holders = 0;
	pthread_t t[RACERS];

	log_init("test", 2, LOG_ERROR);
	for (int i = 0; i < RACERS; i++)
		cr_assert_eq(pthread_create(&t[i], NULL, race, &holders), 0);
	for (int i = 0; i < RACERS; i++)
		pthread_join(t[i], NULL);
	cr_expect_eq(rundir_clean(&paths, NULL), 0);
	cr_expect_eq(presence(NULL), VM_ABSENT);
}

Test(rundir, list_is_sorted_as_people_count)
{
	static const char *const made[] = { "vm10", "vm2", "vm1", ".hidden" };
	char path[128], **names = NULL;
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_LEN(made); i++) {
		snprintf(path, sizeof(path), "%s/%s", base, made[i]);
		cr_assert_eq(mkdir(path, 0700), 0);
	}
	cr_assert_eq(rundir_list(base, &names, &n, NULL), 0);
	cr_assert_eq(n, 3);
	cr_expect_str_eq(names[0], "vm1");
	cr_expect_str_eq(names[1], "vm2");
	cr_expect_str_eq(names[2], "vm10");
	rundir_list_free(&names, n);
	cr_expect_eq(rundir_list("/no/such/base", &names, &n, NULL), 0);
	cr_expect_eq(n, 0);
}

/* ---- the control socket -------------------------------------------------------------- */

/* Answers each request with the next of `replies` ("" : closes), in pieces. */
struct server {
	int fd, lock_fd;
	const char *const *replies;
	pthread_t thread;
	char seen[512]; /* the last request */
};

static void send_slowly(int fd, const char *text)
{
	for (size_t i = 0; text[i]; i += 7) {
		size_t n = strnlen(text + i, 7);

		if (send(fd, text + i, n, MSG_NOSIGNAL) < 0)
			return;
		usleep(200);
		if (n < 7)
			return;
	}
}

static void *serve(void *arg)
{
	struct server *s = arg;
	int c = accept(s->fd, NULL, NULL);

	for (size_t i = 0; c >= 0 && s->replies[i]; i++) {
		ssize_t n = read(c, s->seen, sizeof(s->seen) - 1);

		if (n <= 0 || !*s->replies[i])
			break;
		s->seen[n] = '\0';
		send_slowly(c, s->replies[i]);
	}
	close(c);
	return NULL;
}

static void server_start(struct server *s, const char *const *replies)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	*s = (struct server){ .lock_fd = -1, .replies = replies };
	cr_assert_eq(rundir_claim(&paths, &s->lock_fd, NULL), 0);
	memcpy(sa.sun_path, paths.control, strlen(paths.control) + 1);
	s->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	cr_assert(bind(s->fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 && listen(s->fd, 1) == 0);
	cr_assert_eq(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void server_stop(struct server *s)
{
	pthread_join(s->thread, NULL);
	close(s->fd);
	rundir_release(&paths, &s->lock_fd);
}

TestSuite(ctl, .init = begin, .fini = finish);

Test(ctl, reply_in_pieces_is_put_together)
{
	static const char *const replies[] = {
		"{\"v\":1,\"id\":1,\"ok\":true,\"result\":{\"state\":\"paused\"}}\n", NULL };
	struct server s;
	struct ctl *c = NULL;
	json_t *result = NULL;
	struct err e = { "" };

	server_start(&s, replies);
	cr_assert_eq(ctl_open(&c, &paths, &e), 0, "%s", e.msg);
	cr_assert_eq(ctl_call(c, "pause", NULL, CTL_TIMEOUT_MS, &result, &e), 0, "%s", e.msg);
	cr_expect_str_eq(json_string_value(json_object_get(result, "state")), "paused");
	cr_expect_str_eq(s.seen, "{\"v\":1,\"id\":1,\"cmd\":\"pause\"}\n");
	json_decref(result);
	ctl_close(&c);
	server_stop(&s);
}

Test(ctl, refusals_and_nonsense_are_errors)
{
	static const struct { const char *reply; int rc; const char *says; } rows[] = {
		{ "{\"v\":1,\"id\":1,\"ok\":false,\"error\":\"no such thing\"}\n", -EREMOTEIO,
		  "VM web1: no such thing" },
		{ "{\"v\":1,\"id\":1}\n", -EREMOTEIO, "without a reason" },
		{ "nonsense\n", -EPROTO, "not a JSON object" },
		{ "[]\n", -EPROTO, "not a JSON object" },
		{ "", -ECONNRESET, "went away" },
	};

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		const char *const replies[] = { rows[i].reply, NULL };
		struct server s;
		struct ctl *c = NULL;
		struct err e = { "" };

		server_start(&s, replies);
		cr_assert_eq(ctl_open(&c, &paths, &e), 0, "%s", e.msg);
		cr_expect_eq(ctl_call(c, "x", NULL, CTL_TIMEOUT_MS, NULL, &e), rows[i].rc, "%s", rows[i].reply);
		cr_expect(strstr(e.msg, rows[i].says), "%s: said '%s'", rows[i].reply, e.msg);
		ctl_close(&c);
		server_stop(&s);
	}
}

Test(ctl, replies_to_others_are_dropped)
{
	static const char *const replies[] = {
		"{\"v\":1,\"id\":9,\"ok\":false,\"error\":\"other\"}\n"
		"{\"v\":1,\"id\":1,\"ok\":true,\"result\":{}}\n", NULL };
	struct server s;
	struct ctl *c = NULL;
	struct err e = { "" };

	server_start(&s, replies);
	cr_assert_eq(ctl_open(&c, &paths, &e), 0, "%s", e.msg);
	cr_expect_eq(ctl_call(c, "x", NULL, CTL_TIMEOUT_MS, NULL, &e), 0, "%s", e.msg);
	ctl_close(&c);
	server_stop(&s);
}

Test(ctl, silence_is_a_timeout)
{
	/* a second reply that is never asked for keeps the server reading */
	static const char *const replies[] = { "{\"v\":1,\"id\":77,\"ok\":true}\n", "x", NULL };
	struct server s;
	struct ctl *c = NULL;
	json_int_t id;
	struct err e = { "" };

	server_start(&s, replies);
	cr_assert_eq(ctl_open(&c, &paths, &e), 0, "%s", e.msg);
	cr_assert_eq(ctl_send(c, "wait", NULL, &id, &e), 0);
	cr_expect_eq(ctl_recv(c, id, 0, NULL, &e), -EAGAIN);
	cr_expect_eq(ctl_recv(c, id, 60, NULL, &e), -ETIMEDOUT);
	cr_expect(strstr(e.msg, "does not answer"), "%s", e.msg);
	ctl_close(&c);
	server_stop(&s);
}

Test(ctl, endless_line_is_refused)
{
	struct server s;
	struct ctl *c = NULL;
	struct err e = { "" };
	char *line = malloc(2 * MiB);
	const char *const replies[] = { "{}", NULL };
	int pair[2], rc;

	/* the reply is too long for send_slowly(): the other end is played here */
	server_start(&s, replies);
	cr_assert_eq(ctl_open(&c, &paths, &e), 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	cr_assert_eq(dup2(pair[0], ctl_fd(c)), ctl_fd(c));
	memset(line, 'x', 2 * MiB);
	if (fork() == 0) {
		/* the reader must be the only one at that end */
		close(pair[0]);
		close(ctl_fd(c));
		for (size_t at = 0; at < 2 * MiB; ) {
			ssize_t n = send(pair[1], line + at, 2 * MiB - at, MSG_NOSIGNAL);

			if (n <= 0)
				break;
			at += (size_t)n;
		}
		_exit(0);
	}
	close(pair[0]);
	close(pair[1]);
	rc = ctl_recv(c, 1, CTL_TIMEOUT_MS, NULL, &e);
	cr_expect_eq(rc, -EPROTO, "%d: %s", rc, e.msg);
	ctl_close(&c);
	wait(NULL);
	server_stop(&s);
	free(line);
}

Test(ctl, absence_is_explained)
{
	struct ctl *c = NULL;
	struct err e = { "" };
	int fd = -1;

	cr_expect_eq(ctl_open(&c, &paths, &e), -ENOENT);
	cr_expect(strstr(e.msg, "there is no VM named web1"), "%s", e.msg);
	leave_dead();
	cr_expect_eq(ctl_open(&c, &paths, &e), -ECONNREFUSED);
	cr_expect(strstr(e.msg, "has died"), "%s", e.msg);
	cr_assert_eq(rundir_claim(&paths, &fd, NULL), 0);
	cr_expect_eq(ctl_open(&c, &paths, &e), -ENOENT);
	cr_expect(strstr(e.msg, "cannot be reached"), "%s", e.msg);
	rundir_release(&paths, &fd);
	cr_expect_null(c);
}
