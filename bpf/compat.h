/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * All that differs between the two objects made of flat.c. The object `flat` needs
 * Linux 5.12: 32-bit arithmetic and atomics that return a value (5ffa25502b5a).
 * `flat510`, compiled with FLAT_510, is the exception: for Linux 5.10 and 5.11, and
 * for a kernel whose verifier refuses `flat`.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

/*
 * A separate function, and "used", or clang leaves in the return register what
 * happens to be there where no caller looks at it: the verifier does.
 */
#define __subprogram static __noinline __attribute__((used))

#ifdef FLAT_510

#define have_slots false	/* taking one needs a compare-and-swap */
#define have_current false	/* bpf_get_current_cgroup_id() and its like in tc: Linux 6.10 */
#define have_coarse_clock false /* bpf_ktime_get_coarse_ns(): Linux 5.11 */

/* A word that lies in a map's value beside the lock that makes changing it atomic. */
#define version_lock struct bpf_spin_lock

/* Before Linux 5.12 (e5069b9c23b3) the verifier checks functions alone only if their arguments are
 * numbers. */
#define __checked_alone __subprogram
/* That saves room on the stack, and the verifier of Linux 7.2 refuses is_ours_to_begin() and
 * begin_in_map() as separate functions: it takes what they read of their caller's caller for
 * never read again. */
#define __checked_or_inline static __always_inline

/* clang needs more of the stack here: a function that has to leave some to its caller. */
#define __own_frame __subprogram

/*
 * change turns one word into another. Without a compare-and-swap, of two changes at
 * one moment one is lost.
 */
static __always_inline bool change(__u64 *word, __u64 from, __u64 to)
{
	(void)from;
	*word = to;
	return true;
}

/* change_locked is change, alone among those that use this lock. */
static __always_inline bool change_locked(__u64 *word, __u64 from, __u64 to,
					  struct bpf_spin_lock *lock)
{
	bool was;

	bpf_spin_lock(lock);
	was = *word == from;
	if (was)
		*word = to;
	bpf_spin_unlock(lock);
	return was;
}

/* change_by is change_locked by a lock that is elsewhere, not in the value with the word. */
#define change_by change_locked

/* Of slots, which nobody takes here. */
static __always_inline __u64 fetch_add(__u64 *word, __u64 number)
{
	__u64 was = *word;

	*word += number;
	return was;
}

static __always_inline void clear_bits(__u64 *word, __u64 bits)
{
	*word &= ~bits;
}

/* next_number adds 1 and returns the sum. */
static __always_inline __u64 next_number(__u64 *number, struct bpf_spin_lock *lock)
{
	__u64 next;

	bpf_spin_lock(lock);
	next = ++*number;
	bpf_spin_unlock(lock);
	return next;
}

#else

#define have_slots true
#define have_current true
#define have_coarse_clock true

#define version_lock __u32 /* unused: what is mapped by user space must not have a lock */

/*
 * The verifier checks such a function once, not anew for each way to it: it trusts
 * the types of the arguments and treats the memory behind them as scalars. So that
 * memory must hold no pointer nor, before Linux 6.3, padding that was never written.
 */
#define __checked_alone __noinline
#define __checked_or_inline __noinline

#define __own_frame static __always_inline

static __always_inline bool change(__u64 *word, __u64 from, __u64 to)
{
	return __sync_val_compare_and_swap(word, from, to) == from;
}

static __always_inline bool change_locked(__u64 *word, __u64 from, __u64 to, __u32 *lock)
{
	(void)lock;
	return change(word, from, to);
}

static __always_inline bool change_by(__u64 *word, __u64 from, __u64 to, struct bpf_spin_lock *lock)
{
	(void)lock;
	return change(word, from, to);
}

static __always_inline __u64 fetch_add(__u64 *word, __u64 number)
{
	return __sync_fetch_and_add(word, number);
}

static __always_inline void clear_bits(__u64 *word, __u64 bits)
{
	__sync_fetch_and_and(word, ~bits);
}

static __always_inline __u64 next_number(__u64 *number, struct bpf_spin_lock *lock)
{
	(void)lock;
	return __sync_fetch_and_add(number, 1) + 1;
}

#endif
