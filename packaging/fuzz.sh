#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# fuzz.sh TIME [go test flag...]: feeds each fuzz target of the module hostile
# input for TIME, one target after the other.
set -euo pipefail
cd "$(dirname "$0")/.."

time=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz PACKAGE TARGET
fuzz() {
	go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 1x -parallel 2 "${flags[@]}" "$1" 2>&1 | tee "$log"
}

# On a busy machine the end of TIME itself is taken for a failure (golang/go#75804):
# no input is named then, and nothing else is said.
ended_by_the_clock() {
	grep -qx ' *context deadline exceeded' "$log" &&
		! grep -qE 'Failing input|_test\.go:|panic|hung or terminated' "$log"
}

flags=("$@")
packages=$(go list ./...)
for package in $packages; do
	targets=$(go test -list '^Fuzz' "$package")
	for target in $(grep '^Fuzz' <<<"$targets" || true); do
		echo "== $package $target"
		fuzz "$package" "$target" && continue
		ended_by_the_clock || exit 1
		echo "== ended by the clock, not by an input: once more"
		fuzz "$package" "$target" || ended_by_the_clock || exit 1
	done
done
