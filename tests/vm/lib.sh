# shellcheck shell=bash
# lib.sh: what the tests with real guests share.  Sourced by each t_*.
#
# Waiting is always for something seen (a line of a console, a number of a status),
# with a deadline, never for a time alone.  Deadlines are written as for a quiet machine;
# one that is busy with other things gets PATIENCE times as long.
set -euo pipefail

PATIENCE=${VM_PATIENCE:-4}

say() { printf '%s\n' "$*"; }
fail() { printf 'fail: %s\n' "$*"; exit 1; }
skip() { printf '%s\n' "$*"; exit 77; }

b64() { printf %s "$1" | base64 -w0; }

# vm_start NAME KERNEL [brim run options...]: detached, its console in NAME.out.
# KERNEL is 6.12/vmlinux, 6.1/vmlinuz, ...; the tiny initrd of that version goes with it.
vm_start() {
	local name=$1 kernel=$2
	shift 2
	brim run --detach --name "$name" --kernel "$BRIM_KERNELS/$kernel" \
		--initrd "$BRIM_IMAGES/tiny-${kernel%%/*}.cpio" "$@" || fail "brim run $name"
	: >"$name.out"
	socat -u "UNIX-CONNECT:$BRIM_RUN_DIR/$name/console.sock" "OPEN:$name.out,append" &
}

# wait_line FILE REGEX SECONDS
wait_line() {
	local end=$((SECONDS + $3 * PATIENCE))
	until grep -aqE "$2" "$1" 2>/dev/null; do
		[ $SECONDS -lt $end ] || fail "no '$2' in $1 within $(($3 * PATIENCE)) s"
		sleep 0.1
	done
}

# wait_until SECONDS COMMAND...
wait_until() {
	local limit=$(($1 * PATIENCE))
	local end=$((SECONDS + limit))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || fail "not within $limit s: $*"
		sleep 0.2
	done
}

vm_gone() { [ ! -e "$BRIM_RUN_DIR/$1" ]; }
# status_of NAME JQ-EXPRESSION
status_of() { brim status "$1" --json | jq -r "$2"; }
counter_of() { brim stats "$1" --json | jq -r ".counters.$2"; }
mib() { echo $(($1 / 1048576)); }

# vm_end NAME SECONDS: waits for the guest to power itself off.
vm_end() { wait_until "$2" vm_gone "$1"; }

# overwrite_pool PID RAM_MIB: every byte of the first 16 MiB of a VM's pool, headers and all.
# It is the mapping that is a few segments of 1 MiB larger than RAM.
overwrite_pool() {
	local range perms inode from to pool='' ram=$(($2 << 20))
	while read -r range perms _ _ inode _; do
		from=$((0x${range%-*})) to=$((0x${range#*-}))
		[ "$perms $inode" = "rw-p 0" ] || continue
		[ $((to - from)) -le $ram ] || [ $((to - from)) -gt $((ram + (10 << 20))) ] || pool=$from
	done <"/proc/$1/maps"
	[ -n "$pool" ] || fail "no pool: $(cat "/proc/$1/maps")"
	dd if=/dev/urandom of="/proc/$1/mem" bs=4096 seek=$((pool / 4096)) count=4096 conv=notrunc status=none
}
