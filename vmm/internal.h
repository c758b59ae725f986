/*
 * What the files of vmm/ know of one another.  See vmm.h for the map.
 */
#ifndef BRIM_VMM_INTERNAL_H
#define BRIM_VMM_INTERNAL_H

#include <jansson.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/types.h>

#include "mm/ksm/ksm.h"
#include "vmm/client.h"
#include "vmm/hostcheck.h"
#include "vmm/vmm.h"

/* ---- guest physical layout below 4 GiB ---------------------------------- */

#define LAYOUT_GDT 0x500u
#define LAYOUT_PVH_INFO 0x6000u
#define LAYOUT_ZERO_PAGE 0x7000u
#define LAYOUT_PML4 0x9000u
#define LAYOUT_PDPT 0xA000u
#define LAYOUT_PD 0xB000u /* four pages: 4 GiB in 2 MiB entries */
#define LAYOUT_CMDLINE 0x20000u
#define LAYOUT_EBDA 0x9FC00u
#define LAYOUT_ACPI 0xE0000u
#define LAYOUT_ACPI_BYTES 0x20000u
#define LAYOUT_HIGH_RAM 0x100000u

#define LAYOUT_BARS 0xC0000000u
#define LAYOUT_BARS_END 0xE0000000u
#define LAYOUT_ECAM 0xE0000000u
#define LAYOUT_ECAM_BYTES 0x100000u /* bus 0 */
#define LAYOUT_IDENTITY 0xFEFFC000u
#define LAYOUT_TSS 0xFEFFD000u

#define PORT_COM1 0x3f8u
#define PORT_PM1_EVT 0x600u
#define PORT_PM1_CNT 0x604u
#define PORT_PM_TMR 0x608u
#define PORT_RESET 0xcf9u
#define IRQ_COM1 4u
#define IRQ_SCI 9u

/* ---- loop.c -------------------------------------------------------------- */

struct loop;

int loop_create(struct loop **out, struct err *e);
void loop_destroy(struct loop **l);
/* As virtio_env_ops: level triggered, fn on the loop thread. */
int loop_watch(struct loop *l, int fd, unsigned events,
	       void (*fn)(void *arg, unsigned events), void *arg);
void loop_unwatch(struct loop *l, int fd);
/* One turn: waits for events (timeout_ms, -1: for ever) and calls what is ready. */
void loop_turn(struct loop *l, int timeout_ms);
extern const struct virtio_env_ops loop_env_ops; /* opaque is a struct loop */

/* ---- sock.c --------------------------------------------------------------- */

/* A listening Unix stream socket at `path`, mode 0600, non-blocking; an old one
 * is replaced. The descriptor, or -errno with a sentence. */
int socket_listen(const char *path, struct err *e);

/* ---- kvm.c --------------------------------------------------------------- */

#define GSI_MSI_BASE 24u
#define GSI_MAX 192u

struct kvm {
	int dev_fd, vm_fd;
	size_t run_bytes; /* size of a vCPU's shared page */
	bool irqfd_resample;
	pthread_mutex_t lock;
	/* under lock */
	struct kvm_irq_routing_entry msi[GSI_MAX];
	bool msi_used[GSI_MAX];
	unsigned next_gsi;
};

int kvm_init(struct kvm *k, const struct ram *ram, struct err *e);
void kvm_fini(struct kvm *k);
/* A fresh GSI for an MSI vector, or -ENOSPC. */
int kvm_gsi_alloc(struct kvm *k);
/* Routes gsi to the MSI message (or to nothing, `on` false) if that changes it. */
int kvm_gsi_route_msi(struct kvm *k, unsigned gsi, bool on, uint64_t addr, uint32_t data);
int kvm_irqfd(struct kvm *k, int fd, unsigned gsi, bool on);
int kvm_irq_line(struct kvm *k, unsigned gsi, bool level);
/* A write of any size at gpa signals fd. */
int kvm_ioeventfd(struct kvm *k, int fd, uint64_t gpa, bool on);

/* ---- vcpu.c -------------------------------------------------------------- */

struct machine;

