#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: setup.sh run|test|guests|guests-arch
#
# Sets up what `make run`, `make test` or `make test-guests` needs and this machine
# lacks; says what to do where it cannot. Does nothing, quickly, where nothing is
# missing.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

fail() {
	echo "setup: $*" >&2
	exit 1
}

need_go() {
	command -v go >/dev/null ||
		fail "Go is missing: install Go $(sed -n 's/^go //p' go.mod) or later from https://go.dev/dl"
}

need_bpffs() {
	[ "$(stat -f -c %T /sys/fs/bpf)" = bpf_fs ] || "${as_root[@]}" mount -t bpf bpf /sys/fs/bpf ||
		fail "no BPF file system on /sys/fs/bpf, and mounting one failed: run as root, on Linux 5.10 or later"
}

# missing_packages LIST prints those of a list whose command or file is not here.
missing_packages() {
	local package thing
	grep -v '^#' "$1" | while read -r package thing; do
		case $thing in
		/*) [ -e "$thing" ] ;;
		*) PATH=$PATH:/usr/sbin:/sbin command -v "$thing" >/dev/null ;;
		esac || echo "$package"
	done
}

need_packages() {
	local missing packages service
	missing=$(missing_packages "$1")
	[ -n "$missing" ] || return 0
	mapfile -t packages <<<"$missing"
	command -v apt-get >/dev/null ||
		fail "the tests need these packages (Debian's names), please install them: ${packages[*]}"
	echo "setup: installing ${packages[*]}"
	"${as_root[@]}" apt-get -qq update
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install --no-install-recommends "${packages[@]}" >/dev/null
	# Debian starts what it installs. The tests start their own.
	for service in nginx prometheus; do
		[ ! -d /run/systemd/system ] || [[ ${packages[*]} != *$service* ]] ||
			"${as_root[@]}" systemctl --quiet disable --now "$service.service"
	done
	missing=$(missing_packages "$1")
	[ -z "$missing" ] || fail "installed, but still incomplete: ${missing//$'\n'/ }"
}

need_go
case ${1:-} in
run) ;;
test)
	need_packages packaging/test-packages
	packaging/captures.sh
	;;
guests | guests-arch) # which have a kernel of their own
	need_packages "packaging/$1-packages"
	exit
	;;
*) fail "usage: setup.sh run|test|guests|guests-arch" ;;
esac
need_bpffs
