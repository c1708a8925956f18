#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the licences of what is in the programs: flatd, Go and the modules
# that they are linked with. Equal texts are printed once.
set -euo pipefail
cd "$(dirname "$0")/.."

# modules prints name and directory of each.
modules() {
	echo "Go, https://go.dev $(go env GOROOT)"
	GOOS=linux go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/... |
		LC_ALL=C sort -u
}

# texts prints, for each file of a module's that has to go with it, the sum of
# its contents, its name and the module's.
texts() {
	local name dir file
	modules | while read -r line; do
		name=${line% *} dir=${line##* }
		for file in "$dir"/{LICENSE,COPYING,NOTICE}*; do
			[ ! -f "$file" ] || echo "$(sha256sum <"$file" | cut -c1-64) $file $name"
		done
	done
}

cat <<'EOT'
flatd, https://github.com/flatd/flatd
Copyright: the flatd authors

The programs are under the Apache License 2.0, the first text below. What they
load into the kernel is under GPL-2.0-only OR BSD-2-Clause, the second. The
texts that follow are those of the Go modules named above each.
EOT
for file in LICENSE bpf/LICENSE; do
	printf '\n======== flatd: %s\n\n' "$file"
	cat $file
done
all=$(texts)
cut -d ' ' -f 1 <<<"$all" | awk '!seen[$0]++' | while read -r sum; do
	printf '\n======== '
	grep "^$sum" <<<"$all" | cut -d ' ' -f 3- | paste -sd, | sed 's/,/, /g'
	echo
	cat "$(grep -m 1 "^$sum" <<<"$all" | cut -d ' ' -f 2)"
done
