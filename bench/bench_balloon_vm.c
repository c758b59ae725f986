/*
 * Question: how fast does memory come back from a real guest, what does it cost the
 * host, and does the guest feel it?
 *
 * Method: the same guest in brim and in QEMU, both running all the time, one being
 * measured while the other idles, by turns.  Guest RAM is 4 GiB (512 MiB in the
 * emulated host), all of it touched (memwork) before each run.
 *  inflate:  the balloon's target goes from 0 to all but 212 MiB.  It ends when the
 *            guest has given all and the process's RSS has fallen to where it stays;
 *            RSS is sampled every 10 ms: memory counts when the host really has it.
 *  deflate:  back to 0, until the guest has taken all.
 *            The next memwork pays for touching it all again.
 *  report:   memwork ends and frees all; RSS is sampled.  The guest's driver waits 2 s,
 *            reports at most 128 MiB, and waits again: the wall time is the guest's.
 *            What hosts differ in is CPU time; that of all threads, since QEMU was
 *            seen to do this work on the vCPU's.  The idle guest's is in it.
 *  pause:    a thread in the guest (jitter) reads the time stamp counter as fast as
 *            it can, for 3 s while nothing happens and 3 s while the balloon inflates.
 *
 * Baseline: QEMU -M q35 with virtio-balloon-pci, -accel kvm -cpu host.  Unless it
 * says otherwise both use the pages they use by themselves: brim small ones, QEMU
 * huge ones where it can.  `huge pages`: brim with --hugepages always.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/vmlib.h"

#define MEMORY_BYTES (4 * GiB)
#define MEMORY_EMULATED_BYTES (512 * MiB) /* where a page fault costs 100 us and more */
#define GUEST_NEEDS_BYTES (112 * MiB)     /* not touched: it must not run into its limits */
#define LEFT_BYTES (212 * MiB)            /* not asked for */
#define SETTLE_MS 1500   /* after memwork's exit, before a balloon run */
#define SAMPLE_MS 10
#define ASK_EVERY 5      /* samples: how often the VMM is asked for the balloon's size */
#define STABLE_SAMPLES 40
#define SLACK_BYTES (1 * MiB)
#define START_S 120
#define WORK_S 120
#define MOVE_S 300
#define REPORT_S 180
#define PHASE_MS 3000      /* of jitter's */
#define SAMPLES_MAX 20000
#define NS_PER_S 1e9
#define NS_PER_MS 1e6
#define PAIRS_MOST 5       /* half a minute and more each, and the noise is small */
#define PAIRS_MOST_QUICK 2

#define CMDLINE "console=ttyS0 quiet panic=1 brim.stay"

struct pair_of_vms {
	struct bench *b;
	const char *series;
	enum vm_pages pages; /* brim's */
	unsigned cpus;
	bool reporting;
	struct vm *vm[2]; /* brim, peer */
};

/* fixed in main() */
static uint64_t memory_bytes, target_bytes, touched_bytes;

static double gib(uint64_t bytes)
{
	return (double)bytes / (double)GiB;
}

static void open_pair(struct pair_of_vms *p)
{
	static const enum vmm vmms[] = { VMM_BRIM, VMM_Q35 };

	for (unsigned i = 0; i < ARRAY_LEN(vmms); i++) {
		p->vm[i] = vm_start(&(struct vm_spec){
			.vmm = vmms[i], .series = p->series, .kernel = "vmlinux",
			.cmdline = CMDLINE, .memory_bytes = memory_bytes, .cpus = p->cpus,
			.pages = i == 0 ? p->pages : PAGES_USUAL, .reporting = p->reporting,
			.control = true,
		});
		vm_wait_text(p->vm[i], "guest: ready", START_S);
		vm_wait_text(p->vm[i], "# ", START_S); /* the shell */
	}
}

static void close_pair(struct pair_of_vms *p)
{
	for (unsigned i = 0; i < ARRAY_LEN(p->vm); i++)
		vm_end(&p->vm[i]);
}

/* Each of the two once; who goes first alternates.  `turn` 0 is not measured. */
static void by_turns(struct pair_of_vms *p, unsigned pairs, void (*one)(struct vm *vm, double *v),
		     struct series *s, unsigned whats)
{
	double v[16];

	VERIFY(whats <= ARRAY_LEN(v));
	for (unsigned turn = 0; turn <= pairs; turn++)
		for (unsigned k = 0; k < 2; k++) {
			unsigned i = (k + turn) % 2;

			one(p->vm[i], v);
			for (unsigned w = 0; w < whats && turn > 0; w++)
				series_put(&s[w], i == 1, v[w]);
		}
}

