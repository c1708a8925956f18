#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The job of a guest with systemd: the tests beside it, in the order of a package's
# life. What a test lacks here is a failure.
export CI=true
failed=0

test_bpf() { ./bpf.test -test.v -test.timeout=10m -test.run="$1" || failed=1; }
test_systemd() { ./systemd.test -test.v -test.timeout=20m -test.run="^$1\$" || failed=1; }

case $BOOT in
1)
	# What takes ip and tc, and is not alike in all kernels.
	test_bpf 'TakesTCXWhereItIs|AttachingAgain|OtherTCXPrograms|SegmentationOffload|VLANDevices|TunnelDevices'
	test_systemd TestPackage
	test_systemd TestService
	test_systemd TestGuest
	[ $failed = 0 ] || exit $failed
	exit 194 # boot again
	;;
*) test_systemd TestGuestAfterReboot ;;
esac
exit $failed
