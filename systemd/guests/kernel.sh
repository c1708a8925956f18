#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: kernel.sh SUITE [ARCH]
#
# Fetches the kernel of a Debian suite, once, and prints the directory that then
# has it: vmlinuz, release, modules.img (the modules, as a disc) and early/ (the
# modules that make discs and ports appear, in order). Its signature is checked,
# nothing is installed and this machine's apt is left alone, so that suite and
# architecture may be any that Debian has.
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || usage
suite=$1
arch=${2:-$(this_arch)}
alone

# The image for clouds has all that is needed, and is the smallest.
flavour=
case $arch in amd64 | arm64) flavour=cloud- ;; esac
meta=linux-image-$flavour$arch

kernel=$cache/kernel/$suite-$arch
made=$kernel/made-$(md5sum "$here/kernel.sh" | cut -c1-8)
if [ -e "$made" ] && [ -z "${FLATD_FRESH:-}" ]; then
	echo "$kernel"
	exit
fi

# private_apt prints the options of an apt that knows this suite and architecture
# alone.
private_apt() {
	local state=$cache/apt/$suite-$arch
	mkdir -p "$state/lists/partial" "$state/archives/partial"
	: >"$state/status"
	echo "deb [arch=$arch signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >"$state/sources.list"
	cat <<-END
		Dir::State "$state";
		Dir::State::status "$state/status";
		Dir::Cache "$state";
		Dir::Etc::sourcelist "$state/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		APT::Architecture "$arch";
		APT::Architectures { "$arch"; };
		APT::Sandbox::User "root";
		Acquire::Check-Valid-Until "false";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Acquire::http::Timeout "60";
	END
}

# packages prints those that make up the kernel: the meta package names the real
# one, which newer suites split.
packages() {
	apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
		--no-replaces --no-enhances "$meta" | grep -E '^linux-(image|binary|modules|base)-[0-9]' | sort -u
}

work=$(mktemp -d "$cache/kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
private_apt >"$work/apt.conf"
export APT_CONFIG=$work/apt.conf
apt-get -qq update >&2 || fail "no package lists of $suite for $arch from $(mirror): set FLATD_MIRROR"
mapfile -t packages < <(packages)
[ ${#packages[@]} != 0 ] || fail "no kernel behind $meta in $suite"
say "fetching the kernel of $suite for $arch: ${packages[*]}"
mkdir "$work/debs" "$work/root" "$work/kernel" "$work/kernel/early"
(cd "$work/debs" && apt-get -qq download "${packages[@]}" >&2) || fail "$suite: the kernel cannot be fetched"
for deb in "$work"/debs/*.deb; do
	dpkg-deb -x "$deb" "$work/root"
done

modules=$(find "$work/root" -path '*/modules/*/kernel' -type d -print -quit)
[ -n "$modules" ] || fail "no modules in ${packages[*]}"
modules=$(dirname "$modules")
release=$(basename "$modules")
find "$modules" -name '*.ko.xz' -print0 | xargs -0r -P"$(nproc)" -n64 xz -d
find "$modules" -name '*.ko.zst' -print0 | xargs -0r -P"$(nproc)" -n64 zstd -qd --rm
image=$(find "$work/root" -type f \( -name "vmlinu[xz]-$release" -o -name vmlinuz \) -print -quit)
[ -n "$image" ] || fail "no kernel image in ${packages[*]}"
mv "$image" "$work/kernel/vmlinuz"
echo "$release" >"$work/kernel/release"
mkdir -p "$work/tree/lib/modules"
mv "$modules" "$work/tree/lib/modules/"
depmod -b "$work/tree" "$release"

for module in virtio_pci virtio_blk virtio_console ext4; do
	# What is built in has none.
	modprobe -d "$work/tree" -S "$release" --show-depends "$module" 2>/dev/null || true
done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
	cp "$file" "$work/kernel/early/"
	basename "$file"
done >"$work/order"
mv "$work/order" "$work/kernel/early/modules.order"

kilobytes=$(du -sk "$work/tree/lib/modules" | cut -f1)
mkfs.ext4 -qq -F -O ^has_journal -m 0 -d "$work/tree/lib/modules" "$work/kernel/modules.img" \
	$((kilobytes * 12 / 10 + 16384))k >/dev/null
touch "$work/kernel/${made##*/}"
mkdir -p "$cache/kernel"
rm -rf "$kernel"
mv "$work/kernel" "$kernel"
echo "$kernel"
