/*
 * A tap: the host's end of a guest's network cable.  Start-up, and the offloads
 * when a driver starts; net.c reads and writes the packets.
 *
 * A tap made here is not persistent: it goes away with the VM.  It is set up at
 * once, since nobody else knows of it yet; one that was there before is left as
 * its owner has it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "virtio/devices.h"

#define TAP_DEVICE "/dev/net/tun"

/* ---- the ops on Linux ---------------------------------------------------- */

static int result(int rc)
{
	return rc < 0 ? -errno : rc;
}

static struct ifreq request(const char *name)
{
	struct ifreq ifr = { 0 };

	memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	return ifr;
}

static int linux_open(void)
{
	return result(open(TAP_DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC));
}

static int linux_attach(int fd, const char *name)
{
	struct ifreq ifr = request(name);

	ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	return result(ioctl(fd, TUNSETIFF, &ifr));
}

static int linux_flags(int fd, unsigned *iff_flags)
{
	struct ifreq ifr = { 0 };
	int rc = result(ioctl(fd, TUNGETIFF, &ifr));

	if (rc == 0)
		*iff_flags = (unsigned short)ifr.ifr_flags;
	return rc;
}

static int linux_set_header_bytes(int fd, int bytes)
{
	return result(ioctl(fd, TUNSETVNETHDRSZ, &bytes));
}

static int linux_set_offload(int fd, unsigned tun_f_flags)
{
	return result(ioctl(fd, TUNSETOFFLOAD, (unsigned long)tun_f_flags));
}

static int linux_set_up(const char *name)
{
	struct ifreq ifr = request(name);
	int fd, rc;

	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	rc = result(ioctl(fd, SIOCGIFFLAGS, &ifr));
	if (rc == 0) {
		ifr.ifr_flags |= IFF_UP;
		rc = result(ioctl(fd, SIOCSIFFLAGS, &ifr));
	}
	close(fd);
	return rc;
}

const struct tap_ops tap_linux = {
	.open = linux_open,
	.attach = linux_attach,
	.flags = linux_flags,
	.set_header_bytes = linux_set_header_bytes,
	.set_offload = linux_set_offload,
	.set_up = linux_set_up,
};

/* ---- opening ------------------------------------------------------------- */

/* '%' would make the kernel choose a number. */
static bool name_ok(const char *name)
{
	size_t len = strlen(name);

	return len > 0 && len < IFNAMSIZ && strpbrk(name, "/%: \t\n") == NULL;
}

static int attach_error(const char *label, const char *name, bool existed, int rc, struct err *e)
{
	if (rc == -EPERM && !existed)
		return err_set(e, rc,
			       "%s %s: no such interface and creating one needs CAP_NET_ADMIN; "
			       "create it with: ip tuntap add dev %s mode tap user %u",
			       label, name, name, (unsigned)geteuid());
	if (rc == -EPERM)
		return err_set(e, rc, "%s %s: belongs to another user; recreate it with: "
			       "ip tuntap add dev %s mode tap user %u",
			       label, name, name, (unsigned)geteuid());
	if (rc == -EBUSY)
		return err_set(e, rc, "%s %s: in use by another VM", label, name);
	if (rc == -EINVAL && existed)
		return err_set(e, rc, "%s %s: not a tap, or one with several queues", label, name);
	return err_sys(e, rc, "%s %s", label, name);
}

static int open_by_name(const struct tap_ops *ops, const char *label, const char *name,
			struct err *e)
{
	bool existed;
	int fd, rc;

	if (!name_ok(name))
		return err_set(e, -EINVAL, "%s: '%s' is not an interface name", label, name);
	fd = ops->open();
	if (fd < 0)
		return err_sys(e, fd, "%s: opening " TAP_DEVICE " (is the tun module loaded?)",
			       label);
	existed = if_nametoindex(name) != 0;
	rc = ops->attach(fd, name);
	if (rc < 0) {
		close(fd);
		return attach_error(label, name, existed, rc, e);
	}
	if (!existed) {
		rc = ops->set_up(name);
		log_info("%s %s: created for this VM%s%s", label, name,
			 rc < 0 ? ", but not set up: " : "", rc < 0 ? strerror(-rc) : "");
	}
	return fd;
}

static int open_by_fd(const struct tap_ops *ops, const char *label, int given, struct err *e)
{
	unsigned flags;
	int fd, rc;

	rc = ops->flags(given, &flags);
	if (rc < 0)
		return err_sys(e, rc, "%s: file descriptor %d is not a tap", label, given);
	if ((flags & IFF_TAP) == 0 || (flags & IFF_VNET_HDR) == 0 || (flags & IFF_NO_PI) == 0)
		return err_set(e, -EINVAL, "%s: file descriptor %d is a tun device without IFF_TAP, "
			       "IFF_NO_PI or IFF_VNET_HDR", label, given);
	fd = fcntl(given, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return err_sys(e, -errno, "%s: duplicating file descriptor %d", label, given);
	rc = fcntl(fd, F_GETFL);
	if (rc < 0 || fcntl(fd, F_SETFL, rc | O_NONBLOCK) < 0) {
		rc = err_sys(e, -errno, "%s: file descriptor %d", label, given);
		close(fd);
		return rc;
	}
	return fd;
}

int tap_open(const struct tap_ops *ops, const char *label,
	     const struct virtio_net_config *cfg, struct err *e)
{
	int fd, rc;

	if (cfg->fd >= 0)
		fd = open_by_fd(ops, label, cfg->fd, e);
	else
		fd = open_by_name(ops, label, cfg->tap, e);
	if (fd < 0)
		return fd;
	rc = ops->set_header_bytes(fd, (int)sizeof(struct net_header_le));
	if (rc < 0) {
		close(fd);
		return err_sys(e, rc, "%s: headers of %zu bytes", label,
			       sizeof(struct net_header_le));
	}
	return fd;
}

int virtio_net_open_tap(const char *label, const char *name, struct err *e)
{
	return open_by_name(&tap_linux, label, name, e);
}
