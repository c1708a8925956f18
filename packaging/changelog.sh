#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the packages' changelog, as nfpm wants it: one entry, of this version,
# since git has the whole story.
set -euo pipefail

cat <<-EOT
	- semver: $PACKAGE_VERSION-1
	  date: $(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
	  packager: flatd maintainers <maintainers@flatd.example>
	  deb:
	    urgency: medium
	    distributions: [unstable]
	  changes:
	    - note: This version; https://github.com/flatd/flatd/commits has what is new.
EOT