struct vcpu {
	struct machine *m;
	unsigned index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started;
	_Atomic pid_t tid;
	const uint32_t *_Atomic cpu_word; /* where its thread runs; NULL: not known */
	/* under place_lock: a thread that has ended is not to be moved, as another may have its
	 * number by then */
	pthread_mutex_t place_lock;
	struct thread_hold hold;
	bool is_live;
	_Atomic bool parked;
};

int vcpu_init(struct vcpu *v, struct machine *m, unsigned index, struct err *e);
int vcpu_start(struct vcpu *v, struct err *e);
void vcpu_fini(struct vcpu *v); /* the thread has been told to end */
int vcpu_set_boot_state(struct vcpu *v, uint64_t rip, uint64_t rsi, bool pvh, struct err *e);
void vcpu_kick(struct vcpu *v);
/* Has its thread run on that CPU only; -1: where it might before.  As thread_hold(), and
 * -ESRCH: it has none, or none any more.  Any thread. */
int vcpu_hold(struct vcpu *v, int cpu);
/* Once in a process, before any vCPU starts. */
void vcpu_signals_init(void);

int cpuid_set(const struct kvm *k, int vcpu_fd, unsigned index, unsigned cpus, struct err *e);

/* ---- boot.c, bzimage.c, elf.c -------------------------------------------- */

/* A kernel file: read piece by piece straight to where it belongs, since loading
 * is most of what brim itself does until the guest runs. */
struct boot_image {
	const uint8_t *data; /* the whole file in memory (tests), or NULL: read fd */
	uint64_t size_bytes; /* at least 4096 */
	const char *path;
	int fd;
};

/* Copies [off, off + len) to dst. -ENODATA beyond the end, -errno; no sentence. */
int image_read(const struct boot_image *img, uint64_t off, void *dst, uint64_t len);

/* Where bytes of the kernel's or the initrd's file are: any VM of the same files has the
 * same.  Of more ranges than that, the first. */
#define BOOT_LOADED_MAX KSM_LOADED_MAX
struct boot_loaded {
	unsigned count;
	struct ram_range at[BOOT_LOADED_MAX];
};

struct boot_entry {
	uint64_t rip;
	uint64_t rsi;          /* zero page, or PVH start info (in rbx) */
	bool pvh;
	uint64_t kernel_end;   /* first byte the kernel does not need for itself */
	uint64_t initrd_max;   /* highest address an initrd's last byte may have */
	struct boot_loaded loaded;
};

void boot_note_loaded(struct boot_entry *entry, uint64_t at, uint64_t bytes);
/* Loads kernel, initrd and command line, and builds zero page or start info. */
int boot_load(const struct ram *ram, const struct vm_config *cfg,
	      uint64_t rsdp_gpa, struct boot_entry *entry, struct err *e);
int bzimage_load(const struct ram *ram, const struct boot_image *img,
		 struct boot_entry *entry, struct err *e);
int elf_load(const struct ram *ram, const struct boot_image *img,
	     struct boot_entry *entry, struct err *e);
bool bzimage_detect(const struct boot_image *img);
bool elf_detect(const struct boot_image *img);

/* The memory map both boot protocols report. Returns the number of entries. */
struct boot_range { uint64_t base, size_bytes; bool ram; };
#define BOOT_RANGES_MAX 8u
unsigned boot_memory_map(const struct ram *ram, struct boot_range map[BOOT_RANGES_MAX]);

/* ---- acpi.c -------------------------------------------------------------- */

/* Writes all tables at LAYOUT_ACPI and returns the RSDP's address in *rsdp. */
int acpi_write(const struct ram *ram, unsigned cpus, uint64_t *rsdp, struct err *e);

/* ---- pci.c --------------------------------------------------------------- */

struct pci_bus;

int pci_create(struct pci_bus **out, struct kvm *kvm, struct err *e);
void pci_destroy(struct pci_bus **bus);
/* Puts a virtio device in the next slot. The bus does not own dev. */
int pci_add_virtio(struct pci_bus *bus, struct virtio_dev *dev, struct err *e);
/* vCPU threads. False: nothing there. */
bool pci_port(struct pci_bus *bus, uint16_t port, bool write, void *data, unsigned len);
bool pci_mmio(struct pci_bus *bus, uint64_t addr, bool write, void *data, unsigned len);

