#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What a guest's systemd starts: the job beside it.
boots=/var/lib/job-boots
BOOT=$(($(cat $boots 2>/dev/null || echo 0) + 1))
echo $BOOT >$boots
export BOOT FLATD_GUEST=1 HOME=/root LC_ALL=C.UTF-8
cd /bed || exit
./run.sh >/dev/guest-log 2>&1 </dev/null
status=$?
if [ $status = 194 ]; then
	exec systemctl reboot
fi
echo $status >/dev/guest-status
sync
exec systemctl poweroff --force --force
