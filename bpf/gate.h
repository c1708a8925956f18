/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Gates: words before what is dear to look at and mostly holds nothing. A program
 * opens a gate before it puts something behind it; user space shuts it once it
 * has seen that nothing is left there.
 */
#pragma once

#include <linux/types.h>
#include <stdbool.h>

enum flat_gate {
	GATE_HANDSHAKES, /* before the slots of awaiting.h */
	GATE_OUR_SYNS,	 /* before the TCP requests that a RST from outside may answer */
	GATE_THEIR_SYNS, /* before those that a RST of this host may answer */
	GATES,
};

struct {
	__u32 opened; /* when something was last put there, in units of 2^30 ns from 1; 0: never */
	__u32 shut;   /* by user space: `opened`, as it was when nothing was left; 0: never */
} flat_gates[GATES];

/* gate_unit is when now is. */
static __always_inline __u32 gate_unit(__u64 now)
{
	return (now >> 30) + 1;
}

static __always_inline bool is_shut(enum flat_gate gate)
{
	return flat_gates[gate].opened == flat_gates[gate].shut;
}

/*
 * is_shut_for_all is for what is in maps. Programs that were loaded by hand, one by
 * one, share these but no gate, until there is a daemon.
 */
static __always_inline bool is_shut_for_all(enum flat_gate gate)
{
	return flat_gates[gate].shut && is_shut(gate);
}

static __always_inline void open_gate(enum flat_gate gate, __u64 now)
{
	__u32 unit = gate_unit(now);

	if (flat_gates[gate].opened != unit)
		flat_gates[gate].opened = unit;
}
