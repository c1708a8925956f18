// Package bpf is flatd's kernel half and everything that touches it: it loads
// the programs, pins them and their maps, attaches them to interfaces and reads
// what they report. It hands out bytes and counts; flows gives them meaning.
//
// Reading order: flat.c, parse.h, half.h and pending.h for the way of a packet,
// report.h and record.h for what comes out, then state.go for how it is kept in the kernel.
package bpf

// flat.c is compiled twice: with what Linux 5.10 runs without exception, and
// with the 32-bit arithmetic and the atomics that return a value of Linux 5.12.
// The include directories are Debian's: clang -target bpf does not look for
// asm/types.h by itself.
//go:generate go tool bpf2go -target bpfel,bpfeb -cc clang -strip llvm-strip -type flat_record -type flat_dns_record -type flat_key -type flat_pending -type flat_overdue -type flat_question -type flat_numbering -type flat_flow_set -type flat_seat -type flat_options -type flat_net -type flat_histogram_key -type flat_histogram -type flat_counter -output-stem flat kernel flat.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-function -mcpu=v2 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel,bpfeb -cc clang -strip llvm-strip -no-global-types -output-stem flat512 kernel512 flat.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-function -mcpu=v3 -DFLAT_512 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