static void report_all(const struct pair_of_vms *p, struct series *s, const char *const (*names)[2],
		       unsigned whats)
{
	char name[64];

	for (unsigned w = 0; w < whats; w++) {
		snprintf(name, sizeof(name), "%s%s%s", names[w][0],
			 strcmp(p->series, "6.12") ? ", guest " : "",
			 strcmp(p->series, "6.12") ? p->series : "");
		if (p->pages == PAGES_HUGE)
			strncat(name, ", huge pages", sizeof(name) - strlen(name) - 1);
		series_report(p->b, name, names[w][1], &s[w], vmm_name(VMM_Q35));
	}
}

/* Until the guest has freed it all again: when that was. */
static uint64_t touch(struct vm *vm)
{
	char line[96];

	snprintf(line, sizeof(line), "memwork --min %u --rounds 1 --churn 0 --compress 100 >/dev/null",
		 (unsigned)(touched_bytes / MiB));
	return vm_shell(vm, line, WORK_S);
}

/* ---- sampling ------------------------------------------------------------------ */

struct samples {
	unsigned n;
	uint64_t ns[SAMPLES_MAX], rss[SAMPLES_MAX];
};

static void sample(struct samples *s, struct vm *vm)
{
	VERIFY(s->n < SAMPLES_MAX);
	s->rss[s->n] = vm_rss_bytes(vm);
	s->ns[s->n++] = now_ns();
}

/* When RSS first was no more than that; 0: never. */
static uint64_t first_at_most(const struct samples *s, uint64_t bytes)
{
	for (unsigned i = 0; i < s->n; i++)
		if (s->rss[i] <= bytes)
			return s->ns[i];
	return 0;
}

static bool is_stable(const struct samples *s)
{
	uint64_t last;

	if (s->n < STABLE_SAMPLES)
		return false;
	last = s->rss[s->n - 1];
	for (unsigned i = s->n - STABLE_SAMPLES; i < s->n; i++)
		if (s->rss[i] > last + SLACK_BYTES || s->rss[i] + SLACK_BYTES < last)
			return false;
	return true;
}

/* Samples until the balloon holds `target` and RSS has come to rest.  Returns when
 * the balloon was first seen to hold it. */
static uint64_t sample_move(struct samples *s, struct vm *vm, uint64_t target)
{
	uint64_t held_ns = 0, limit = now_ns() + (uint64_t)(MOVE_S * NS_PER_S);

	s->n = 0;
	for (unsigned i = 0; !held_ns || !is_stable(s); i++) {
		if (now_ns() > limit)
			vm_die(vm, "its balloon did not get there in time", "");
		sample(s, vm);
		if (!held_ns && i % ASK_EVERY == 0 && vm_balloon_bytes(vm) == target)
			held_ns = now_ns();
		vm_pass(vm, SAMPLE_MS);
	}
	return held_ns;
}

static struct samples samples;

/* ---- inflate and deflate ---------------------------------------------------------- */

enum { INFLATE, DEFLATE, TOUCH, RETURNED, INFLATE_CPU, INFLATE_VCPU, DISCARD, BALLOON_WHATS };

static const char *const balloon_whats[BALLOON_WHATS][2] = {
	[INFLATE] = { "inflate", "GiB/s" },
	[DEFLATE] = { "deflate", "GiB/s" },
	[TOUCH] = { "memwork over memory given back", "s" },
	[RETURNED] = { "inflate, host memory back for it", "%" },
	[INFLATE_CPU] = { "inflate, CPU but vCPU", "ms/GiB" },
	[INFLATE_VCPU] = { "inflate, CPU of vCPU", "ms/GiB" },
	[DISCARD] = { "inflate, brim in madvise", "ms/GiB" },
};

/* Seconds it took. */
static double touch_all(struct vm *vm)
{
	uint64_t began = now_ns(), end = touch(vm);

	vm_pass(vm, SETTLE_MS);
	return (double)(end - began) / NS_PER_S;
}

