#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: version.sh DESCRIPTION SECONDS
#
# Makes a package's version of what `git describe --tags --always --dirty` says,
# so that dpkg and rpm order versions as git does: v1.2.0-rc1, v1.2.0, five
# commits later, v1.2.1. Before the first tag the commit's time, in SECONDS
# since 1970, orders them, below every release.
set -euo pipefail

clean=${1%-dirty}
if [[ $clean =~ ^v?([0-9]+(\.[0-9]+)+)(-([a-z]+[0-9]*))?(-([0-9]+)-(g[0-9a-f]+))?$ ]]; then
	version=${BASH_REMATCH[1]}${BASH_REMATCH[4]:+"~${BASH_REMATCH[4]}"}
	version+=${BASH_REMATCH[6]:+"+${BASH_REMATCH[6]}.${BASH_REMATCH[7]}"}
elif [[ $clean =~ ^[0-9a-f]{7,40}$ ]]; then
	version="0~$(date -u -d "@$2" +%Y%m%d%H%M%S).g$clean"
else
	echo "version.sh: no version can be made of $1: tag releases as v1.2.3 or v1.2.3-rc1" >&2
	exit 1
fi
[ "$clean" = "$1" ] || version+="+dirty"
echo "$version"
