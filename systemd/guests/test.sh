#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: test.sh [-a ARCH] SUITE...
#
# Tests flatd in guests of Debian suites: the programs on the bare kernel, then the
# package in the whole system. For another architecture than this machine's, the
# programs alone. Of suites joined by a comma, such as sid,trixie, the first counts
# that can be had from the mirror. Runs all of it, whatever fails, and ends with the
# verdicts. What it takes is built here, for in a guest without KVM a compiler would
# take minutes.
. "$(dirname "$0")/lib.sh"
cd "$here/../.."
arch=$(this_arch)
while getopts a: option; do
	case $option in
	a) arch=$OPTARG ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ $# != 0 ] || usage

# Tests of packets through the programs, one at least of whatever differs between
# kernels: what the verifier lets through, maps, the ring, pins, taking over. Each
# loads the programs anew, which takes seconds without KVM.
kernel_tests='Exchanges|InstructionsAreKnown|VerifierHasRoom|SequenceHasNoGaps|LongQuestions'
kernel_tests+='|RingIsCountedAndReadOn|ComeAgainAfterARestart|TimeoutsOutlive|SameProgramsAreAdopted'
kernel_tests+='|OtherProgramsAreReplaced|RemoveTakesWhatIsThere|SignalsCost'

# build_job makes the job of a whole system.
build_job() {
	local version
	mkdir "$work/system"
	for version in v1.0.0 v1.0.1; do
		make -s package DIST="$work/system" BIN="$work/bin" ARCHES="$arch" FORMATS=deb VERSION=$version
	done
	go_test "$work/system/systemd.test" ./systemd
	cp "$work/bpf.test" systemd/guests/run.sh systemd/flatd.catalog systemd/*.service systemd/*.socket "$work/system/"
}

go_test() { CGO_ENABLED=0 GOARCH=$arch go test -c -o "$1" "$2"; }

# check SUITE WHAT COMMAND... runs it, shows what it says, but for what passed of a
# step of a step, and keeps the verdict.
check() {
	local suite=$1 what=$2 started=$SECONDS verdict=passed
	shift 2
	echo "== $suite, $what"
	"$@" 2>&1 | sed -u "/^ *=== /d; /^        *--- PASS/d; s/^/$suite: /" || verdict=FAILED
	[ $verdict = passed ] || failed=1
	verdicts+=("$(printf '%-10s %-13s %s, %d s' "$suite" "$what" $verdict $((SECONDS - started)))")
}

# test_suite SUITE tests one that is at hand.
test_suite() {
	check "$1" "$arch kernel" "$here/guest.sh" -a "$arch" -t 1500 "$1" "$work/bpf.test" -test.v -test.short -test.run "$kernel_tests"
	[ ! -d "$work/system" ] ||
		check "$1" "$arch system" "$here/guest.sh" -t 2400 "$1" "$work/system"
}

# have SUITE makes what its guests take, once.
have() {
	"$here/kernel.sh" "$1" "$arch" >/dev/null || return
	[ ! -d "$work/system" ] || "$here/image.sh" "$1" >/dev/null
}

# first_of SUITE... tests the first that can be had.
first_of() {
	local suite
	for suite; do
		if have "$suite"; then
			test_suite "$suite"
			return
		fi
		verdicts+=("$(printf '%-10s cannot be had from %s' "$suite" "$(mirror)")")
	done
	failed=1
}

failed=0
verdicts=()
work=$(mktemp -d "${TMPDIR:-/tmp}/flatd-guests.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM INT HUP
alone

go_test "$work/bpf.test" ./bpf
[ "$arch" != "$(this_arch)" ] || build_job
for suites; do
	IFS=, read -ra suites <<<"$suites"
	first_of "${suites[@]}"
done
printf '== %s\n' "${verdicts[@]}"
exit $failed
