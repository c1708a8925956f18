/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP attempts that were answered. A SYN that is sent again after that, because the
 * answer was lost further on or was a refusal, is a repeat of its attempt and no new
 * one. An attempt is one word, in a set of eight, a cache line, that its hash names;
 * the oldest of a set makes room.
 */
#pragma once

#include "half.h"

/* A word: the tag, and below it when the attempt was answered, in units of 2^30 ns from 1. */
#define ATTEMPT_TIME_MASK ((1U << TAG_SHIFT) - 1)

/*
 * Linux sends a SYN for the last time 64 s after the one before (tcp_syn_retries =
 * 6); until then it belongs to the same attempt.
 */
#define ATTEMPT_MEMORY_UNITS 66

static __always_inline __u32 attempt_unit(__u64 now)
{
	return ((now >> 30) + 1) & ATTEMPT_TIME_MASK;
}

static __always_inline __u64 attempt_hash(enum flat_side side, __u64 hash, __u32 isn)
{
	return mixed(hash, (__u64)side << 32 | isn);
}

static __always_inline struct flat_attempt_set *attempts_of(__u64 hash)
{
	__u32 set = hash & (ATTEMPT_SETS - 1);

	return bpf_map_lookup_elem(&flat_attempts, &set);
}

/* is_answered reports whether a SYN belongs to an attempt that was answered. */
static __always_inline bool is_answered(const struct half *h, enum flat_side side)
{
	__u64 hash = attempt_hash(side, h->hash, h->isn);
	struct flat_attempt_set *set = attempts_of(hash);
	__u64 found = 0;

	if (!set)
		return false;
#pragma unroll
	for (int i = 0; i < ATTEMPT_WAYS; i++)
		if (has_tag(set->ways[i], hash))
			found = set->ways[i];
	return found &&
	       ((attempt_unit(h->now) - (__u32)found) & ATTEMPT_TIME_MASK) <= ATTEMPT_MEMORY_UNITS;
}

/* note_answered remembers an attempt that was answered now. */
static __always_inline void note_answered(const struct half *h, enum flat_side side, __u32 isn)
{
	__u64 hash = attempt_hash(side, h->hash, isn);
	struct flat_attempt_set *set = attempts_of(hash);
	__u32 now = attempt_unit(h->now), oldest = 0;
	__u64 way = 0;

	if (!set)
		return;
#pragma unroll
	for (int i = 0; i < ATTEMPT_WAYS; i++) {
		__u64 word = set->ways[i];
		__u32 age = word ? (now - (__u32)word) & ATTEMPT_TIME_MASK : ATTEMPT_TIME_MASK;

		way = age >= oldest ? i : way;
		oldest = age >= oldest ? age : oldest;
	}
	barrier_var(way);
	set->ways[way & (ATTEMPT_WAYS - 1)] = tag_of(hash) | now;
	if (oldest <= ATTEMPT_MEMORY_UNITS)
		count(COUNT_ATTEMPTS_FORGOTTEN);
}
