#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: guest.sh [-a ARCH] [-t SECONDS] SUITE JOB [ARGUMENT...]
#
# Boots a guest on the kernel of a Debian suite, by QEMU and without KVM, runs JOB
# in it as root, shows its output and ends with its status (124: out of time, 125:
# the guest did not run it).
#
# Where JOB is a directory, the guest is the whole suite with systemd, and runs
# JOB/run.sh after multi-user.target. A status of 194 means: boot me again; BOOT
# counts the boots. Where JOB is a static program, such as `CGO_ENABLED=0 go test
# -c` makes, the guest is a kernel and this program (init/ has what it finds).
#
# The job is in /bed, read-only. The guest has no network but what the job makes,
# and what it writes ends with it.
. "$(dirname "$0")/lib.sh"
arch=$(this_arch)
seconds=600
while getopts a:t: option; do
	case $option in
	a) arch=$OPTARG ;;
	t) seconds=$OPTARG ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || usage
suite=$1
job=$2
shift 2
[ -x "$job/run.sh" ] || [ -f "$job" ] || fail "$job is neither a program nor a directory with a run.sh"
alone

# lay_out JOB ARGUMENT... fills the directory that becomes the job's disc.
lay_out() {
	mkdir "$work/bed"
	if [ -d "$1" ]; then
		cp -rL "$1/." "$work/bed/"
		install "$here/job.sh" "$work/bed/"
	else
		install "$1" "$work/bed/job"
		printf '%s\n' "${@:2}" >"$work/bed/arguments"
	fi
}

# disc DIR FILE makes a disc of a directory.
disc() {
	mkfs.ext4 -qq -F -O ^has_journal -m 0 -d "$1" "$2" $(($(du -sk "$1" | cut -f1) * 11 / 10 + 8192))k >/dev/null
}

# initrd DIR FILE makes one of init/ and what the kernel needs to find its discs.
initrd() {
	mkdir -p "$1/sbin"
	cp "$kernel/early/"* "$1/"
	(cd "$here/init" && CGO_ENABLED=0 GOARCH=$arch go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$1/init" .)
	ln -s /init "$1/sbin/modprobe"
	(cd "$1" && find . | cpio -o -H newc --quiet) >"$2"
}

# machine prints the QEMU for arch, and sets console. cx16 off: with it QEMU 7.2
# crashes Linux 6.12. la57 off: saves time.
machine() {
	case $arch in
	amd64) echo qemu-system-x86_64 -M q35 -cpu max,la57=off,cx16=off ;;
	arm64) echo qemu-system-aarch64 -M virt -cpu cortex-a72 ;;
	s390x) echo qemu-system-s390x -M s390-ccw-virtio -cpu max ;;
	*) fail "no machine for $arch" ;;
	esac
}

console() {
	case $arch in
	arm64) echo ttyAMA0 ;;
	s390x) echo ttysclp0 ;;
	*) echo ttyS0 ;;
	esac
}

# drive NAME FILE OPTIONS and port NAME add a device that init/ finds by its name.
drive() {
	qemu+=(-drive "if=none,id=$1,file=$2,format=raw,$3" -device "virtio-blk,drive=$1,serial=$1")
	devices+=${devices:+,}$1
}

port() {
	: >"$work/$1"
	qemu+=(-chardev "file,id=$1,path=$work/$1,append=on" -device "virtserialport,chardev=$1,name=$1")
	devices+=${devices:+,}$1
}

# shellcheck disable=SC2317 # the trap calls it
# strike ends the guest and removes what it had.
strike() {
	[ -z "$guest" ] || kill "$guest" 2>/dev/null || true
	rm -rf "$work"
}

guest=
work=$(mktemp -d "${TMPDIR:-/tmp}/flatd-guest.XXXXXX")
trap strike EXIT
trap 'exit 143' TERM INT HUP

kernel=$("$here/kernel.sh" "$suite" "$arch")
lay_out "$job" "$@"
disc "$work/bed" "$work/bed.img"
initrd "$work/initrd" "$work/initrd.img"

devices=
read -ra qemu < <(machine)
qemu+=(-accel "tcg,thread=multi,tb-size=512" -smp 2 -m 1024 -nodefaults -display none -nic none
	-kernel "$kernel/vmlinuz" -initrd "$work/initrd.img" -serial "file:$work/console" -device virtio-serial)
port log
port status
drive job "$work/bed.img" read-only=on
drive modules "$kernel/modules.img" read-only=on
if [ -d "$job" ]; then
	drive root "$("$here/image.sh" "$suite")" snapshot=on,cache=unsafe
	on_panic=panic=0 # so that only the job makes it boot again
else
	qemu+=(-no-reboot)
	on_panic=panic=-1
fi
qemu+=(-append "console=$(console) quiet $on_panic net.ifnames=0 systemd.show_status=0 guest.devices=$devices")

# boot runs the guest and sets status, empty if the job left none, and ended.
boot() {
	ended=0
	TMPDIR=$work timeout --kill-after=5 "$seconds" "${qemu[@]}" </dev/null >&2 &
	guest=$!
	tail -n +1 -s 0.1 -f --pid="$guest" "$work/log" &
	log=$!
	# Ends with the first line, or with the guest.
	read -r status < <(tail -n +1 -s 0.1 -f --pid="$guest" "$work/status") || status=
	# Not every kernel finds the switch each time.
	[ -z "$status" ] || timeout 10 tail -f --pid="$guest" /dev/null || kill "$guest"
	wait "$guest" || ended=$?
	guest=
	wait "$log" || true
}

boot
# A kernel that patches its code while it boots dies of the emulation now and then.
if [ -z "$status" ] && [ "$ended" != 124 ] && [ ! -s "$work/log" ]; then
	say "$suite: the guest died before the job began; once more"
	boot
fi
if [ -z "$status" ]; then
	status=125
	[ "$ended" != 124 ] || status=124
fi
if [ "$status" -ge 124 ]; then
	say "$suite: the guest $([ "$status" != 124 ] && echo "failed" || echo "had $seconds s and did not end"); the last it said:"
	tail -n 40 "$work/console" >&2
fi
exit "$status"
