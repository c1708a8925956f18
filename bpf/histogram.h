/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Log-linear latency histograms: four buckets to each power of two, so a
 * bucket is at most a fifth of its value wide. They count every finished
 * exchange, also those that are filtered, sampled out or lost to a full ring.
 */
#pragma once

#include <linux/types.h>

/*
 * Bucket 0 holds durations under 2^10 ns (about 1 us), the last one those of
 * 2^37 ns (137 s) and more. Bucket 1 + 4 * (e - 10) + q holds [2^e * (1 + q/4),
 * 2^e * (1 + (q+1)/4)) ns.
 */
#define HISTOGRAM_FIRST_EXPONENT 10
#define HISTOGRAM_LAST_EXPONENT 37
#define HISTOGRAM_BUCKETS (4 * (HISTOGRAM_LAST_EXPONENT - HISTOGRAM_FIRST_EXPONENT) + 2)

struct flat_histogram_key {
	__u32 ifindex;
	__u8 kind;   /* enum flat_kind */
	__u8 side;   /* enum flat_side */
	__u8 result; /* enum flat_result */
	__u8 ipv6;
};

struct flat_histogram {
	__u64 sum_ns;
	__u64 buckets[HISTOGRAM_BUCKETS];
};

static __always_inline __u32 log2_floor(__u64 value)
{
	__u32 log = 0;

	if (value >> 32) {
		log += 32;
		value >>= 32;
	}
	if (value >> 16) {
		log += 16;
		value >>= 16;
	}
	if (value >> 8) {
		log += 8;
		value >>= 8;
	}
	if (value >> 4) {
		log += 4;
		value >>= 4;
	}
	if (value >> 2) {
		log += 2;
		value >>= 2;
	}
	return log + (value >> 1);
}

/*
 * A global function: the verifier looks at it once, by itself, and afterwards
 * not at each bucket anew.
 */
__noinline __u32 histogram_bucket(__u64 ns)
{
	__u32 exponent = log2_floor(ns);

	if (exponent < HISTOGRAM_FIRST_EXPONENT)
		return 0;
	if (exponent >= HISTOGRAM_LAST_EXPONENT)
		return HISTOGRAM_BUCKETS - 1;
	return 1 + 4 * (exponent - HISTOGRAM_FIRST_EXPONENT) + ((ns >> (exponent - 2)) & 3);
}
