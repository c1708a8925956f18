#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: bed.sh DIR COMMAND [ARGUMENT...]
#
# Boots a real systemd, with its journald, in namespaces of its own on the
# running kernel, and stands as long as COMMAND runs in it. Takes about a
# second, needs root and systemd's package, and does not need systemd to be
# what booted the machine. For a look around: bed.sh /tmp bash
#
# /usr, /etc and dpkg's database are this machine's under an overlay, so whatever
# is installed in the bed stays there. Network, cgroups, bpffs, /run, /tmp and the
# rest of /var are its own.
# DIR appears in it as /bed. DIR/init.pid holds the number of the bed's PID 1
# while it stands, for `nsenter --all --target`.
set -euo pipefail

# Units that want hardware, a login or the network of a whole machine.
masked="apt-daily-upgrade.timer apt-daily.timer console-getty.service
	cron.service dev-hugepages.mount dev-mqueue.mount dpkg-db-backup.timer
	e2scrub_all.timer fstrim.timer getty.target logrotate.timer
	proc-sys-fs-binfmt_misc.automount ssh.service sys-fs-fuse-connections.mount
	sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
	systemd-binfmt.service systemd-firstboot.service
	systemd-hwdb-update.service systemd-logind.service
	systemd-modules-load.service systemd-networkd.service
	systemd-random-seed.service systemd-remount-fs.service
	systemd-resolved.service systemd-sysctl.service
	systemd-timesyncd.service systemd-udev-trigger.service
	systemd-udevd.service systemd-update-utmp.service"

# overlay NAME: puts a writable layer over this machine's /NAME.
overlay() {
	mkdir -p "layers/$1/upper" "layers/$1/work" "$1"
	mount -t overlay -o "lowerdir=/$1,upperdir=layers/$1/upper,workdir=layers/$1/work" overlay "$1"
}

# lay_out builds the bed's file system in the current directory.
lay_out() {
	local node name

	mkdir layers
	mount -t tmpfs tmpfs layers
	overlay usr
	overlay etc
	for name in bin sbin lib lib32 lib64; do
		[ ! -e "usr/$name" ] || ln -s "usr/$name" "$name"
	done
	mkdir -p bed dev mnt proc root run sys tmp var
	mount --bind "$1" bed
	mount -t proc proc proc
	mount -t sysfs sysfs sys
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	mount -t bpf -o mode=1700 bpf sys/fs/bpf
	mount -t tmpfs -o mode=755 tmpfs dev
	mount -t tmpfs -o mode=755 tmpfs run
	mount -t tmpfs -o mode=1777 tmpfs tmp
	mount -t tmpfs -o mode=755 tmpfs var
	mkdir -p var/log/journal var/lib var/cache
	[ ! -d /var/lib/dpkg ] || overlay var/lib/dpkg
	for node in full null random tty urandom zero; do
		touch "dev/$node"
		mount --bind "/dev/$node" "dev/$node"
	done
	mkdir dev/pts dev/shm
	mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
	ln -s pts/ptmx dev/ptmx
}

# settle gives the bed an identity and just the units it needs.
settle() {
	local unit

	echo d41d8cd98f00b204e9800998ecf8427e >etc/machine-id
	echo bed >etc/hostname
	: >etc/fstab
	rm -f usr/sbin/policy-rc.d # keeps packages from touching services, in containers
	rm -rf etc/systemd/system etc/systemd/system.control etc/systemd/system-generators
	mkdir -p etc/systemd/system etc/systemd/system-generators
	for unit in $masked; do
		ln -s /dev/null "etc/systemd/system/$unit"
	done
	for unit in usr/lib/systemd/system-generators/*; do
		ln -s /dev/null "etc/systemd/system-generators/${unit##*/}"
	done
	cat >etc/systemd/system/bed.target <<-EOF
		[Unit]
		Requires=basic.target
		Wants=dbus.socket multi-user.target systemd-journald.service
		After=basic.target
		AllowIsolate=yes
	EOF
	ln -s bed.target etc/systemd/system/default.target
}

# init runs as PID 1 of the bed and becomes its systemd.
init() {
	mount -t tmpfs -o mode=755 tmpfs "$1/root"
	cd "$1/root"
	lay_out "$2"
	settle
	mkdir old
	pivot_root . old
	umount -l old
	rmdir old
	# What systemd does itself on a machine; it mounts a unit's credentials in
	# another namespace, from where they have to get here.
	mount --make-rshared /
	exec env -i container=bed PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		/lib/systemd/systemd --system --log-target=journal
}

# inside COMMAND...: runs it in the bed.
inside() {
	# shellcheck disable=SC2016 # "$@" is for the shell in the bed
	nsenter --all --target "$pid" env -i HOME=/root LC_ALL=C.UTF-8 \
		PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" \
		sh -c 'cd /bed && exec "$@"' sh "$@"
}

# fail says why, and shows what the bed's PID 1 said.
fail() {
	echo "bed.sh: $*" >&2
	cat "$work/console" >&2
	exit 125
}

# within SECONDS COMMAND...: repeats it until it succeeds.
within() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.05
	done
}

find_init() { pid=$(pgrep -P "$unshare" -x systemd); }

booted() {
	kill -0 "$unshare" 2>/dev/null || return 0
	state=$(inside systemctl is-system-running 2>&1)
	case $state in
	running | degraded) ;;
	*) return 1 ;;
	esac
}

# strike takes the bed down: with its PID 1 go all of its processes.
strike() {
	if [ -n "$unshare" ]; then
		kill -9 "$unshare" 2>/dev/null || true
		wait "$unshare" 2>/dev/null || true
	fi
	rm -f "$dir/init.pid"
	if [ -d "$cgroup" ]; then
		within 5 empty_cgroup || echo "bed.sh: $cgroup stays behind" >&2
	fi
	umount "$work/cgroups" || true
	rm -rf "$work"
}

empty_cgroup() {
	find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
	[ ! -d "$cgroup" ]
}

if [ "${1:-}" = --init ]; then
	init "$2" "$3"
fi
if [ $# -lt 2 ] || [ ! -d "$1" ]; then
	sed -n '4,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
fi

dir=$(cd "$1" && pwd)
shift
unshare=
pid=
cgroup=
state=
work=$(mktemp -d "${TMPDIR:-/tmp}/flatd-bed.XXXXXX")
mkdir "$work/root" "$work/cgroups"
trap strike EXIT
trap 'exit 143' TERM INT HUP

# A mount of our own, as the machine's may be read-only, or a mix with version 1.
mount -t cgroup2 cgroup2 "$work/cgroups"
cgroup=$work/cgroups/${work##*/}
mkdir "$cgroup"

(
	echo "$BASHPID" >"$cgroup/cgroup.procs"
	exec unshare --mount --propagation private --pid --ipc --uts --cgroup --net --fork \
		--kill-child bash "$(realpath "$0")" --init "$work" "$dir"
) >"$work/console" 2>&1 </dev/null &
unshare=$!

within 10 find_init || fail "systemd does not start"
within 60 booted || fail "systemd does not finish booting: $state"
kill -0 "$unshare" 2>/dev/null || fail "systemd has ended"
inside ip link set lo up
echo "$pid" >"$dir/init.pid"
inside "$@"