/* ---- serial.c and console.c ---------------------------------------------- */

struct serial;
struct console;

int serial_create(struct serial **out, struct console *con, struct kvm *kvm, struct err *e);
void serial_destroy(struct serial **s);
void serial_io(struct serial *s, unsigned reg, bool write, uint8_t *data);
/* Loop thread: bytes for the guest; returns how many fitted its FIFO. */
size_t serial_input(struct serial *s, const void *buf, size_t len);

/* The console of the VM, whatever machine runs behind it: history and clients.
 * Survives reboots.  Listens on `path`. */
struct console_sink {
	size_t (*input)(void *opaque, const void *buf, size_t len);
	void *opaque;
};
int console_create(struct console **out, struct loop *l, const char *path, struct err *e);
void console_destroy(struct console **c);
/* Any thread: output of the guest. Never blocks. */
void console_output(struct console *c, const void *buf, size_t len);
/* Loop thread: where clients' bytes go; opaque NULL: nowhere. */
void console_attach(struct console *c, const struct console_sink *sink);
/* Any thread: the guest has room for input again. */
void console_input_ready(struct console *c);
/* Writes what is pending to clients, for at most timeout_ms: at the end. */
void console_drain(struct console *c, int timeout_ms);

/* ---- platform.c ---------------------------------------------------------- */

struct platform {
	struct kvm *kvm;
	pthread_mutex_t lock;
	/* under lock */
	uint16_t pm1_sts, pm1_en, pm1_cnt;
	bool sci;
};

void platform_init(struct platform *p, struct kvm *kvm);
void platform_fini(struct platform *p);
void platform_power_button(struct platform *p);
enum platform_act { PLATFORM_NONE, PLATFORM_POWEROFF, PLATFORM_RESET };
/* vCPU threads. False: nothing at this port. *act: what the guest asked for. */
bool platform_port(struct platform *p, uint16_t port, bool write, void *data,
		   unsigned len, enum platform_act *act);

/* ---- machine.c ------------------------------------------------------------ */

enum vm_end {
	VM_END_NONE,
	VM_END_POWEROFF, /* the guest powered itself off */
	VM_END_RESET,    /* the guest asked for a reset, or triple-faulted */
	VM_END_KILLED,   /* the operator did */
	VM_END_ERROR,    /* brim or KVM could not go on: the detail says why */
};
const char *vm_end_name(enum vm_end end);

struct machine {
	/* fixed at create */
	const struct vm_config *cfg;
	struct loop *loop;
	struct console *console;  /* the serial port's far side */
	struct console *hvc;      /* the virtio console's */
	struct ram *ram;
	struct engine *engine; /* loop thread: NULL until it is needed; see memory.c */
	struct swap *swap;
	struct ksm *ksm;       /* the same; see sharing.c */
	struct boot_loaded loaded;
	bool share_looks;      /* for a brimd, by: */
	int share_timer_fd;
	char share_error[512]; /* "", or why it cannot share */
	struct kvm kvm;
	struct pci_bus *pci;
	struct platform platform;
	struct serial *serial;
	unsigned dev_count;
	struct virtio_dev *devs[VM_MAX_DISKS + VM_MAX_NETS + 4];
	struct virtio_dev *balloon, *vcon; /* among devs, or NULL */
	struct vcpu vcpus[VM_MAX_CPUS];
	int end_fd; /* eventfd: the machine ended */

	pthread_mutex_t lock;
	pthread_cond_t cond;
	/* under lock */
	enum vm_end end;
	char end_detail[512];
	bool paused, quit;
	unsigned parked;
};

/* The consoles stay the caller's; `hvc` may be NULL when cfg->console is false. */
int machine_create(struct machine **out, const struct vm_config *cfg, struct loop *l,
		   struct console *con, struct console *hvc, struct err *e);
