/*
 * rediswork: a guest program that fills a redis server with text and checks every
 * byte of what it reads back.
 *
 * What lives here: the client of t_redis. It speaks the server's protocol (RESP) over its Unix socket, many
 * requests at a time. Key number i holds --bytes of text: words drawn by a generator seeded with i and with the
 * key's generation, so that a value is never stored anywhere but in the server, and packs about as text does.
 *
 * Phases: load every key; for each of --rounds: read --reads keys, chosen zipfian (hot keys spread over the
 * whole range) or, every other round, evenly; write every tenth key that was read anew; last, read the
 * keys in order, all or one in --every.
 * Each prints
 *
 *   rediswork: phase=round-1 reads=20000 writes=2000 errors=0 seconds=3.2
 *
 * What must be true: a value that is not, byte for byte, the one last written ends the program with status 1 and
 * its key, the first wrong byte's place, and what stands there.
 *
 * Exit: 0 all right; 1 a wrong or missing value; 2 usage; 3 the server does not answer, or refuses.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define VALUE_MAX 65536u
#define BATCH 64u	/* requests under way at a time */
#define WRITE_EVERY 10u
#define WORDS 64u	/* six bits of a random number choose one */
#define WORD_ROOM 16u
#define VALUE_SLACK 256u	/* room for the words that go beyond a value's end */

struct options {
	const char *socket;
	uint64_t seed;
	unsigned keys, bytes, rounds, reads, every;
};

struct server {
	FILE *in, *out;
};

/* A word, a space, and their length: 16 bytes are copied, `len` of them count. */
struct word {
	char text[WORD_ROOM - 1];
	uint8_t len;
};
#define W(s) { s " ", sizeof(s) }

static const struct word words[WORDS] = {
	W("the"), W("of"), W("and"), W("memory"), W("page"), W("that"), W("server"), W("request"),
	W("is"), W("in"), W("a"), W("user"), W("returned"), W("value"), W("for"), W("was"), W("not"),
	W("with"), W("key"), W("when"), W("cold"), W("this"), W("session"), W("error"), W("from"),
	W("at"), W("cache"), W("time"), W("written"), W("by"), W("it"), W("which"), W("name"),
	W("address"), W("street"), W("order"), W("number"), W("item"), W("city"), W("invoice"),
	W("shipped"), W("pending"), W("customer"), W("account"), W("balance"), W("comment"),
	W("article"), W("title"), W("status"), W("updated"), W("created"), W("language"), W("country"),
	W("price"), W("quantity"), W("total"), W("discount"), W("review"), W("message"), W("sender"),
	W("subject"), W("attached"), W("received"), W("forwarded"),
};

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static uint64_t rng_next(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15u;
	return mix(*state);
}

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* At least o->bytes of text, the same for the same numbers: lines of nine words and a
 * number.  Cheap, since guests that this is for may be emulated. */
static void value_of(const struct options *o, unsigned key, uint32_t generation, char *out)
{
	uint64_t rng = mix(o->seed ^ ((uint64_t)generation << 32 | key));
	const char *end = out + o->bytes;

	while (out < end) {
		uint64_t r = rng_next(&rng);

		for (unsigned i = 0; i < 9; i++, r >>= 6) {
			const struct word *w = &words[r % WORDS];

			memcpy(out, w, WORD_ROOM);
			out += w->len;
		}
		for (unsigned i = 0; i < 3; i++, r /= 10)
			*out++ = (char)('0' + r % 10);
		*out++ = '\n';
	}
}

/* ---- the server ---------------------------------------------------------------- */

static bool server_open(struct server *s, const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof(a.sun_path))
		return false;
	strcpy(a.sun_path, path);
	/* It may be starting. */
	for (unsigned tries = 0; tries < 600; tries++) {
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
			break;
		if (fd >= 0)
			close(fd);
		fd = -1;
		usleep(100000);
	}
	if (fd < 0)
		return false;
	s->in = fdopen(fd, "r");
	s->out = fdopen(dup(fd), "w");
	return s->in && s->out;
}

static void send_get(struct server *s, unsigned key)
{
	fprintf(s->out, "*2\r\n$3\r\nGET\r\n$12\r\nkey:%08u\r\n", key);
}

