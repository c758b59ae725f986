/*
 * The swap file encrypted: AES-256-XTS over blocks of 4 KiB, by OpenSSL's libcrypto.
 *
 * The tweak is the block's number in the file, the key is new at every boot of a VM
 * and written nowhere.  So what is on disk is noise from the moment the process ends.
 * XTS hides content and does not authenticate it; nothing here asks that of it, since
 * nobody but this VM may write the file, and each page has its checksum underneath.
 *
 * A block written twice has the same tweak: who keeps copies of the disk over time
 * sees which 16 bytes of a block changed, and no more.  A counter against that would
 * have to be in memory for each block, or in each block for each read.
 *
 * The 64 bytes of key are in a page of their own, not in dumps nor in children, and
 * only until the contexts have been made.  The contexts' expanded keys are the
 * library's memory: they are wiped at the end.  A core dump would have them, and what is
 * in registers besides: that there is none is up to the process (vmm/memory.c).
 *
 * Threads: crypt_seal() from the put thread.  crypt_unseal() from any, with as many
 * contexts as a VM has threads that read; making one for each call would cost more
 * than the block does.
 */
#include "mm/swap/internal.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#define KEY_BYTES 64u
#define TWEAK_BYTES 16u
#define READERS 17u /* fault threads, and the put thread */

struct context {
	atomic_flag busy;
	EVP_CIPHER_CTX *evp;
};

struct crypt {
	/* fixed at create */
	EVP_CIPHER *cipher;
	EVP_CIPHER_CTX *writer; /* put thread */
	struct context reader[READERS];
};

enum direction { DECRYPT, ENCRYPT };

/* NULL: the library has no memory, or does not do it. */
static EVP_CIPHER_CTX *make_context(const struct crypt *c, const uint8_t *key, enum direction d)
{
	EVP_CIPHER_CTX *evp = EVP_CIPHER_CTX_new();

	if (evp && EVP_CipherInit_ex2(evp, c->cipher, key, NULL, d == ENCRYPT, NULL) == 1)
		return evp;
	EVP_CIPHER_CTX_free(evp);
	return NULL;
}

static int make_contexts(struct crypt *c, const uint8_t *key)
{
	c->cipher = EVP_CIPHER_fetch(NULL, "AES-256-XTS", NULL);
	if (!c->cipher)
		return -EIO;
	c->writer = make_context(c, key, ENCRYPT);
	if (!c->writer)
		return -EIO;
	for (unsigned i = 0; i < READERS; i++) {
		c->reader[i].evp = make_context(c, key, DECRYPT);
		if (!c->reader[i].evp)
			return -EIO;
	}
	return 0;
}

static int draw_key(uint8_t *key)
{
	size_t got = 0;

	while (got < KEY_BYTES) {
		ssize_t n = getrandom(key + got, KEY_BYTES - got, 0);

		if (n < 0 && errno != EINTR)
			return -errno;
		got += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

/* mlock may be refused where the limit is small: then the host's own swap may see the
 * page in this millisecond. */
static int make_keyed(struct crypt *c)
{
	uint8_t *key = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int rc;

	if (key == MAP_FAILED)
		return -ENOMEM;
	(void)mlock(key, PAGE_BYTES);
	rc = madvise(key, PAGE_BYTES, MADV_DONTDUMP) || madvise(key, PAGE_BYTES, MADV_WIPEONFORK) ?
		-errno : draw_key(key);
	if (!rc)
		rc = make_contexts(c, key);
	OPENSSL_cleanse(key, PAGE_BYTES);
	munmap(key, PAGE_BYTES);
	return rc;
}

int crypt_create(struct crypt **out, struct err *e)
{
	struct crypt *c = calloc(1, sizeof(*c));
	int rc = c ? make_keyed(c) : -ENOMEM;

	if (rc) {
		crypt_destroy(&c);
		return err_sys(e, rc, "swap: cannot set up encryption");
	}
	*out = c;
	return 0;
}

void crypt_destroy(struct crypt **cp)
{
	struct crypt *c = *cp;

	*cp = NULL;
	if (!c)
		return;
	EVP_CIPHER_CTX_free(c->writer);
	for (unsigned i = 0; i < READERS; i++)
		EVP_CIPHER_CTX_free(c->reader[i].evp);
	EVP_CIPHER_free(c->cipher);
	free(c);
}

static int run(EVP_CIPHER_CTX *evp, const struct crypt_blocks *b)
{
	for (uint32_t i = 0; i < b->count; i++) {
		uint8_t tweak[TWEAK_BYTES] = { 0 };
		uint8_t *at = b->at + i * MM_BLOCK_BYTES;
		uint64_t block = b->first + i;
		int n = 0;

		memcpy(tweak, &block, sizeof(block));
		if (EVP_CipherInit_ex2(evp, NULL, NULL, tweak, -1, NULL) != 1 ||
		    EVP_CipherUpdate(evp, at, &n, at, (int)MM_BLOCK_BYTES) != 1 ||
		    n != (int)MM_BLOCK_BYTES)
			return -EIO;
	}
	return 0;
}

int crypt_seal(struct crypt *c, const struct crypt_blocks *b)
{
	return run(c->writer, b);
}

static struct context *take_reader(struct crypt *c)
{
	for (unsigned i = 0;; i = (i + 1) % READERS) {
		if (!atomic_flag_test_and_set_explicit(&c->reader[i].busy, memory_order_acquire))
			return &c->reader[i];
		if (i == READERS - 1)
			sched_yield();
	}
}

int crypt_unseal(struct crypt *c, const struct crypt_blocks *b)
{
	struct context *r = take_reader(c);
	int rc = run(r->evp, b);

	atomic_flag_clear_explicit(&r->busy, memory_order_release);
	return rc;
}
