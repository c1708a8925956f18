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
	FLOW_REPEATED = 0, /* as FLOW_ASKED, and the request was sent again */
	FLOW_ASKED = 1,	   /* there may be an open request */
	FLOW_ANSWERED = 2,
	FLOW_REPORTED = 3, /* its request timed out, or was unreachable */
};

static __always_inline struct flat_flow_set *flows_of(__u64 hash)
{
	__u32 set = hash & (FLOW_SETS - 1);

	return bpf_map_lookup_elem(&flat_flows, &set);
}

static __always_inline __u32 flow_unit(__u64 now)
{
	return now >> FLOW_UNIT_SHIFT & FLOW_TIME_MASK;
}

/* flow_word is that of a flow which is seen now. */
static __always_inline __u64 flow_word(__u64 hash, __u64 now, enum flow_state state)
{
	return tag_of(hash) | (__u64)state << FLOW_STATE_SHIFT | flow_unit(now);
}

static __always_inline enum flow_state flow_state(__u64 word)
{
	return word >> FLOW_STATE_SHIFT & 3;
}

/* quiet_units is how long a flow has been quiet; another CPU may have seen it a little later. */
static __always_inline __u32 quiet_units(__u64 now, __u64 word)
{
	__u32 units = (flow_unit(now) + 1 - (__u32)word) & FLOW_TIME_MASK;

	return units ? units - 1 : 0;
}

static __always_inline bool is_idle(__u64 now, __u64 word)
{
	return !word || quiet_units(now, word) > udp_idle() >> FLOW_UNIT_SHIFT;
}

/* The ways of a set by their place in it, those of this host first. */
#define ALL_WAYS (2 * FLOW_WAYS)

/*
 * find_flow returns the place of a flow that is not idle in its set, or ALL_WAYS. Unless that
 * is made opaque(), the verifier follows each place.
 */
static __always_inline __u64 find_flow(const struct flat_flow_set *set, __u64 hash, __u64 now)
{
#pragma unroll
	for (int i = 0; i < ALL_WAYS; i++)
		if (has_tag(set->ours[i], hash) && !is_idle(now, set->ours[i]))
			return i;
	return ALL_WAYS;
}

/* way_at is the word at a place that find_flow has returned. */
static __always_inline __u64 *way_at(struct flat_flow_set *set, __u64 place)
{
	barrier_var(place); /* or clang drops the bound that the verifier wants to see */
	return &set->ours[place & (ALL_WAYS - 1)];
}

/* is_answer_way reports whether a datagram goes against the direction of the flow at a place. */
static __always_inline bool is_answer_way(__u64 place, enum direction direction)
{
	return (place < FLOW_WAYS) == (direction == INGRESS);
}

/* see notes that a flow goes on, in this state. */
static __always_inline void see(__u64 *flow, __u64 hash, __u64 now, enum flow_state state)
{
	__u64 was = *flow, is = flow_word(hash, now, state);

	if (was != is)
		change(flow, was, is);
}

/*
 * begin_flow gives a flow, in this state, the place of the quietest among those that begin
 * at the same end.
 */
__subprogram int begin_flow(struct half *h, __u64 hash, enum flow_state state)
{
	struct flat_flow_set *set = flows_of(hash);
	__u64 *ways, *place, was;

	if (!set)
		return 0; /* never */
	ways = h->direction == EGRESS ? set->ours : set->theirs;
	place = &ways[0];
#pragma unroll
	for (int i = 1; i < FLOW_WAYS; i++)
		if ((*place && !ways[i]) ||
		    (*place && quiet_units(h->now, ways[i]) > quiet_units(h->now, *place)))
			place = &ways[i];
	was = *place;
	if (!change(place, was, flow_word(hash, h->now, state)) || !is_idle(h->now, was))
		count(COUNT_FLOWS_FORGOTTEN);
	return 0;
}

/*
 * is_nothing_new reports whether nothing is to be noted of a datagram: one of a flow that was
 * answered, or reported. As long as its request is open, a further datagram is that sent
 * again; of those that follow within a unit of time this is noted once.
 */
static __always_inline bool is_nothing_new(__u64 word, __u64 now, bool is_answer)
{
	enum flow_state state = flow_state(word);

	if (is_answer || state == FLOW_ASKED)
		return state == FLOW_ANSWERED;
	return state != FLOW_REPEATED || !quiet_units(now, word);
}

/* A place that find_flow() does not return: nobody has looked for the flow yet. */
#define UNSEARCHED (ALL_WAYS + 1)

/*
 * pass_known takes a datagram of a known flow about which there is nothing to note, and
 * returns whether it is one: what hosts that serve QUIC, WireGuard or media have most of.
 * It pays for a look at one cache line. All others go on to observe_udp(), which need not
 * look for the flow again: way is its place.
 */
static __always_inline bool pass_known(enum direction direction, __u64 hash, __u64 *way)
{
	struct flat_flow_set *set = flows_of(hash);
	__u64 now = coarse_now(), *flow;

	if (!set || is_asleep(now))
		return false;
	*way = find_flow(set, hash, now);
	if (*way >= ALL_WAYS)
		return false;
	flow = way_at(set, *way);
	if (!is_nothing_new(*flow, now, is_answer_way(*way, direction)))
		return false;
	if (quiet_units(now,
			*flow)) /* or this clock, which is a little behind, would turn it back */
		see(flow, hash, now, flow_state(*flow));
	count(COUNT_FLOW);
	return true;
}