/* Stops the vCPUs first. */
void machine_destroy(struct machine **m);
int machine_run(struct machine *m, struct err *e);
int machine_pause(struct machine *m);
void machine_resume(struct machine *m);
/* Any thread. The first call counts, but a kill overrides a reset. */
void machine_end(struct machine *m, enum vm_end end, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
enum vm_end machine_ended(struct machine *m, char *detail, size_t len);

/* ---- memory.c -------------------------------------------------------------- */

/* Loop thread.  The engine is made when the first of these needs it; memory_init(): where
 * the VM's description asks for it. */
int memory_init(struct machine *m, struct err *e);
int memory_limit(struct machine *m, uint64_t bytes, struct err *e);
int memory_reclaim(struct machine *m, uint64_t bytes, struct err *e);
/* The engine, where there is none yet. */
int memory_make(struct machine *m, struct err *e);
/* No vCPU runs any more: who waits for a page that is lost gets an error (engine_give_up), and
 * the process is ended if that is its own loop. */
void memory_give_up(struct machine *m);
void memory_fini(struct machine *m); /* nobody touches guest RAM any more */
json_t *memory_json(const struct machine *m); /* JSON null without an engine */
/* Host memory that guest pages cost outside guest RAM: staged, and the pool. */
uint64_t memory_away_bytes(const struct machine *m);

/* ---- sharing.c -------------------------------------------------------------- */

/* What memory_make() needs before there is an engine; m->ksm stays NULL for a VM that does
 * not share. */
int sharing_create(struct machine *m, struct err *e);
/* Begins to share, or to look for a brimd. */
int sharing_init(struct machine *m, struct err *e);
void sharing_stop(struct machine *m);
json_t *sharing_json(const struct machine *m); /* JSON null for a VM that does not share */

/* ---- publish.c -------------------------------------------------------------- */

struct vmm;
struct publish;

/* The file is at `path` from then on; before the machine is built, and destroyed after no
 * thread counts any more.  -errno. */
int publish_create(struct publish **out, struct vmm *vmm, const char *path, struct err *e);
void publish_destroy(struct publish **p);
/* Writes all gauges as of now.  NULL: nothing is published. */
void publish_now(struct publish *p);

/* What of the process's anonymous memory is guest RAM; for tests. */
struct resident_guess {
	uint64_t rest_bytes; /* neither guest RAM nor away */
	uint64_t anon_bytes, passes; /* as seen last */
};
struct resident_seen {
	uint64_t anon_bytes, away_bytes;
	uint64_t present_bytes, passes; /* the engine's, at its last pass */
};
uint64_t resident_guess(struct resident_guess *g, const struct resident_seen *s);

/* Where guest memory is (design: the books must balance). */
struct books {
	uint64_t memory_bytes, resident_bytes, staged_bytes, filled_bytes, packed_bytes,
		stored_bytes, mapped_bytes, disk_bytes, ballooned_bytes;
	uint64_t untouched_bytes, gap_bytes; /* by books_close() */
};
void books_of_engine(struct books *b, const struct engine_stats *s);
void books_close(struct books *b);

/* ---- control.c ------------------------------------------------------------ */

/* The process's view of its VM, shared by main.c and control.c. Loop thread. */
struct vmm {
	struct vm_config cfg;
	struct loop *loop;
	struct console *console, *hvc;
	struct machine *machine;
	struct control *control;
	struct publish *publish;
	int signal_fd;
	uint64_t start_ns;
	uint64_t stop_deadline_ns; /* 0: no stop under way */
	unsigned reboots;
	bool stopping;
};

int control_create(struct control **out, struct vmm *vmm, const char *path, struct err *e);
/* Answers those who wait for the end, then closes. */
void control_destroy(struct control **c, const char *reason, const char *detail);

void vmm_stop(struct vmm *vmm); /* power button, and remember that we did */

/* ---- hostcheck.c, hostkvm.c ------------------------------------------------ */

void host_found(struct host_finding *f, enum host_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void host_advise(struct host_finding *f, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* A file of the host, below `root`; NULL where it cannot be read. */
FILE *host_open_text(const char *root, const char *path);

void host_check_kvm(const char *root, struct host_finding *f);
void host_check_kvm_real(const char *root, struct host_finding *f);
void host_check_kvm_features(const char *root, struct host_finding *f);

#endif