static void send_set(struct server *s, unsigned key, const char *value, unsigned bytes)
{
	fprintf(s->out, "*3\r\n$3\r\nSET\r\n$12\r\nkey:%08u\r\n$%u\r\n", key, bytes);
	fwrite(value, 1, bytes, s->out);
	fputs("\r\n", s->out);
}

static bool expect_ok(struct server *s)
{
	char line[256];

	if (!fgets(line, sizeof(line), s->in))
		line[0] = '\0';
	if (strcmp(line, "+OK\r\n") == 0)
		return true;
	printf("rediswork: the server says: %s\n", line);
	return false;
}

/* 0, 1 (another value than the one expected), or 3 (no answer). */
static int expect_value(struct server *s, unsigned key, const char *expected, unsigned bytes)
{
	static char got[VALUE_MAX + 2];
	char line[256];
	unsigned at = 0;

	if (!fgets(line, sizeof(line), s->in) || line[0] != '$') {
		printf("rediswork: key %u: the server says: %s\n", key, line);
		return 3;
	}
	if (strtol(line + 1, NULL, 10) != (long)bytes) {
		printf("rediswork: WRONG VALUE key=%u length=%s", key, line + 1);
		return 1;
	}
	if (fread(got, 1, bytes + 2, s->in) != bytes + 2)
		return 3;
	if (memcmp(got, expected, bytes) == 0)
		return 0;
	while (got[at] == expected[at])
		at++;
	printf("rediswork: WRONG VALUE key=%u byte=%u expected=0x%02x got=0x%02x\n", key, at,
	       (unsigned char)expected[at], (unsigned char)got[at]);
	return 1;
}

/* ---- phases ---------------------------------------------------------------------- */

struct work {
	const struct options *o;
	struct server server;
	uint32_t *generation;	/* of each key */
	double *zipf;		/* sums of 1/rank, for choosing by it */
	uint64_t rng;
	unsigned long reads, writes;
	char value[VALUE_MAX + VALUE_SLACK];
};

static int write_keys(struct work *w, const unsigned *keys, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		value_of(w->o, keys[i], ++w->generation[keys[i]], w->value);
		send_set(&w->server, keys[i], w->value, w->o->bytes);
	}
	fflush(w->server.out);
	for (unsigned i = 0; i < n; i++)
		if (!expect_ok(&w->server))
			return 3;
	w->writes += n;
	return 0;
}

static int read_keys(struct work *w, const unsigned *keys, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		send_get(&w->server, keys[i]);
	fflush(w->server.out);
	for (unsigned i = 0; i < n; i++) {
		int rc;

		value_of(w->o, keys[i], w->generation[keys[i]], w->value);
		rc = expect_value(&w->server, keys[i], w->value, w->o->bytes);
		if (rc)
			return rc;
	}
	w->reads += n;
	return 0;
}

/* Rank r with a chance of 1/r; ranks are spread over the keys, so that hot ones are no neighbours. */
static unsigned zipf_key(struct work *w)
{
	double at = (double)(rng_next(&w->rng) >> 11) / 9007199254740992.0 * w->zipf[w->o->keys - 1];
	unsigned low = 0, high = w->o->keys - 1;

	while (low < high) {
		unsigned mid = (low + high) / 2;

		if (w->zipf[mid] < at)
			low = mid + 1;
		else
			high = mid;
	}
	return (unsigned)(mix(low + 1) % w->o->keys);
}

/* Each key, or one in `step`. */
static int in_order(struct work *w, unsigned step, int (*each)(struct work *, const unsigned *, unsigned))
{
	unsigned keys[BATCH], n = 0;
	int rc = 0;

	for (unsigned key = 0; rc == 0 && key < w->o->keys; key += step) {
		keys[n++] = key;
		if (n < BATCH && key + step < w->o->keys)
			continue;
		rc = each(w, keys, n);
		n = 0;
	}
	return rc;
}

