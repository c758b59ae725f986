# brim: one makefile, no recursion.  `make help` lists what it can do.
#
# Out-of-tree by default: everything goes under build/ (BUILD=...).  Sanitizer
# and fuzz builds use build-asan/, build-tsan/, build-fuzz/ by calling this file
# again with other flags, so they run the same rules and the same tests.

BUILD   ?= build
PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= cc
OPT     ?= -O2
SAN     ?=
V       ?=
Q       := $(if $(V),,@)

VERSION := 0.1.0

WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wpointer-arith -Wcast-qual -Wwrite-strings -Wundef -Wformat=2 -Wvla \
	-Wimplicit-fallthrough -Wno-unused-parameter -Wno-missing-field-initializers
CPPFLAGS_BRIM := -I. -D_GNU_SOURCE -DBRIM_VERSION='"$(VERSION)"' -MMD -MP
CFLAGS_BRIM := -std=gnu17 -g $(OPT) $(WARN) -fno-strict-aliasing -fno-common \
	-fstack-protector-strong -pthread $(SAN)
LDFLAGS_BRIM := -pthread $(SAN)

LIB_SRC  := $(wildcard stats/*.c mm/*.c mm/balloon/*.c mm/swap/*.c mm/ksm/*.c mm/policy/*.c virtio/*.c)
VMM_SRC  := $(wildcard vmm/*.c)
CLI_SRC  := $(wildcard cli/*.c)
HOST_SRC := $(wildcard host/*.c host/config/*.c host/api/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
TLIB_SRC := $(wildcard tests/lib/*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
BENCH_SRC := $(wildcard bench/bench_*.c)
BTOOL_SRC := bench/oracle_main.c
BLIB_SRC := $(filter-out $(BENCH_SRC) $(BTOOL_SRC),$(wildcard bench/*.c))

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

LIB  := $(BUILD)/libbrim.a
# What vmm/ offers to others (everything but its main): tests and cli link it.
VMMLIB := $(BUILD)/libvmm.a
CLILIB := $(BUILD)/libcli.a
HOSTLIB := $(BUILD)/libhost.a
BINS := $(BUILD)/bin/brim $(BUILD)/bin/brim-vmm $(BUILD)/bin/brimd
UNIT := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(UNIT_SRC))
FUZZ := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(FUZZ_SRC))
BENCH := $(patsubst bench/%.c,$(BUILD)/bench/%,$(BENCH_SRC))

# Criterion itself does not start under ThreadSanitizer: tests/lib/tsan stands in.
LIBS_TEST := $(if $(findstring thread,$(SAN)),,-lcriterion)
CPPFLAGS_BRIM := $(if $(findstring thread,$(SAN)),-Itests/lib/tsan) $(CPPFLAGS_BRIM)
LIBS_LIB := -luring -llz4 -lzstd -lxxhash -lcrypto
LIBS_VMM := -ljansson -lyaml -lm
LIBS_CLI := -lncursesw -ltinfo
LIBS_HOST := -lmicrohttpd

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all deps demo test check unit check-cli check-api check-vm check-testhost host-shell asan tsan fuzz fuzz-build bench bench-build layers lint \
	install uninstall help clean tests man docs

all: $(BINS)

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make            build the binaries into build/bin
## make deps       install what building and testing needs (Debian packages)
## make demo       the main job: eight VMs overcommitted on this machine (HOST=2G to scale down)
## make test       install what is missing, then all tests: lint, check, asan, tsan, a short fuzz
## make check      unit tests, then tests with real guests (check-vm)
## make check-api  the HTTP interface with curl, the web page in a browser
## make check-vm   only the tests with real guests
## make host-shell a shell in the emulated host, with brim and guests in it
## make asan tsan  the unit tests under sanitizers
## make fuzz       fuzz every device queue for FUZZ_SECONDS (default 30) each
## make bench      run the benchmarks (BENCH_ARGS=--quick)
## make layers     check that includes only point down
## make lint       shellcheck, layers, formatting traps
## make docs     docs/configuration.md and docs/brim.schema.json, from the key table
## make install    PREFIX=/usr/local DESTDIR=

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC    $<")
	$(Q)$(CC) $(CPPFLAGS_BRIM) $(CPPFLAGS) $(CFLAGS_BRIM) $(CFLAGS) -c -o $@ $<

# Built in by .incbin, which no dependency file knows of.
$(call obj,host/api/assets.c): host/api/page.html docs/openapi.json

$(LIB): $(call obj,$(LIB_SRC))
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(VMMLIB): $(call obj,$(filter-out vmm/main.c,$(VMM_SRC)))
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(CLILIB): $(call obj,$(filter-out cli/main.c,$(CLI_SRC)))
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(HOSTLIB): $(call obj,$(filter-out host/main.c,$(HOST_SRC)))
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/bin/brim-vmm: $(call obj,vmm/main.c) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD    $@")
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_VMM) $(LIBS_LIB)

$(BUILD)/bin/brim: $(call obj,cli/main.c) $(CLILIB) $(HOSTLIB) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD    $@")
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_CLI) $(LIBS_VMM) $(LIBS_LIB)

$(BUILD)/bin/brimd: $(call obj,host/main.c) $(HOSTLIB) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD    $@")
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_HOST) $(LIBS_VMM) $(LIBS_LIB)

$(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(call obj,$(TLIB_SRC)) $(CLILIB) $(HOSTLIB) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD    $@")
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_TEST) $(LIBS_CLI) $(LIBS_HOST) $(LIBS_VMM) $(LIBS_LIB)

$(BUILD)/tests/test_oracle: $(call obj,bench/oracle.c)

$(BUILD)/bench/%: $(BUILD)/obj/bench/%.o $(call obj,$(BLIB_SRC)) $(HOSTLIB) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD    $@")
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_HOST) $(LIBS_VMM) $(LIBS_LIB)

$(BUILD)/bench/bench_api: $(call obj,tests/lib/fakesnap.c)

$(BUILD)/bench/oracle: $(call obj,$(BTOOL_SRC) bench/oracle.c) $(LIB)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD    $@")
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_VMM) $(LIBS_LIB)

$(BUILD)/fuzz/%: $(BUILD)/obj/tests/fuzz/%.o $(call obj,$(TLIB_SRC)) $(HOSTLIB) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS_HOST) $(LIBS_VMM) $(LIBS_LIB)

tests: $(UNIT)
fuzz-build: $(FUZZ)
bench-build: $(BENCH) $(BUILD)/bench/oracle

# ---- testing ---------------------------------------------------------------

SAN_FLAGS_asan := -fsanitize=address,undefined -fno-sanitize-recover=all
SAN_FLAGS_tsan := -fsanitize=thread
FUZZ_SECONDS ?= 30
VM_ARGS ?=

unit: $(BINS) $(UNIT)
	$(Q)tests/unit/run $(BUILD)/tests

check: unit check-cli check-api check-vm

FAKEVMM := $(BUILD)/tests/fakevmm
$(BUILD)/tests/test_keep $(BUILD)/tests/test_steward: | $(FAKEVMM)
$(FAKEVMM): $(call obj,tests/cli/fakevmm.c) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_VMM) $(LIBS_LIB)

# Helpers of tests/vm that run beside a VM.
VMTOOLS := $(patsubst tests/vm/%.c,$(BUILD)/tests/%,$(wildcard tests/vm/*.c))
$(VMTOOLS): $(BUILD)/tests/%: $(BUILD)/obj/tests/vm/%.o
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^

# brimd's HTTP interface over a host that is not there.
FAKEHOST := $(BUILD)/tests/fakehost
$(FAKEHOST): $(call obj,tests/api/fakehost.c $(TLIB_SRC)) $(HOSTLIB) $(VMMLIB) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_BRIM) $(LDFLAGS) -o $@ $^ $(LIBS_HOST) $(LIBS_VMM) $(LIBS_LIB)

check-api: $(FAKEHOST)
	$(Q)tests/api/check-api $(FAKEHOST)

check-cli: $(BINS) $(FAKEVMM)
	$(Q)tests/cli/check-cli $(BUILD)/bin/brim $(FAKEVMM)

# What the README names: everything from a fresh machine on.
test: deps
	$(Q)$(MAKE) --no-print-directory -j2 $(BINS) $(UNIT) bench-build
	$(Q)$(MAKE) --no-print-directory lint check asan
	$(Q)$(MAKE) --no-print-directory tsan
	$(Q)$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=10

check-vm: $(BINS) $(UNIT) $(VMTOOLS) bench-build
	$(Q)tests/vm/check $(VM_ARGS)

# The emulated host's own test: minutes, and only of interest to who changes it.
check-testhost:
	$(Q)tests/testhost/selftest

host-shell: $(BINS)
	$(Q)tests/testhost/run --shell

asan tsan:
	$(Q)$(MAKE) --no-print-directory BUILD=build-$@ OPT=-O1 CPPFLAGS=-DBRIM_DEBUG \
		SAN="$(SAN_FLAGS_$@)" unit

fuzz:
	$(Q)$(MAKE) --no-print-directory BUILD=build-fuzz CC=clang OPT=-O1 CPPFLAGS=-DBRIM_DEBUG \
		SAN="$(SAN_FLAGS_asan) -fsanitize=fuzzer-no-link" fuzz-build
	$(Q)tests/fuzz/run build-fuzz/fuzz $(FUZZ_SECONDS)

bench: $(BINS) bench-build
	$(Q)bench/run $(BENCH_ARGS)

layers:
	$(Q)tests/lib/layers

lint: layers
	$(Q)tests/lib/lint

# ---- the main job ----------------------------------------------------------

HOST ?=
demo: deps
	$(Q)$(MAKE) --no-print-directory $(BINS)
	$(Q)examples/demo/demo $(if $(HOST),--host $(HOST)) $(DEMO_ARGS)

deps:
	$(Q)./deps
	$(Q)tests/api/deps
	$(Q)tests/testhost/deps

# Committed, so that they can be read without building; check-cli says when they are stale.
docs: $(BUILD)/bin/brim
	$(Q)$(BUILD)/bin/brim config keys --markdown >docs/configuration.md
	$(Q)$(BUILD)/bin/brim config keys --schema >docs/brim.schema.json

# ---- installing ------------------------------------------------------------

INSTALL ?= install
man: $(BUILD)/bin/brim
	$(Q)rm -rf $(BUILD)/man && mkdir -p $(BUILD)/man
	$(Q)$(BUILD)/bin/brim help --man-dir $(BUILD)/man

install: all man
	$(INSTALL) -Dm755 $(BUILD)/bin/brim $(DESTDIR)$(PREFIX)/bin/brim
	$(INSTALL) -Dm755 $(BUILD)/bin/brim-vmm $(DESTDIR)$(PREFIX)/libexec/brim/brim-vmm
	$(INSTALL) -Dm755 $(BUILD)/bin/brimd $(DESTDIR)$(PREFIX)/sbin/brimd
	$(INSTALL) -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$(INSTALL) -m644 $(BUILD)/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	$(INSTALL) -m644 $(BUILD)/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	$(BUILD)/bin/brim completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/brim

uninstall: man
	rm -rf $(DESTDIR)$(PREFIX)/bin/brim $(DESTDIR)$(PREFIX)/sbin/brimd $(DESTDIR)$(PREFIX)/libexec/brim \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/brim
	cd $(BUILD)/man && rm -f $(foreach n,1 8,$(addprefix $(DESTDIR)$(PREFIX)/share/man/man$(n)/,$(notdir $(wildcard $(BUILD)/man/*.$(n)))))

clean:
	rm -rf build build-asan build-tsan build-fuzz

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
