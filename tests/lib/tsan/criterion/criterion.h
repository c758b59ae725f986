/*
 * A stand-in for Criterion under ThreadSanitizer, whose shadow memory leaves no
 * place for the arena Criterion maps at a fixed address ("Could not initialize
 * inheritable arena").  The same tests, unchanged: each runs in a child of its
 * own with a deadline; the closing line is `tsan: N passed, N failed, N skipped`.
 *
 * Only what tests/unit uses is here.  Included once a test binary.
 */
#ifndef BRIM_TSAN_CRITERION_H
#define BRIM_TSAN_CRITERION_H

#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHIM_SECONDS 120
#define SHIM_SKIPPED 77

struct shim_options {
	int unused_; /* so that the initialiser below is never empty */
	void (*init)(void);
	void (*fini)(void);
	const char *description;
	double timeout;
	int signal, exit_code;
	bool disabled;
};

struct shim_test {
	const char *suite, *name;
	void (*body)(void); /* NULL: the options of a suite */
	struct shim_options opt;
	struct shim_test *next;
};

static struct shim_test *shim_tests;
static int shim_failures; /* cr_expect: of the test that runs, in its child */

#define SHIM_REGISTER(id, ...)                                                          \
	static struct shim_test id = { __VA_ARGS__ };                                   \
	static void __attribute__((constructor)) id##_register(void)                    \
	{                                                                               \
		id.next = shim_tests;                                                   \
		shim_tests = &id;                                                       \
	}
#define Test(s, n, ...)                                                                 \
	static void shim_body_##s##_##n(void);                                          \
	SHIM_REGISTER(shim_test_##s##_##n, .suite = #s, .name = #n,                     \
		      .body = shim_body_##s##_##n, .opt = { .unused_ = 0, __VA_ARGS__ }) \
	static void shim_body_##s##_##n(void)
#define TestSuite(s, ...) \
	SHIM_REGISTER(shim_suite_##s, .suite = #s, .opt = { .unused_ = 0, __VA_ARGS__ })

static inline void shim_failed(const char *file, int line, const char *what, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "%s:%d: failed: %s ", file, line, what);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

/* The message, when there is one, starts with a literal. */
#define SHIM_CHECK(ok, what, fatal, ...)                                      \
	do {                                                                  \
		if (!(ok)) {                                                  \
			shim_failed(__FILE__, __LINE__, what, "" __VA_ARGS__); \
			if (fatal)                                            \
				_exit(1);                                     \
			shim_failures++;                                      \
		}                                                             \
	} while (0)

#define cr_assert(c, ...) SHIM_CHECK(c, #c, 1, __VA_ARGS__)
#define cr_assert_not(c, ...) SHIM_CHECK(!(c), "not " #c, 1, __VA_ARGS__)
#define cr_assert_eq(a, b, ...) SHIM_CHECK((a) == (b), #a " == " #b, 1, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) SHIM_CHECK((a) != (b), #a " != " #b, 1, __VA_ARGS__)
#define cr_assert_gt(a, b, ...) SHIM_CHECK((a) > (b), #a " > " #b, 1, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) SHIM_CHECK((a) >= (b), #a " >= " #b, 1, __VA_ARGS__)
#define cr_assert_lt(a, b, ...) SHIM_CHECK((a) < (b), #a " < " #b, 1, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) SHIM_CHECK((a) <= (b), #a " <= " #b, 1, __VA_ARGS__)
#define cr_assert_null(a, ...) SHIM_CHECK((a) == NULL, #a " is NULL", 1, __VA_ARGS__)
#define cr_assert_not_null(a, ...) SHIM_CHECK((a) != NULL, #a " is not NULL", 1, __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) SHIM_CHECK(strcmp(a, b) == 0, #a " equals " #b, 1, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...) SHIM_CHECK(strcmp(a, b) != 0, #a " differs from " #b, 1, __VA_ARGS__)
#define cr_assert_str_empty(a, ...) SHIM_CHECK(*(a) == '\0', #a " is empty", 1, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...) SHIM_CHECK(memcmp(a, b, n) == 0, #a " equals " #b, 1, __VA_ARGS__)
#define cr_assert_fail(...) SHIM_CHECK(0, "cr_assert_fail", 1, __VA_ARGS__)
#define cr_expect(c, ...) SHIM_CHECK(c, #c, 0, __VA_ARGS__)
#define cr_expect_not(c, ...) SHIM_CHECK(!(c), "not " #c, 0, __VA_ARGS__)
#define cr_expect_eq(a, b, ...) SHIM_CHECK((a) == (b), #a " == " #b, 0, __VA_ARGS__)
#define cr_expect_neq(a, b, ...) SHIM_CHECK((a) != (b), #a " != " #b, 0, __VA_ARGS__)
#define cr_expect_null(a, ...) SHIM_CHECK((a) == NULL, #a " is NULL", 0, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) SHIM_CHECK(strcmp(a, b) == 0, #a " equals " #b, 0, __VA_ARGS__)
#define cr_log_info(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))
#define cr_skip_test(...) _exit(SHIM_SKIPPED)

/* Read by the runtime at its start: a process that exits beside its threads, as the
 * children of fault injection do by the hundred, need not wait a second first. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
	return "atexit_sleep_ms=0";
}

static const struct shim_test *shim_suite(const char *name)
{
	for (const struct shim_test *t = shim_tests; t; t = t->next)
		if (!t->body && strcmp(t->suite, name) == 0)
			return t;
	return NULL;
}

static void shim_child(const struct shim_test *t)
{
	const struct shim_test *s = shim_suite(t->suite);

	alarm(SHIM_SECONDS);
	if (s && s->opt.init)
		s->opt.init();
	if (t->opt.init)
		t->opt.init();
	t->body();
	if (t->opt.fini)
		t->opt.fini();
	if (s && s->opt.fini)
		s->opt.fini();
	exit(shim_failures ? 1 : 0); /* through TSan's exit: races change the status */
}

/* 0 passed, 1 failed, 2 skipped. */
static int shim_run(const struct shim_test *t)
{
	int status = 0;
	pid_t pid;
	bool ok;

	fflush(NULL);
	pid = fork();
	if (pid == 0)
		shim_child(t);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	if (WIFEXITED(status) && WEXITSTATUS(status) == SHIM_SKIPPED)
		return 2;
	ok = t->opt.signal ? WIFSIGNALED(status) && WTERMSIG(status) == t->opt.signal
			   : WIFEXITED(status) && WEXITSTATUS(status) == t->opt.exit_code;
	if (!ok)
		fprintf(stderr, "FAILED: %s::%s (status %#x)\n", t->suite, t->name, status);
	return ok ? 0 : 1;
}

int main(void)
{
	unsigned count[3] = { 0 };

	for (const struct shim_test *t = shim_tests; t; t = t->next)
		if (t->body && !t->opt.disabled)
			count[shim_run(t)]++;
	printf("tsan: %u passed, %u failed, %u skipped\n", count[0], count[1], count[2]);
	return count[1] || !count[0];
}

#endif
