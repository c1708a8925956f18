#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: image.sh SUITE
#
# Makes the disc of a guest, once, and prints its path: a Debian suite that boots
# to systemd and a job (job.sh), without a kernel, which kernel.sh brings.
. "$(dirname "$0")/lib.sh"
[ $# = 1 ] || usage
suite=$1
alone

packages=(
	apt ca-certificates curl dbus dbus-user-session iproute2 kmod libpam-systemd mount nftables
	nginx-light passwd procps systemd systemd-sysv udev wireguard-tools
)
[ "$suite" = bullseye ] || packages+=(nats-server) # which Debian 11 does not have

image=$cache/image/$suite-$(md5sum "$here/image.sh" | cut -c1-8).img
if [ -e "$image" ] && [ -z "${FLATD_FRESH:-}" ]; then
	echo "$image"
	exit
fi

# Of no use here, and each costs time or disc. What a job needs it starts.
disabled="dnsmasq e2scrub_reap nats-server nftables nginx systemd-networkd
	systemd-networkd-wait-online systemd-resolved systemd-timesyncd"
masked="apt-daily-upgrade.timer apt-daily.timer dev-hugepages.mount
	dpkg-db-backup.timer e2scrub_all.timer fstrim.timer getty-static.service
	getty.target getty@.service ldconfig.service logrotate.timer man-db.timer
	modprobe@.service proc-sys-fs-binfmt_misc.automount serial-getty@.service
	sys-fs-fuse-connections.mount sys-kernel-config.mount
	systemd-ask-password-console.path systemd-ask-password-wall.path
	systemd-firstboot.service systemd-hwdb-update.service
	systemd-machine-id-commit.service systemd-pstore.service
	systemd-random-seed.service systemd-remount-fs.service
	systemd-sysusers.service systemd-tmpfiles-clean.timer
	systemd-update-done.service systemd-update-utmp-runlevel.service
	systemd-update-utmp.service systemd-user-sessions.service"
# udev would load these for the hardware that QEMU shows.
unwanted="aesni_intel ahci ata_generic ata_piix button ccp crc32_pclmul
	crc32c_intel crct10dif_pclmul evdev ghash_clmulni_intel i2c_i801 iTCO_wdt
	joydev kvm_amd kvm_intel lpc_ich pcspkr polyval_clmulni powernow_k8 psmouse
	qemu_fw_cfg serio_raw sha1_ssse3 sha256_ssse3 sha512_ssse3 sr_mod"

# bootstrap installs the suite into a directory. Packages stay in the cache.
bootstrap() {
	local debs=$cache/debs/$suite
	mkdir -p "$debs"
	# shellcheck disable=SC2016 # $1 is for mmdebstrap
	mmdebstrap --mode=root --variant=apt --quiet --include="$(IFS=,; echo "${packages[*]}")" \
		--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
		--aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='force-unsafe-io' \
		--skip=essential/unlink \
		--setup-hook='mkdir -p "$1/var/cache/apt/archives"' \
		--setup-hook="cp -l $debs/*.deb \"\$1/var/cache/apt/archives/\" 2>/dev/null || true" \
		--customize-hook="cp -lu \"\$1\"/var/cache/apt/archives/*.deb $debs/ 2>/dev/null || true" \
		"$suite" "$1" "$(mirror)" >&2
}

# settle makes a guest of what is installed in the current directory.
settle() {
	local name
	grep -lsr '^path-exclude' etc/dpkg/dpkg.cfg.d | xargs -r rm # is not for what jobs install
	rm -rf var/cache/apt/* var/lib/apt/lists/* etc/apt/sources.list etc/apt/sources.list.d/*
	mkdir -p etc/modprobe.d etc/systemd/journald.conf.d etc/systemd/system-generators var/log/journal
	for name in $disabled; do
		rm -f etc/systemd/system/*.wants/"$name.service"
	done
	for name in $masked; do
		ln -sf /dev/null "etc/systemd/system/$name"
	done
	for name in usr/lib/systemd/system-generators/*; do
		ln -sf /dev/null "etc/systemd/system-generators/${name##*/}"
	done
	for name in $unwanted; do
		echo "blacklist $name"
	done >etc/modprobe.d/guest.conf
	# After the target, and of a type that does not wait, as the boot ends before it.
	cat >etc/systemd/system/job.service <<-'END'
		[Unit]
		After=multi-user.target
		[Service]
		ExecStart=/bed/job.sh
		TimeoutStopSec=5
	END
	cat >etc/systemd/system/job.target <<-'END'
		[Unit]
		Requires=multi-user.target
		Wants=job.service
		After=multi-user.target
		AllowIsolate=yes
	END
	ln -sf job.target etc/systemd/system/default.target
	printf '[Journal]\nStorage=persistent\n' >etc/systemd/journald.conf.d/guest.conf
	echo guest >etc/hostname
	printf '127.0.0.1 localhost guest\n::1 localhost\n' >etc/hosts
	echo d41d8cd98f00b204e9800998ecf8427e >etc/machine-id
	rm -f etc/resolv.conf usr/sbin/policy-rc.d
	: >etc/resolv.conf
	: >etc/fstab
}

say "making a guest of $suite"
mkdir -p "$cache/image"
work=$(mktemp -d "$cache/image.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
bootstrap "$work/root" || fail "$suite cannot be installed from $(mirror) as it is now"
(cd "$work/root" && settle)
kilobytes=$(du -sk "$work/root" | cut -f1)
mkfs.ext4 -qq -F -O ^has_journal -m 0 -E lazy_itable_init=1 -d "$work/root" "$work/image" $((kilobytes + 786432))k >/dev/null
rm -f "$cache/image/$suite"-*.img # of older recipes
mv "$work/image" "$image"
echo "$image"
