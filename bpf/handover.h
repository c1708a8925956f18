/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who measures a request while the programs of two layouts are attached. The new
 * programs are in front of the others and see each packet first. They begin nothing at
 * first, but note what the others begin (PHASE_WATCH); user space adds what these had
 * open before. Then they begin what is not noted, and note that as their own
 * (PHASE_BOTH) until the others have been set to begin nothing (PHASE_FINISH). What
 * both have begun in between is the new programs' to report.
 */
#pragma once

#include "attempt.h"

/* In the value of an element of flat_seen, beside the time: the request is our own. */
#define SEEN_OURS (1ULL << 63)

/*
 * is_the_others reports whether programs of another layout follow a request: until it is
 * answered, or its time is over (model: SEEN_LIMIT).
 */
static __always_inline bool is_the_others(const struct flat_options *s, const struct half *h,
					  enum flat_side side)
{
	__u64 hash = attempt_hash(side, h->hash, h->isn);
	__u64 *seen = bpf_map_lookup_elem(&flat_seen, &hash);

	if (!seen || *seen & SEEN_OURS)
		return false;
	/* A SYN of that number is never another attempt's; any other key is free after the limit.
	 */
	return kind_of(&h->key) == KIND_TCP ||
	       elapsed(h, *seen) <= (__s64)(s->timeout_ns ? s->timeout_ns : TIMEOUT_DEFAULT_NS);
}

/*
 * note_seen keeps the first note of ours: from then on we report what has this key. One of
 * the others is over, or the request would be theirs. model: SEEN_FIRST
 */
static __always_inline void note_seen(__u64 hash, __u64 value)
{
	__u64 *seen = bpf_map_lookup_elem(&flat_seen, &hash);
	int failed;

	if (seen && *seen & SEEN_OURS)
		return;
	failed = bpf_map_update_elem(&flat_seen, &hash, &value, BPF_ANY);
	if (failed)
		count(COUNT_SEEN_FULL);
}

/*
 * is_layout2_back reports whether a daemon of layout 2, which knows nothing of phases, was
 * started since ours took over: then those of that layout begin, and ours are to finish.
 */
static __always_inline bool is_layout2_back(void)
{
	__u32 first = 0;
	void *settings = bpf_map_lookup_elem(&flat_settings2, &first);
	struct flat_options2 *options = settings ? bpf_map_lookup_elem(settings, &first) : NULL;

	return options && options->generation != flat_shared.generation2;
}

/* may_begin_beside reports whether a new request is ours, beside the programs of another layout. */
static __always_inline bool may_begin_beside(const struct flat_options *s, const struct half *h,
					     enum flat_side side, __u32 phase)
{
	if (phase == PHASE_FINISH || (phase != PHASE_WATCH && is_layout2_back()) ||
	    is_the_others(s, h, side))
		return false;
	if (phase == PHASE_WATCH) {
		/* model: SEEN_THEIRS */
		note_seen(attempt_hash(side, h->hash, h->isn), h->now);
		return false;
	}
	/* Not by the sequence number, which the record does not have. model: SEEN_OURS */
	if (phase == PHASE_BOTH)
		note_seen(attempt_hash(side, h->hash, 0), h->now | SEEN_OURS);
	return true;
}

/* forget_seen is for an answer to a request of the others: its key is free. model: FORGET_SEEN */
static __always_inline void forget_seen(const struct half *h, enum flat_side side, __u32 isn)
{
	__u64 hash = attempt_hash(side, h->hash, isn);
	__u64 *seen = bpf_map_lookup_elem(&flat_seen, &hash);

	if (seen && !(*seen & SEEN_OURS))
		bpf_map_delete_elem(&flat_seen, &hash);
}
