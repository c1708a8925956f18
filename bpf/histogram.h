/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Log-linear latency histograms: four buckets to each power of two, so a
 * bucket is at most a fifth of its value wide. They count every finished
 * exchange, also those that are filtered, sampled out or lost to a full ring.
 */
#pragma once

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

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
	__u16 rcode; /* of a DNS answer */
	__u16 spare[3];
};

struct flat_histogram {
	__u64 sum_ns;
	__u64 buckets[HISTOGRAM_BUCKETS];
};

/* is_any is 1 unless the value, which is less than 2^63, is 0. */
static __always_inline __u64 is_any(__u64 value)
{
	value = -value;
	barrier_var(value); /* or clang makes it a comparison, and a branch of that */
	return value >> 63;
}

/* log2_floor has no branches, for the verifier would follow each both ways. */
static __always_inline __u32 log2_floor(__u64 value)
{
	__u64 log = 0;

#pragma unroll
	for (int half = 32; half >= 1; half /= 2) {
		__u64 step = is_any(value >> half) * half;

		log += step;
		value >>= step;
	}
	return log;
}

/* histogram_bucket returns less than HISTOGRAM_BUCKETS. */
static __always_inline __u32 histogram_bucket(__u64 ns)
{
	__u32 exponent = log2_floor(ns);

	if (exponent < HISTOGRAM_FIRST_EXPONENT)
		return 0;
	if (exponent >= HISTOGRAM_LAST_EXPONENT)
		return HISTOGRAM_BUCKETS - 1;
	return 1 + 4 * (exponent - HISTOGRAM_FIRST_EXPONENT) + ((ns >> (exponent - 2)) & 3);
}
