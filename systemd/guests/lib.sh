# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the scripts here share. Sourced, never run.
set -euo pipefail
# shellcheck disable=SC2034 # the others use it
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Kernels and userlands, each made once. FLATD_FRESH=1 makes what is used anew.
cache=${FLATD_GUESTS:-/var/tmp/flatd-guests}
mkdir -p "$cache"

say() { echo "guests: $*" >&2; }

# fail ends with the status that says that no job was run.
fail() {
	say "$*"
	exit 125
}

usage() {
	sed -n '/^# usage/,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
	exit 2
}

# alone waits until no other script has the cache and the machine. Those that
# this one calls are part of its turn.
alone() {
	[ -z "${FLATD_GUESTS_TURN:-}" ] || return 0
	exec 9>"$cache/lock"
	flock --nonblock 9 || {
		say "waiting for another guest to end"
		flock --timeout 3600 9 || fail "$cache/lock is still held after an hour"
	}
	export FLATD_GUESTS_TURN=taken
}

# mirror prints the Debian mirror of this machine, or FLATD_MIRROR.
mirror() {
	local mirrors
	if [ -n "${FLATD_MIRROR:-}" ]; then
		echo "$FLATD_MIRROR"
		return
	fi
	mirrors=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
		grep -oE 'https?://[^ ]+/debian/?( |$)' || true)
	mirrors=${mirrors:-http://deb.debian.org/debian}
	echo "${mirrors%%[[:space:]]*}"
}

this_arch() { dpkg --print-architecture; }
