#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: captures.sh
#
# Fetches the captures that the tests replay (packaging/testbed/wild reads them): those
# which the sources of the packages below carry for tests of their own, in
# whatever version Debian offers; apt verifies its signature. Of no more use
# than that, they are kept in the user's cache, and none is part of flatd. Does
# nothing where they are there already.
set -euo pipefail

# About 130 MB: what real programs say, and what broke tcpdump once.
sources=(tcpdump ndpi)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/flatd-test/captures

missing=()
for source in "${sources[@]}"; do
	[ -d "$folder/$source" ] || missing+=("$source")
done
[ ${#missing[@]} != 0 ] || exit 0
command -v apt-get >/dev/null || {
	echo "captures: no apt-get here: put captures into a folder in $folder, or do without these tests" >&2
	exit 0
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The sources of what this machine installs from, in lists of our own: the
# machine's stay as they are.
mkdir -p "$work/parts" "$work/lists/partial"
for list in /etc/apt/sources.list.d/*.sources; do
	[ ! -e "$list" ] || sed 's/^Types:.*/Types: deb-src/' "$list" >"$work/parts/${list##*/}"
done
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
	[ ! -e "$list" ] || sed -n 's/^deb /deb-src /p' "$list" >"$work/parts/${list##*/}.list"
done
options=(-qq -o APT::Sandbox::User="$(id -un)" -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/parts"
	-o Dir::State::Lists="$work/lists" -o Dir::Cache="$work")
echo "captures: fetching the sources of ${missing[*]}"
apt-get "${options[@]}" update

for source in "${missing[@]}"; do
	mkdir -p "$work/$source" "$folder"
	# The original archive alone, by apt's own means: the rest is not of use, and
	# a mirror that lacks it would end the whole.
	read -r uri archive _ hash < <(apt-get "${options[@]}" --print-uris source "$source" | grep -F .orig.tar.) || {
		echo "captures: apt knows no sources of $source" >&2
		exit 1
	}
	/usr/lib/apt/apt-helper "${options[@]}" -o Acquire::Retries=3 download-file "${uri//\'/}" "$work/$archive" "$hash"
	tar -xf "$work/$archive" -C "$work/$source" --wildcards '*.pcap' '*.pcapng' '*.cap' 2>/dev/null || true
	[ -n "$(find "$work/$source" -type f -print -quit)" ] || {
		echo "captures: none in the sources of $source" >&2
		exit 1
	}
	# Whole or not at all.
	rm -rf "$folder/.$source"
	mv "$work/$source" "$folder/.$source"
	mv "$folder/.$source" "$folder/$source"
done
