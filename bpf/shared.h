/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Words that programs and user space both read and write, in memory that both have
 * mapped: no helper, no system call. They are pinned with the maps, and outlive the
 * daemon. All zero means: measure everything, as where the object is loaded by hand.
 */
#pragma once

#include <linux/types.h>
#include <stdbool.h>

/* What the programs do while those of another layout are attached beside them. */
enum flat_phase {
	PHASE_ALONE = 0,  /* there are no others */
	PHASE_WATCH = 1,  /* begin nothing; note in flat_seen what the others begin */
	PHASE_BOTH = 2,	  /* begin what was not seen before, and note that too */
	PHASE_AFTER = 3,  /* begin what was not seen before */
	PHASE_FINISH = 4, /* begin nothing: others have taken over */
};

#define TRANSLATING_BITS 1024
#define AWAITING_SLOTS 65536

struct awaited {
	__u32 acknowledgment; /* host order */
	__u32 since;	      /* awaiting_unit() in which the SYN/ACK went out; 0: free */
};

struct flat_shared_words {
	/* What each datagram and each ACK need is in one cache line. */
	__u64 seed;		 /* of every hash; random, set once */
	__u64 suspended_ns;	 /* CLOCK_BOOTTIME less CLOCK_MONOTONIC; by user space */
	__u64 lease_until_ns;	 /* CLOCK_BOOTTIME after which the programs sleep; 0: never */
	__u64 udp_idle_ns;	 /* a UDP flow quiet for this long is new again; 0: default */
	__u32 match_host;	 /* match an answer on whichever interface it arrives */
	__u32 handshakes_opened; /* see awaiting.h */
	__u32 handshakes_shut;
	__u32 phase; /* enum flat_phase */
	__u64 spare_line[2];

	__u64 neighbour_ns; /* when ARP or neighbour discovery last came in; 0: never */
	__u64 recent_ns;    /* when a request last came into the memory of recent ones; 0: never */
	__u64 timeouts_refused; /* runs of flat_timeout that found too little room in the ring */
	__u64 both_ns;		/* when PHASE_BOTH began */
	__u32 attaching;   /* index of the interface that has only some of its programs; 0: none */
	__u32 generation2; /* of the settings of layout 2, when ours took over */
	__u32 translating[TRANSLATING_BITS / 32]; /* interfaces, by index modulo: see hint.h */
	__u64 spare[24];
	struct awaited awaiting[AWAITING_SLOTS]; /* see awaiting.h */
};

/* The only variable, so that it is at the beginning of its map in every layout. */
struct flat_shared_words flat_shared;