static void inflate_once(struct vm *vm, double *v)
{
	struct vm_cpu before, after;
	uint64_t began, end, held, rss, discard_ns;

	v[TOUCH] = touch_all(vm);
	vm_cpu(vm, &before);
	discard_ns = vm_counter(vm, "balloon_discard_ns");
	rss = vm_rss_bytes(vm);
	began = now_ns();
	vm_balloon_set(vm, target_bytes);
	held = sample_move(&samples, vm, target_bytes);
	vm_cpu(vm, &after);
	end = first_at_most(&samples, samples.rss[samples.n - 1] + SLACK_BYTES);
	if (held > end)
		end = held;
	v[INFLATE] = gib(target_bytes) / ((double)(end - began) / NS_PER_S);
	v[RETURNED] = 100 * gib(rss - samples.rss[samples.n - 1]) / gib(target_bytes);
	v[INFLATE_CPU] = (double)(after.rest_ns - before.rest_ns) / NS_PER_MS / gib(target_bytes);
	v[INFLATE_VCPU] = (double)(after.vcpu_ns - before.vcpu_ns) / NS_PER_MS / gib(target_bytes);
	v[DISCARD] = (double)(vm_counter(vm, "balloon_discard_ns") - discard_ns) / NS_PER_MS /
		     gib(target_bytes);
	began = now_ns();
	vm_balloon_set(vm, 0);
	held = sample_move(&samples, vm, 0);
	v[DEFLATE] = gib(target_bytes) / ((double)(held - began) / NS_PER_S);
}

static void compare_balloon(struct bench *b, const char *series, enum vm_pages pages,
			    unsigned pairs)
{
	struct pair_of_vms p = { .b = b, .series = series, .pages = pages, .cpus = 1 };
	struct series s[BALLOON_WHATS] = { 0 };

	open_pair(&p);
	by_turns(&p, pairs, inflate_once, s, BALLOON_WHATS);
	close_pair(&p);
	report_all(&p, s, balloon_whats, DISCARD);
	series_report(b, balloon_whats[DISCARD][0], balloon_whats[DISCARD][1], &s[DISCARD], NULL);
}

/* ---- free page reporting ------------------------------------------------------------- */

enum { REPORT_RATE, REPORT_TIME, REPORT_BACK, REPORT_CPU, REPORT_WHATS };

static const char *const report_whats[REPORT_WHATS][2] = {
	[REPORT_RATE] = { "report, 10 to 90 %", "GiB/s" },
	[REPORT_TIME] = { "report, guest's exit to 90 %", "s" },
	[REPORT_BACK] = { "report, host memory back", "%" },
	[REPORT_CPU] = { "report, CPU of all threads", "ms/GiB" },
};

/* RSS is where it stays when nothing has come back for longer than the guest's
 * driver waits. */
#define REST_NS (uint64_t)(5 * NS_PER_S)

static void sample_report(struct vm *vm, uint64_t freed_ns)
{
	uint64_t least = UINT64_MAX, least_ns = freed_ns;

	samples.n = 0;
	while (now_ns() < least_ns + REST_NS && now_ns() < freed_ns + (uint64_t)(REPORT_S * NS_PER_S)) {
		sample(&samples, vm);
		if (samples.rss[samples.n - 1] + SLACK_BYTES < least) {
			least = samples.rss[samples.n - 1];
			least_ns = now_ns();
		}
		vm_pass(vm, SAMPLE_MS);
	}
}

static void report_once(struct vm *vm, double *v)
{
	struct vm_cpu before, after;
	uint64_t freed, top, low, fall, at10, at90, used_ns;

	freed = touch(vm);
	vm_cpu(vm, &before);
	sample_report(vm, freed);
	vm_cpu(vm, &after);
	top = samples.rss[0];
	low = samples.rss[samples.n - 1];
	fall = top > low ? top - low : 0;
	at10 = first_at_most(&samples, top - fall / 10);
	at90 = first_at_most(&samples, low + fall / 10);
	v[REPORT_RATE] = at90 > at10 ? gib(fall / 10 * 8) / ((double)(at90 - at10) / NS_PER_S) : 0;
	v[REPORT_TIME] = (double)(at90 - freed) / NS_PER_S;
	v[REPORT_BACK] = 100 * gib(fall) / gib(touched_bytes);
	used_ns = after.rest_ns + after.vcpu_ns - before.rest_ns - before.vcpu_ns;
	v[REPORT_CPU] = fall ? (double)used_ns / NS_PER_MS / gib(fall) : 0;
}

static void compare_report(struct bench *b, const char *series, enum vm_pages pages, unsigned pairs)
{
	struct pair_of_vms p = { .b = b, .series = series, .pages = pages, .cpus = 1,
				 .reporting = true };
	struct series s[REPORT_WHATS] = { 0 };

	open_pair(&p);
	by_turns(&p, pairs, report_once, s, REPORT_WHATS);
	close_pair(&p);
	report_all(&p, s, report_whats, REPORT_WHATS);
}

/* ---- pauses ------------------------------------------------------------------------------ */

enum { QUIET_MAX, QUIET_P99, QUIET_LOST, MOVE_MAX, MOVE_P99, MOVE_LOST, MOVE_OVER, MOVED,
       PAUSE_WHATS };

