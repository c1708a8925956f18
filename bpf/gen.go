// Package bpf is flatd's kernel half and everything that touches it: it loads
// the programs, pins them and their maps, attaches them to interfaces and reads
// what they report. It hands out bytes and counts; flows gives them meaning.
//
// Reading order: flat.c, parse.h, half.h, request.h and table.h for the way of a
// packet, report.h and record.h for what comes out, timeout.h for what gets no
// answer, then state.go for how it is kept in the kernel.
package bpf

// flat.c is compiled twice: with the 32-bit arithmetic and the atomics that return a
// value of Linux 5.12, and as the exception without them; see compat.h.
// The include directories are Debian's: clang -target bpf does not look for
// asm/types.h by itself.
//go:generate go tool bpf2go -target bpfel,bpfeb -cc clang -strip llvm-strip -type flat_record -type flat_dns_record -type flat_key -type flat_request -type flat_open -type flat_overdue -type flat_question -type flat_numbering -type flat_flow_set -type flat_slot -type flat_options -type flat_options2 -type flat_net -type flat_histogram_key -type flat_histogram -type flat_counter -type flat_hint -output-stem flat kernel flat.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-function -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel,bpfeb -cc clang -strip llvm-strip -no-global-types -output-stem flat510 kernel510 flat.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-function -mcpu=v2 -DFLAT_510 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
