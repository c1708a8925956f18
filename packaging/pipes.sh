#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: pipes.sh FILE...
#
# Refuses shell in which the reader of a pipe may stop before the end of its
# input. The writer then dies of SIGPIPE if it still has something to write, and
# under pipefail the whole pipeline fails, once in a few runs. Skips comments.
set -euo pipefail

# shellcheck disable=SC2016 # $0 is for awk
awk '
	BEGIN {
		pipe = "[^|][|]&?[ \t({]*([A-Za-z_]+=[^ \t]*[ \t]+)*"
		grep = "[ef]?grep[ \t]([^|;&)]*[ \t])?(-[A-Za-z]*[lLmq]|--(quiet|silent|max-count|files-with))"
		sed = "sed[ \t]([^|]*[ \t0-9/;{$\47\"])?[qQ][0-9]*([ \t;}\47\")]|$)"
		awk = "[gm]?awk[ \t][^|]*exit[ \t0-9]*[}]"
		early = pipe "(" grep "|" sed "|head([ \t)]|$)|read[ \t])"
	}
	FNR == 1 { start = "" }
	/^[ \t]*#/ { next }
	{ line = start $0; start = "" }
	/(\\|[|])$/ { sub(/\\$/, "", line); start = line; next }
	line ~ early || line ~ pipe awk && line !~ /END *[{]/ {
		printf "%s:%d: %s\n", FILENAME, FNR, line
		found = 1
	}
	END { exit found }
' "$@" >&2 || {
	cat >&2 <<-'EOT'
		pipes: in the lines above, the reader of a pipe may stop early. Write instead:
		  [ -n "$(find DIR -print -quit)" ]             is there a file?
		  text=$(COMMAND); grep -q PATTERN <<<"$text"   does a line match?
		  text=$(COMMAND); first=${text%%$'\n'*}        the first line
	EOT
	exit 1
}
