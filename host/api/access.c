/*
 * Who may.
 *
 *   Unix socket:  by the kernel's word who is at the other end
 *   TCP:          by a token, in each request's Authorization header.  There is no cookie,
 *                 so that nothing a browser adds by itself opens anything.
 *   both:         nothing that a web site made a browser send
 *
 * A name that resolves to this host (DNS rebinding) makes a browser take a foreign site
 * for ours: its Host header gives it away.  Numbers cannot be rebound.
 *
 * Thread: the daemon's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/api/internal.h"

#define GROUPS_MAX 1024u

/* ---- tokens ----------------------------------------------------------------------------- */

static int token_take(struct token *t, const char *text, size_t len, struct err *e)
{
	while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
		len--;
	if (len < API_TOKEN_MIN || len > API_TOKEN_MAX)
		return err_set(e, -EINVAL, "a token has %u to %u characters, this has %s", API_TOKEN_MIN,
			       API_TOKEN_MAX, len < API_TOKEN_MIN ? "fewer" : "more");
	for (size_t i = 0; i < len; i++)
		if (text[i] <= ' ' || text[i] > '~')
			return err_set(e, -EINVAL, "only printable ASCII without spaces, in one line");
	memcpy(t->text, text, len);
	t->is_set = true;
	return 0;
}

static int check_token_file(int fd, struct err *e)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return err_sys(e, -errno, "it cannot be looked at");
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "not a file");
	if (st.st_uid != 0 && st.st_uid != geteuid())
		return err_set(e, -EACCES, "it belongs to another user");
	if (st.st_mode & 077)
		return err_set(e, -EACCES, "others may read or write it; chmod 600 it");
	return 0;
}

static int read_token_file(struct token *t, int fd, struct err *e)
{
	char text[API_TOKEN_MAX + 3];
	int rc = check_token_file(fd, e);
	ssize_t n;

	if (rc)
		return rc;
	n = read(fd, text, sizeof(text));
	rc = n < 0 ? err_sys(e, -errno, "it cannot be read") : token_take(t, text, (size_t)n, e);
	OPENSSL_cleanse(text, sizeof(text));
	return rc;
}

int token_read(struct token *t, const char *path, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), rc;
	struct err why;

	*t = (struct token){ 0 };
	if (fd < 0)
		return err_sys(e, -errno, "token file %s", path);
	rc = read_token_file(t, fd, &why);
	close(fd);
	return rc ? err_set(e, rc, "token file %s: %s", path, why.msg) : 0;
}

/* Takes as long whatever the text, and however much of it is right. */
bool token_equals(const struct token *t, const char *text)
{
	unsigned char padded[API_TOKEN_MAX] = { 0 };
	size_t len = strlen(text);
	bool fits = len <= sizeof(padded);

	memcpy(padded, text, fits ? len : sizeof(padded));
	return (CRYPTO_memcmp(padded, t->text, sizeof(padded)) == 0) & fits & t->is_set;
}

/* What follows "Bearer "; NULL: nothing does. */
static const char *bearer(const char *authorization)
{
	if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0)
		return NULL;
	return authorization + 7 + strspn(authorization + 7, " ");
}

/* ---- the Unix socket's peer --------------------------------------------------------------- */

static bool peer_in_group(int fd, gid_t gid)
{
#ifdef SO_PEERGROUPS
	gid_t groups[GROUPS_MAX]; /* who is in more is not looked for */
	socklen_t len = sizeof(groups);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
		return false;
	for (size_t i = 0; i < len / sizeof(groups[0]); i++)
		if (groups[i] == gid)
			return true;
#endif
	return false;
}

bool peer_is_trusted(int fd, gid_t gid)
{
	struct ucred c;
	socklen_t len = sizeof(c);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &len) < 0)
		return false;
	if (c.uid == 0 || c.uid == geteuid())
		return true;
	return gid != 0 && (c.gid == gid || peer_in_group(fd, gid));
}

/* ---- browsers ----------------------------------------------------------------------------- */

static bool is_port(const char *s)
{
	return *s == '\0' || (*s == ':' && s[1] && strspn(s + 1, "0123456789") == strlen(s + 1));
}

static bool is_address(const char *name)
{
	unsigned char bytes[16];

	return inet_pton(AF_INET, name, bytes) == 1 || inet_pton(AF_INET6, name, bytes) == 1;
}

static bool host_is_ours(const struct api *api, const char *host)
{
	bool bracketed = *host == '[';
	size_t n = bracketed ? strcspn(++host, "]") : strcspn(host, ":");
	char name[256];

	if (n == 0 || n >= sizeof(name) || !is_port(host + n + (bracketed && host[n] == ']')))
		return false;
	memcpy(name, host, n);
	name[n] = '\0';
	if (bracketed)
		return host[n] == ']' && strchr(name, ':') && is_address(name);
	return is_address(name) || strcasecmp(name, "localhost") == 0 ||
	       (api->host_name && strcasecmp(name, api->host_name) == 0);
}

static bool origin_is_host(const char *origin, const char *host)
{
	if (strncasecmp(origin, "http://", 7) == 0)
		return strcasecmp(origin + 7, host) == 0;
	/* A proxy in front may speak TLS. */
	return strncasecmp(origin, "https://", 8) == 0 && strcasecmp(origin + 8, host) == 0;
}

const char *origin_refusal(const struct api *api, const struct request *r, enum access access)
{
	const char *site = r->fetch_site;

	if (!r->host || r->host_count != 1 || !host_is_ours(api, r->host)) {
		counter_inc(CTR_brimd_api_bad_host);
		return "the Host header must be this host's address, localhost or the "
		       "configured name";
	}
	if (r->origin && !origin_is_host(r->origin, r->host)) {
		counter_inc(CTR_brimd_api_bad_origin);
		return "another web site's requests are not answered";
	}
	/* A link to the page from anywhere is fine: there is nothing in it. */
	if (access != ACCESS_OPEN && site && strcmp(site, "same-origin") != 0 &&
	    strcmp(site, "none") != 0) {
		counter_inc(CTR_brimd_api_bad_origin);
		return "another web site's requests are not answered";
	}
	return NULL;
}

unsigned access_refusal(const struct api *api, const struct request *r, enum access access)
{
	const char *text = bearer(r->authorization);
	bool all = text && token_equals(&api->token, text);
	bool reading = text && token_equals(&api->read_token, text);

	if (access == ACCESS_OPEN && r->is_tcp)
		return 0;
	if (!r->is_tcp && !r->is_trusted) {
		counter_inc(CTR_brimd_api_bad_peer);
		return 403;
	}
	if (!r->is_tcp || all)
		return 0;
	if (reading && access == ACCESS_READ)
		return 0;
	counter_inc(CTR_brimd_api_bad_token);
	return reading ? 403 : 401;
}
