/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Seats, one of which the hash of a request's key names. As a rule few requests
 * wait at a time: they all have theirs, found without a helper, in memory that stays
 * in the CPU's cache. One whose seat is taken goes into the table of its side, and the
 * seat says that there is one.
 *
 * Whoever turns a holder from 0 has the seat, by compare-and-swap, and who owns the
 * request in it (pending.h) makes it 0 again. The seal is of the request that is
 * there, so that one who is still looking at the one before it cannot own this one.
 * Linux before 5.12 has no compare-and-swap, so that nobody takes a seat there.
 */
#pragma once

#include "half.h"

/* A holder: the tag of the hash, and below it, for user space, so much of first_ns. */
#define HOLDER_TIME_MASK ((1U << TAG_SHIFT) - 1)

/* Whoever has this in the place of a holder is about to end it. */
#define HOLDER_LEAVING 1

#ifdef FLAT_512
#define have_seats true
#else
#define have_seats false
#endif

static __always_inline struct flat_seat *seat_of(enum flat_side side, __u64 hash)
{
	__u32 index = (hash & (SEATS - 1)) + (side == SIDE_CLIENT ? 0 : SEATS);

	return have_seats ? bpf_map_lookup_elem(&flat_seats, &index) : 0;
}

static __always_inline bool is_seated(const struct flat_seat *seat, const struct flat_key *key,
				      __u64 hash)
{
	const __u64 *a = (const void *)&seat->key, *b = (const void *)key;
	__u64 differ = 0;

	if (!has_tag(seat->holder, hash))
		return false;
#pragma unroll
	for (__u32 i = 0; i < sizeof(*key) / sizeof(*a); i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

static __always_inline struct flat_pending *request_in(struct flat_seat *seat)
{
	return (struct flat_pending *)&seat->request;
}

/* has_others reports whether a request with this seat may be in the table. */
static __always_inline bool has_others(const struct flat_seat *seat)
{
	return seat ? seat->others : !have_seats;
}

/* add_others is called before one is put there, and after it was deleted. */
static __always_inline void add_others(struct flat_seat *seat, int number)
{
	if (seat)
		__sync_fetch_and_add(&seat->others, number);
}

/* take_seat seats a request, if nobody else was faster. */
static __always_inline bool take_seat(struct flat_seat *seat, const struct half *h,
				      const struct flat_pending *request)
{
	__u64 holder = tag_of(h->hash) | (request->first_ns & HOLDER_TIME_MASK);

	if (!change(&seat->holder, 0, holder))
		return false;
	*request_in(seat) = *request;
	barrier(); /* the key last: it is how others find the rest */
	seat->key = h->key;
	return true;
}

/* leave_seat empties a seat. Where nobody owns the request, user space may do so at this moment. */
static __always_inline void leave_seat(struct flat_seat *seat, bool owned)
{
	__u64 holder = seat->holder;

	if (!owned && !change(&seat->holder, holder, HOLDER_LEAVING))
		return;
	seat->key.kind = 0; /* nobody's */
	barrier();
	seat->holder = 0;
}
