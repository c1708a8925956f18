# SPDX-License-Identifier: Apache-2.0
#
# make test-guests. Included by the Makefile. What is fetched and built for it is
# kept in FLATD_GUESTS, some 7 GB below /var/tmp.

SUITES ?= bullseye bookworm trixie sid

.PHONY: test-guests test-guests-arch setup-guests

test-guests: setup-guests ## test the package in Debian guests, SUITES="bullseye sid,trixie" or all
	$(if $(SUDO),sudo -E env PATH=$(PATH)) systemd/guests/test.sh $(SUITES)

test-guests-arch: setup-guests ## test the programs on kernels of other architectures
	packaging/setup.sh guests-arch
	$(if $(SUDO),sudo -E env PATH=$(PATH)) systemd/guests/test.sh -a arm64 bookworm
	$(if $(SUDO),sudo -E env PATH=$(PATH)) systemd/guests/test.sh -a s390x bookworm

setup-guests:
	packaging/setup.sh guests
