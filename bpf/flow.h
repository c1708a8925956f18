/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * UDP flows that are not idle. Every datagram of the host is looked for here, so
 * that a flow is one word: in a set of eight, a cache line, that its hash names,
 * four for flows of this host and four for those from outside. Finding it takes no
 * helper.
 *
 * Two flows at a time whose hashes agree in 55 bits are one. Where all four of a
 * set are busy, the quietest makes room, and is counted: if it goes on, it is
 * measured as another.
 */
#pragma once

#include "half.h"

/* A flow's word, from the top: the tag of its hash, its state, when it was last seen. */
#define FLOW_STATE_SHIFT 22
#define FLOW_TIME_MASK ((1U << FLOW_STATE_SHIFT) - 1)

/* The time is in units of 2^24 ns, 17 ms, and comes round in 19 hours. */
#define FLOW_UNIT_SHIFT 24

enum flow_state {
	FLOW_FREE = 0,	/* the word is 0 */
	FLOW_ASKED = 1, /* there may be an open request */
	FLOW_ANSWERED = 2,
	FLOW_REPORTED = 3, /* its request timed out, or was unreachable */
};

static __always_inline struct flat_flow_set *flows_of(const struct half *h)
{
	__u32 set = h->hash & (FLOW_SETS - 1);

	return bpf_map_lookup_elem(&flat_flows, &set);
}

static __always_inline __u64 *ways_of(struct flat_flow_set *set, enum flat_side side)
{
	return side == SIDE_CLIENT ? set->ours : set->theirs;
}

static __always_inline __u32 flow_unit(const struct half *h)
{
	return h->now >> FLOW_UNIT_SHIFT & FLOW_TIME_MASK;
}

/* flow_word is that of a flow which is seen now. */
static __always_inline __u64 flow_word(const struct half *h, enum flow_state state)
{
	return tag_of(h->hash) | (__u64)state << FLOW_STATE_SHIFT | flow_unit(h);
}

static __always_inline enum flow_state flow_state(__u64 word)
{
	return word >> FLOW_STATE_SHIFT & 3;
}

/* quiet_units is how long a flow has been quiet; another CPU may have seen it a little later. */
static __always_inline __u32 quiet_units(const struct half *h, __u64 word)
{
	__u32 units = (flow_unit(h) + 1 - (__u32)word) & FLOW_TIME_MASK;

	return units ? units - 1 : 0;
}

static __always_inline bool is_idle(const struct flat_options *s, const struct half *h, __u64 word)
{
	return !word || quiet_units(h, word) > udp_idle(s) >> FLOW_UNIT_SHIFT;
}

/*
 * find_flow returns the place of a flow that is not idle among the ways of its set,
 * or 0. The verifier need not know which, and follow each.
 */
static __always_inline __u64 *find_flow(const struct __sk_buff *skb, const struct flat_options *s,
					const struct half *h, __u64 *ways)
{
	__u64 found = FLOW_WAYS;

#pragma unroll
	for (int i = 0; i < FLOW_WAYS; i++)
		if (has_tag(ways[i], h->hash) && !is_idle(s, h, ways[i]))
			found = i;
	found = opaque(skb, found);
	if (found >= FLOW_WAYS)
		return 0;
	barrier_var(found); /* or clang drops the bound that the verifier wants to see */
	return &ways[found & (FLOW_WAYS - 1)];
}

/* see notes that a flow goes on, in this state. */
static __always_inline void see(const struct half *h, __u64 *flow, enum flow_state state)
{
	__u64 was = *flow, is = flow_word(h, state);

	if (was != is)
		change(flow, was, is);
}

/* begin_flow gives a flow the place of the quietest of its set. */
static __always_inline void begin_flow(const struct flat_options *s, const struct half *h,
				       __u64 *ways)
{
	__u64 *place = &ways[0];

#pragma unroll
	for (int i = 1; i < FLOW_WAYS; i++)
		if (!ways[i] || (*place && quiet_units(h, ways[i]) > quiet_units(h, *place)))
			place = &ways[i];

	__u64 was = *place;

	if (!change(place, was, flow_word(h, FLOW_ASKED)) || !is_idle(s, h, was))
		count(COUNT_FLOWS_FORGOTTEN);
}
