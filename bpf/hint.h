/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Hints: which open request it must be where an answer does not say it all. A hint
 * counts the open requests that have something in common and adds up their hashes:
 * where there is only one, the sum is its hash.
 *
 * A DNS request has a hint of its tuple, for answers without a question and for ICMP
 * errors that quote no more than the ports.
 *
 * Where addresses are translated between the two hooks of a device, an answer has
 * another near end (masquerade behind a bridge whose packets go through netfilter)
 * or another far end (REDIRECT and DNAT on lo) than its request. There each request
 * has hints of one end and what NAT leaves alone: of TCP the sequence number, of DNS
 * id and question, of ICMP id and sequence, of UDP only the other port. User space
 * names these devices.
 *
 * Hints are a bounded memory: a request that finds no room has none.
 */
#pragma once

#include "table.h"

enum hint {
	HINT_TUPLE,
	HINT_FAR,
	HINT_NEAR,
	HINT_CONTENT, /* neither end */
	HINTS_OF_A_REQUEST,
};

/* The trait of a request that a hint counts it. */
static __always_inline __u8 hint_trait(enum hint which)
{
	return REQUEST_HINTED << which;
}

static __always_inline bool is_translating(__u32 ifindex)
{
	__u32 bit = ifindex & (TRANSLATING_BITS - 1);

	return flat_shared.translating[bit >> 5] >> (bit & 31) & 1;
}

/* hash_end takes an end into a hash. */
static __always_inline __u64 hash_end(__u64 hash, const union flat_addr *addr, __be16 port)
{
	return mixed(mixed(mixed(hash, addr->halves[0]), addr->halves[1]), port);
}

/*
 * hint_hash is that of a hint, of a request or of an answer. isn is that of the SYN,
 * or what the answer acknowledges.
 */
static __always_inline __u64 hint_hash(enum hint which, const struct flat_key *key, __u32 isn)
{
	enum flat_kind kind = kind_of(key);
	__u64 content = kind == KIND_TCP ? isn : kind == KIND_UDP ? key->local_port : 0;
	__u64 hash = mixed(flat_shared.seed, (__u64)key->ifindex << 8 | which);

	if (which == HINT_TUPLE)
		return hash_end(hash_end(hash, &key->local, key->local_port), &key->remote,
				key->remote_port);
	hash = mixed(mixed(hash, key->id), content);
	if (which == HINT_FAR)
		return hash_end(hash, &key->remote, key->remote_port);
	if (which == HINT_NEAR)
		return hash_end(hash, &key->local, key->local_port);
	return hash;
}

/* A hint is in one of two places of one cache line. */
static __always_inline struct flat_hint *hint_place(__u64 hash, int choice)
{
	__u32 place = (hash ^ choice) & (HINTS - 1);

	return bpf_map_lookup_elem(&flat_hints, &place);
}

static __always_inline __u32 hint_number(const struct flat_hint *hint)
{
	return hint->word & ((1U << TAG_SHIFT) - 1);
}

static __always_inline struct flat_hint *find_hint(__u64 hash)
{
	struct flat_hint *one = hint_place(hash, 0), *other = hint_place(hash, 1);

	if (one && has_tag(one->word, hash))
		return one;
	return other && has_tag(other->word, hash) ? other : 0;
}

/* take_hint makes a place that counts nothing this hint's. */
static __always_inline bool take_hint(struct flat_hint *hint, __u64 hash, __u64 request)
{
	__u64 was;

	if (!hint)
		return false;
	was = hint->word;
	if (was & ((1U << TAG_SHIFT) - 1) || !change(&hint->word, was, tag_of(hash) | 1))
		return false;
	hint->sum = request;
	hint->untraced_ns = 0;
	return true;
}

/* enter_hint counts a request, and returns whether there was room. */
static __always_inline bool enter_hint(__u64 hash, __u64 request)
{
	struct flat_hint *hint = find_hint(hash);

	if (!hint || !hint_number(hint))
		return take_hint(hint_place(hash, 0), hash, request) ||
		       take_hint(hint_place(hash, 1), hash, request);
	__sync_fetch_and_add(&hint->word, 1);
	__sync_fetch_and_add(&hint->sum, request);
	return true;
}

static __always_inline bool leave_place(struct flat_hint *hint, __u64 hash, __u64 request)
{
	if (!hint || !has_tag(hint->word, hash) || !hint_number(hint))
		return false;
	__sync_fetch_and_add(&hint->sum, -request);
	__sync_fetch_and_add(&hint->word, -1);
	return true;
}

/* leave_hint looks at both places: two CPUs that begin a hint at one moment may take one each. */
static __always_inline void leave_hint(__u64 hash, __u64 request)
{
	if (!leave_place(hint_place(hash, 0), hash, request))
		leave_place(hint_place(hash, 1), hash, request);
}

/* only_request is the hash of the only open request of a hint, or 0; it may be over by now. */
static __always_inline __u64 only_request(__u64 hash)
{
	struct flat_hint *hint = find_hint(hash);

	return hint && hint_number(hint) == 1 ? hint->sum : 0;
}

/* has_hint reports whether a request is to have a hint. */
static __always_inline bool has_hint(enum hint which, const struct flat_key *key, __u32 ifindex)
{
	if (which == HINT_TUPLE)
		return kind_of(key) == KIND_DNS;
	/* Of a datagram that is translated nothing is left but the far end and the near port. */
	return is_translating(ifindex) && (which == HINT_FAR || kind_of(key) != KIND_UDP);
}

/* enter_hints counts a request in all its hints. */
__checked_alone int enter_hints(struct flat_request *r, struct half *h)
{
	if (!r || !h)
		return 0; /* never, but the verifier looks at this function alone */
#pragma unroll
	for (int which = 0; which < HINTS_OF_A_REQUEST; which++)
		if (has_hint(which, &h->key, r->ifindex) &&
		    enter_hint(hint_hash(which, &h->key, h->isn), h->hash))
			r->traits |= hint_trait(which);
	return 0;
}

/* leave_hints is called once for each request that is over. */
__checked_alone int leave_hints(struct flat_request *r, __u64 hash)
{
	if (!r)
		return 0;
#pragma unroll
	for (int which = 0; which < HINTS_OF_A_REQUEST; which++)
		if (r->traits & hint_trait(which))
			leave_hint(hint_hash(which, &r->key, r->isn), hash);
	return 0;
}

/* may_be_untraced reports whether an answer came that may be this request's, or another's. */
static __always_inline bool may_be_untraced(const struct flat_request *r)
{
#pragma unroll
	for (int which = HINT_FAR; which < HINTS_OF_A_REQUEST; which++) {
		struct flat_hint *hint = 0;

		if (r->traits & hint_trait(which))
			hint = find_hint(hint_hash(which, &r->key, r->isn));
		if (hint && hint->untraced_ns >= r->first_ns)
			return true;
	}
	return false;
}
