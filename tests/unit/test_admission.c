/*
 * host/admission.c: what is promised to VMs fits in the host, always, and what a swap file is
 * said to take it does take.
 */
#include "tests/unit/diskbox.h"

#include "host/admission.h"

#define VMS 64u

static const struct admission_host server = { .physical_bytes = 128 * GiB, .reserve_bytes = 2 * GiB };

/* Of 24 GiB, all of which could go to its file. */
static struct admission_vm typical(const char *name)
{
	return (struct admission_vm){ .name = name, .memory_bytes = 24 * GiB, .cpus = 4,
				      .reservation_bytes = 15 * GiB, .swap_bytes = 27 * GiB };
}

Test(admission, eight_of_24_on_128_fit_and_the_ninth_is_refused_with_the_arithmetic)
{
	struct admission_vm vms[9];
	struct admission a;
	struct err e = { "" };

	for (unsigned i = 0; i < 9; i++)
		vms[i] = typical(i == 8 ? "web-9" : "web");
	for (unsigned i = 0; i < 8; i++)
		cr_assert_eq(admission_check(&server, vms, i, &vms[i], &a, &e), 0, "%s", e.msg);
	cr_assert_eq(admission_check(&server, vms, 8, &vms[8], &a, &e), -ENOSPC);
	cr_assert_not(a.fits);
	cr_assert_eq(a.usable_bytes, 126 * GiB);
	cr_assert_str_eq(e.msg, "VM web-9: refused: it needs 15.2 GiB (15 GiB of reservation, and 188 MiB of "
			 "overhead), and 4.5 GiB are left: of 128 GiB 2 GiB are the host's own, of the other "
			 "126 GiB 121 GiB are promised to 8 VMs; a smaller reservation would do");
	vms[8].reservation_bytes = 4 * GiB;
	cr_assert_eq(admission_check(&server, vms, 8, &vms[8], &a, &e), 0);
	cr_assert(a.fits);
}

Test(admission, without_swap_all_of_its_memory_is_promised)
{
	struct admission_vm vm = typical("db");
	struct admission a;
	struct err e = { "" };

	vm.swap_bytes = 0;
	vm.memory_bytes = 130 * GiB;
	cr_assert_eq(admission_check(&server, NULL, 0, &vm, &a, &e), -ENOSPC);
	cr_assert_not_null(strstr(e.msg, "130 GiB that no swap file of its own could take"), "%s", e.msg);
	cr_assert_not_null(strstr(e.msg, "a larger swap file would do"), "%s", e.msg);
	vm.memory_bytes = 120 * GiB;
	cr_assert_eq(admission_check(&server, NULL, 0, &vm, &a, &e), 0);
	cr_assert_geq(a.needed_bytes, 120 * GiB);
	vm.swap_bytes = 20 * GiB; /* of the rest only */
	cr_assert_gt(admission_promise(&vm), 100 * GiB);
	cr_assert_lt(admission_promise(&vm), 101 * GiB);
}

Test(admission, measured_overhead_counts_where_it_is_more)
{
	struct admission_vm vm = typical("db");
	uint64_t estimated = admission_promise(&vm);

	vm.overhead_bytes = 4 * MiB;
	cr_assert_eq(admission_promise(&vm), estimated);
	vm.overhead_bytes = 40 * MiB;
	cr_assert_eq(admission_promise(&vm), estimated + 40 * MiB - 28 * MiB);
}

/* Anything at all, absurd numbers more often than not. */
static uint64_t any_bytes(uint64_t *random)
{
	uint64_t v = mix(random);

	return v >> mix(random) % 64;
}

static struct admission_vm any_vm(uint64_t *random)
{
	struct admission_vm vm = { .name = "any", .cpus = (unsigned)(mix(random) % 20) };

	vm.memory_bytes = any_bytes(random);
	vm.reservation_bytes = vm.memory_bytes ? any_bytes(random) % vm.memory_bytes : 0;
	vm.swap_bytes = any_bytes(random);
	vm.overhead_bytes = mix(random) % 2 ? any_bytes(random) : 0;
	return vm;
}

/* Summed in 128 bits, which no absurd number makes less. */
static bool all_fit(const struct admission_host *h, const struct admission_vm *vms, size_t n)
{
	unsigned __int128 sum = (unsigned __int128)h->reserve_bytes + h->own_bytes;

	for (size_t i = 0; i < n; i++) {
		unsigned __int128 covered = admission_swap_covers(vms[i].swap_bytes), held;

		held = vms[i].memory_bytes > covered ? vms[i].memory_bytes - covered : 0;
		if (held < vms[i].reservation_bytes)
			held = vms[i].reservation_bytes;
		sum += held + admission_overhead(&vms[i]);
	}
	return n == 0 || sum <= h->physical_bytes;
}

Test(admission, whatever_is_asked_what_was_admitted_fits)
{
	uint64_t random = seed_of_run();
	unsigned admitted = 0, refused = 0;

	for (unsigned round = 0; round < 2000; round++) {
		struct admission_host h = { any_bytes(&random), any_bytes(&random) >> 20,
					       any_bytes(&random) >> 20 };
		struct admission_vm vms[VMS];
		size_t n = 0;

		for (unsigned i = 0; i < VMS; i++) {
			struct admission a;

			vms[n] = any_vm(&random);
			if (admission_check(&h, vms, n, &vms[n], &a, NULL))
				refused++;
			else
				n++;
			cr_assert(all_fit(&h, vms, n), "round %u", round);
		}
		admitted += (unsigned)n;
	}
	cr_assert(admitted > 1000 && refused > 1000, "%u and %u", admitted, refused);
}

/* Pages of which none packs, until the file takes no more: what is promised was there. */
Test(admission, swap_file_takes_whole_what_it_is_said_to)
{
	static const uint64_t sizes[] = { 6 * MiB, 11 * MiB, 24 * MiB };

	for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
		uint64_t covers = admission_swap_covers(sizes[i]) >> PAGE_SHIFT;
		unsigned n = 0;

		begin_sized(PLAIN, sizes[i]);
		while (n < PAGES && (put(n, 1000 + n, RAW_NOISE) == 0 ||
				     (swap_room(sh->s, 32) > 0 && put(n, 1000 + n, RAW_NOISE) == 0)))
			n++;
		sh->ref[n].v = 0;
		swap_spill(sh->s, UINT64_MAX / 2);
		fprintf(stderr, "%" PRIu64 " MiB: %" PRIu64 " pages on disk, %" PRIu64 " promised\n",
			sizes[i] / MiB, stats().disk_pages, covers);
		cr_assert_geq(stats().disk_pages, covers);
		cr_assert_leq(stats().disk_pages, covers + 3 * 256, "the promise is far too small");
		check_all();
		end();
	}
}