static int one_round(struct work *w, bool zipfian)
{
	unsigned keys[BATCH], rewritten[BATCH / WRITE_EVERY + 1];
	int rc = 0;

	for (unsigned done = 0; rc == 0 && done < w->o->reads; done += BATCH) {
		unsigned n = 0;

		for (unsigned i = 0; i < BATCH; i++)
			keys[i] = zipfian ? zipf_key(w) : (unsigned)(rng_next(&w->rng) % w->o->keys);
		for (unsigned i = 0; i < BATCH; i += WRITE_EVERY)
			rewritten[n++] = keys[i];
		rc = read_keys(w, keys, BATCH);
		if (rc == 0)
			rc = write_keys(w, rewritten, n);
	}
	return rc;
}

static int report(struct work *w, const char *phase, int rc, double from)
{
	printf("rediswork: phase=%s reads=%lu writes=%lu errors=%d seconds=%.1f\n", phase, w->reads, w->writes,
	       rc == 1, now_s() - from);
	w->reads = w->writes = 0;
	return rc;
}

static int run(struct work *w)
{
	double from = now_s();
	char phase[32];
	int rc;

	rc = report(w, "load", in_order(w, 1, write_keys), from);
	for (unsigned round = 1; rc == 0 && round <= w->o->rounds; round++) {
		from = now_s();
		snprintf(phase, sizeof(phase), "%s-%u", round % 2 ? "zipf" : "even", round);
		rc = report(w, phase, one_round(w, round % 2), from);
	}
	from = now_s();
	if (rc == 0)
		rc = report(w, "all", in_order(w, w->o->every, read_keys), from);
	printf("rediswork: done status=%d\n", rc);
	return rc;
}

/* ---- options --------------------------------------------------------------------- */

static void usage(FILE *to)
{
	fputs("usage: rediswork --socket PATH [--keys N] [--bytes N] [--rounds N] [--reads N] [--every N] [--seed N]\n"
	      "Fills a redis server with text, reads it back in zipfian and in random order, checks every byte.\n"
	      "exit: 0 every value was right, 1 a wrong one, 2 usage, 3 no answer from the server\n", to);
}

static void parse(int argc, char **argv, struct options *o)
{
	enum { SOCKET = 1, KEYS, BYTES, ROUNDS, READS, EVERY, SEED };
	static const struct option table[] = {
		{ "socket", required_argument, NULL, SOCKET }, { "keys", required_argument, NULL, KEYS },
		{ "bytes", required_argument, NULL, BYTES }, { "rounds", required_argument, NULL, ROUNDS },
		{ "reads", required_argument, NULL, READS }, { "every", required_argument, NULL, EVERY }, { "seed", required_argument, NULL, SEED }, { 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case SOCKET: o->socket = optarg; break;
		case KEYS: o->keys = (unsigned)strtoul(optarg, NULL, 10); break;
		case BYTES: o->bytes = (unsigned)strtoul(optarg, NULL, 10); break;
		case ROUNDS: o->rounds = (unsigned)strtoul(optarg, NULL, 10); break;
		case READS: o->reads = (unsigned)strtoul(optarg, NULL, 10); break;
		case EVERY: o->every = (unsigned)strtoul(optarg, NULL, 10); break;
		case SEED: o->seed = strtoull(optarg, NULL, 10); break;
		default: usage(stderr); exit(2);
		}
	}
	if (optind != argc || !o->socket || o->keys == 0 || o->bytes == 0 || o->bytes > VALUE_MAX || o->every == 0) {
		usage(stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options o = { .seed = 1, .keys = 100000, .bytes = 3000, .rounds = 2, .reads = 20000, .every = 1 };
	static struct work w;
	double sum = 0;

	parse(argc, argv, &o);
	setvbuf(stdout, NULL, _IOLBF, 0);
	w.o = &o;
	w.rng = mix(o.seed);
	w.generation = calloc(o.keys, sizeof(*w.generation));
	w.zipf = calloc(o.keys, sizeof(*w.zipf));
	if (!w.generation || !w.zipf || !server_open(&w.server, o.socket)) {
		printf("rediswork: no server at %s\n", o.socket);
		return 3;
	}
	for (unsigned i = 0; i < o.keys; i++)
		w.zipf[i] = sum += 1.0 / (i + 1);
	printf("rediswork: seed=%" PRIu64 " keys=%u bytes=%u\n", o.seed, o.keys, o.bytes);
	return run(&w);
}
