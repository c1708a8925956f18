/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table of open requests: find(), take_slot(), enter() and take_out().
 *
 * A request is known by the hash of its key. The hash names a slot. As a rule few
 * requests are open at a time: each lies in its slot, found without a helper, in
 * memory that stays in the CPU's cache. A request whose slot is in use goes into
 * the hash map of its side, and the slot counts it.
 *
 * The first word of a slot has the tag of the hash of the request in it, or 0, and
 * below that the number of requests in the hash map whose slot it is. As both are in
 * one word, a request cannot come into both places (model: ONE_WORD): a slot is taken
 * by turning the word from 0, by compare-and-swap.
 *
 * Linux before 5.12 has no compare-and-swap: there all requests are in the hash maps.
 */
#pragma once

#include <linux/errno.h>

#include "half.h"

static __always_inline struct flat_slot *slot_of(enum flat_side side, __u64 hash)
{
	__u32 index = (hash & (SLOTS - 1)) + (side == SIDE_CLIENT ? 0 : SLOTS);

	return have_slots ? bpf_map_lookup_elem(&flat_slots, &index) : 0;
}

static __always_inline bool same_key(const struct flat_key *one, const struct flat_key *other)
{
	const __u64 *a = (const void *)one, *b = (const void *)other;
	__u64 differ = 0;

#pragma unroll
	for (__u32 i = 0; i < sizeof(*one) / sizeof(*a); i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

static __always_inline void *open_map(enum flat_side side)
{
	return side == SIDE_CLIENT ? (void *)&flat_ours : (void *)&flat_theirs;
}

/* has_others reports whether a request with this slot may be in the hash map. */
static __always_inline bool has_others(const struct flat_slot *slot)
{
	return slot ? slot->word & ((1U << TAG_SHIFT) - 1) : !have_slots;
}

/* find_hash is the open request of a side that is known by a hash, or 0. */
static __always_inline struct flat_request *find_hash(enum flat_side side, __u64 hash)
{
	struct flat_slot *slot = slot_of(side, hash);
	struct flat_open *open;

	if (slot && has_tag(slot->word, hash))
		return &slot->request;
	if (!has_others(slot))
		return 0;
	open = bpf_map_lookup_elem(open_map(side), &hash);
	return open ? &open->request : 0;
}

/* find is the open request of a side with this key, or 0. */
static __always_inline struct flat_request *find(enum flat_side side, const struct flat_key *key,
						 __u64 hash)
{
	struct flat_request *found = find_hash(side, hash);

	return found && same_key(&found->key, key) ? found : 0;
}

/*
 * version_of is the version of an open request: of this hash, since this time. An
 * entry may become another request's at any moment after it was found; its version
 * then differs (model: KEY_IN_SEAL).
 */
static __always_inline __u64 version_of(__u64 hash, __u64 first_ns)
{
	return first_ns ^ hash;
}

/*
 * publish makes a request that lies in its place one that can be found and ended. The id
 * comes after the rest, for whoever looks for the request compares the whole key, and the
 * version last: before that nobody can claim it (model: SEAL_LAST).
 */
static __always_inline void publish(struct flat_request *request, __u64 id, __u64 hash)
{
	barrier();
	request->key.id = id;
	barrier();
	request->version = version_of(hash, request->first_ns);
}

/*
 * take_slot makes the slot of a new request the caller's, who fills and publishes it, or
 * returns 0 if it is in use.
 */
static __always_inline struct flat_request *take_slot(enum flat_side side, __u64 hash)
{
	struct flat_slot *slot = slot_of(side, hash);

	return slot && !slot->word && change(&slot->word, 0, tag_of(hash)) ? &slot->request : 0;
}

/*
 * enter takes a new request, whose slot is in use, into the hash map. It returns a negative
 * error number: -EEXIST if the request is known, another one if there is no room.
 */
static __always_inline int enter(enum flat_side side, struct flat_open *open, __u64 hash)
{
	struct flat_slot *slot = slot_of(side, hash);
	struct flat_open *inside;
	int failed = 0; /* an int: before Linux 6.4 helpers leave the upper half as it is */

	/* model: OTHERS_FIRST, before it is inserted */
	if (slot && has_tag(fetch_add(&slot->word, 1), hash))
		failed = -EEXIST; /* it is there, or just being written */
	if (!failed)
		failed = bpf_map_update_elem(open_map(side), &hash, open, BPF_NOEXIST);
	if (failed) {
		if (slot)
			__sync_fetch_and_add(&slot->word, -1);
		return failed;
	}
	inside = bpf_map_lookup_elem(open_map(side), &hash);
	if (inside)
		publish(&inside->request, open->request.key.id, hash);
	return 0;
}

/*
 * take_out removes a request that the caller has claimed. One call for each map:
 * where the kernel knows which map a call is about, it calls that map's function
 * straight.
 */
static __always_inline void take_out(enum flat_side side, __u64 hash)
{
	struct flat_slot *slot = slot_of(side, hash);
	int failed;

	if (slot && has_tag(slot->word, hash)) {
		slot->request.key.id = 0; /* nobody's, before the slot is free; model: KEY_FIRST */
		barrier();
		clear_bits(&slot->word, ~0ULL << TAG_SHIFT);
		return;
	}
	if (side == SIDE_CLIENT) {
		failed = bpf_map_delete_elem(&flat_ours, &hash);
		barrier(); /* or clang makes one call of the two */
	} else {
		failed = bpf_map_delete_elem(&flat_theirs, &hash);
	}
	if (!failed && slot)
		__sync_fetch_and_add(&slot->word, -1);
}

/*
 * claim_since makes the caller the one who ends the open request of this hash and
 * time, and returns whether nobody else was faster and the entry is still that
 * request's. Until the caller takes it out, the entry stays as it is. model: SEAL
 */
static __always_inline bool claim_since(struct flat_request *found, __u64 hash, __u64 first_ns)
{
	return change_locked(&found->version, version_of(hash, first_ns), 0,
			     &((struct flat_open *)found)->lock);
}

/* claim is claim_since for whichever request of this hash is in the entry. */
static __always_inline bool claim(struct flat_request *found, __u64 hash)
{
	return claim_since(found, hash, found->first_ns);
}