static const char *const pause_whats[PAUSE_WHATS][2] = {
	[QUIET_MAX] = { "pause: quiet, longest", "ms" },
	[QUIET_P99] = { "pause: quiet, p99 of 10 ms", "ms" },
	[QUIET_LOST] = { "pause: quiet, time lost", "%" },
	[MOVE_MAX] = { "pause: inflating, longest", "ms" },
	[MOVE_P99] = { "pause: inflating, p99 of 10 ms", "ms" },
	[MOVE_LOST] = { "pause: inflating, time lost", "%" },
	[MOVED] = { "pause: inflated in those 3 s", "MiB" },
	[MOVE_OVER] = { "pause: inflating, gaps over 1 ms", "gaps" },
};

static void hear_account(struct vm *vm, const char *phase, double *max, double *p99, double *lost,
			 double *over)
{
	char text[64], rest[256];
	unsigned n;
	double median, max_us, p99_us;

	snprintf(text, sizeof(text), "jitter: phase=%s seconds=", phase);
	vm_wait_rest(vm, text, WORK_S, rest, sizeof(rest));
	if (sscanf(rest, "%*f windows=%*u max_us=%lf p99_us=%lf median_us=%lf over_1ms=%u lost_pct=%lf",
		   &max_us, &p99_us, &median, &n, lost) != 5)
		vm_die(vm, "its jitter prints another line than expected: ", rest);
	*max = max_us / 1e3;
	*p99 = p99_us / 1e3;
	*over = n;
}

/* Asks seldom: the answers cost the host's CPUs, too. */
static void wait_balloon(struct vm *vm, uint64_t bytes)
{
	uint64_t limit = now_ns() + (uint64_t)(MOVE_S * NS_PER_S);

	while (vm_balloon_bytes(vm) != bytes) {
		if (now_ns() > limit)
			vm_die(vm, "its balloon did not get there in time", "");
		vm_pass(vm, SAMPLE_MS * ASK_EVERY);
	}
}

static void pause_once(struct vm *vm, double *v)
{
	double ignored;

	touch_all(vm);
	vm_type(vm, "jitter");
	vm_wait_text(vm, "jitter: ready", WORK_S);
	vm_type(vm, "quiet");
	vm_pass(vm, PHASE_MS);
	vm_type(vm, "inflate");
	hear_account(vm, "quiet", &v[QUIET_MAX], &v[QUIET_P99], &v[QUIET_LOST], &ignored);
	vm_balloon_set(vm, target_bytes);
	vm_pass(vm, PHASE_MS);
	v[MOVED] = gib(vm_balloon_bytes(vm)) * 1024;
	vm_type(vm, "end");
	hear_account(vm, "inflate", &v[MOVE_MAX], &v[MOVE_P99], &v[MOVE_LOST], &v[MOVE_OVER]);
	vm_balloon_set(vm, 0);
	wait_balloon(vm, 0);
	vm_shell(vm, "true", WORK_S);
}

static void compare_pause(struct bench *b, const char *series, unsigned pairs)
{
	struct pair_of_vms p = { .b = b, .series = series, .cpus = 2 };
	struct series s[PAUSE_WHATS] = { 0 };

	open_pair(&p);
	by_turns(&p, pairs, pause_once, s, PAUSE_WHATS);
	close_pair(&p);
	report_all(&p, s, pause_whats, PAUSE_WHATS);
}

/* ---- all of it ------------------------------------------------------------------------------ */

int main(int argc, char **argv)
{
	static struct bench b;
	const char *emulated = getenv("BRIM_TESTHOST");
	unsigned pairs;

	bench_begin(&b, "bench_balloon_vm", argc, argv);
	vmlib_begin(&b);
	memory_bytes = emulated && strcmp(emulated, "emulated") == 0 ? MEMORY_EMULATED_BYTES : MEMORY_BYTES;
	target_bytes = memory_bytes - LEFT_BYTES;
	touched_bytes = memory_bytes - GUEST_NEEDS_BYTES;
	printf("guests of %u MiB, of which %u MiB go into the balloon\n",
	       (unsigned)(memory_bytes / MiB), (unsigned)(target_bytes / MiB));
	pairs = b.quick ? PAIRS_MOST_QUICK : PAIRS_MOST;
	if (b.pairs < pairs)
		pairs = b.pairs;
	compare_balloon(&b, "6.12", PAGES_USUAL, pairs);
	compare_report(&b, "6.12", PAGES_USUAL, pairs);
	compare_pause(&b, "6.12", pairs);
	if (!b.quick) {
		compare_balloon(&b, "6.12", PAGES_HUGE, pairs);
		compare_report(&b, "6.12", PAGES_HUGE, pairs);
		compare_balloon(&b, "6.1", PAGES_USUAL, pairs);
	}
	return bench_end(&b);
}
