/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Open requests: remember() takes one in, finish() takes its answer.
 */
#pragma once

#include <linux/errno.h>

#include "filter.h"
#include "owner.h"
#include "report.h"
#include "seat.h"

/*
 * seal_of is the seal of an open request: of this key, since this time. An entry
 * may become another request's at any moment after it was looked up, which then
 * shows in its seal.
 */
static __always_inline __u64 seal_of(__u64 hash, __u64 first_ns)
{
	return first_ns ^ hash;
}

/*
 * own breaks the seal of an open request, and returns whether it was not broken
 * yet. Until its owner takes it out of the table or says what has become of it, the
 * entry stays as it is.
 */
static __always_inline bool own(__u64 hash, struct flat_pending *found)
{
	__u64 seal = seal_of(hash, found->first_ns);
#ifdef FLAT_512
	return change(&found->seal, seal, 0);
#else
	bool whole;

	bpf_spin_lock(&found->lock);
	whole = found->seal == seal;
	if (whole)
		found->seal = 0;
	bpf_spin_unlock(&found->lock);
	return whole;
#endif
}

/* new_request is what the table keeps of a request, as of now. */
static __always_inline void new_request(const struct __sk_buff *skb, const struct half *h,
					struct flat_pending *request)
{
	__builtin_memset(request, 0, sizeof(*request)); /* a literal is cleared octet by octet */
	request->seal = seal_of(h->hash, h->now);
	request->first_ns = h->now;
	request->last_ns = h->now;
	request->ifindex = skb->ifindex;
	request->isn = h->isn;
	request->payload = h->payload;
	request->first_tsval = h->tsval;
	request->last_tsval = h->tsval;
	request->vlan = h->vlan;
	request->ttl = h->ttl;
	request->flags = h->flags;
}

static __always_inline bool is_open(const struct flat_pending *found)
{
	return found->state == STATE_OPEN || found->state == STATE_HALF_OPEN;
}

/*
 * find_in_table looks for a request with a copy of the key, as do all that use a key
 * in a __checked_alone function: there Linux 6.1 takes none but from the stack.
 */
static __always_inline struct flat_pending *find_in_table(enum flat_side side,
							  const struct flat_key *key)
{
	struct flat_key copy = *key;

	return bpf_map_lookup_elem(table_of(side), &copy);
}

/* find_request is what is known of the request of a side with this key, or 0. */
static __always_inline struct flat_pending *find_request(enum flat_side side,
							 const struct flat_key *key, __u64 hash)
{
	struct flat_seat *seat = seat_of(side, hash);

	if (seat && is_seated(seat, key, hash))
		return request_in(seat);
	return has_others(seat) ? find_in_table(side, key) : 0;
}

/* found_asking is what is known of the request that a packet may be. */
static __always_inline struct flat_pending *found_asking(struct half *h)
{
	return find_request(side_of_request(h->direction), &h->key, h->hash);
}

/* found_answering is what is known of the request that a packet may answer. */
static __always_inline struct flat_pending *found_answering(struct half *h)
{
	return find_request(side_of_answer(h->direction), &h->key, h->hash);
}

/* enter_table puts a new request into the table of its side, or returns a negative error number. */
static __always_inline int enter_table(enum flat_side side, struct flat_seat *seat,
				       const struct flat_key *key,
				       const struct flat_pending *request)
{
	struct flat_key copy = *key;
	int failed; /* an int: before Linux 6.4 helpers leave the upper half as it is */

	add_others(seat, 1);
	failed = bpf_map_update_elem(table_of(side), &copy, request, BPF_NOEXIST);
	if (failed)
		add_others(seat, -1);
	return failed;
}

/*
 * enter puts a new request into its seat, or else into the table. It returns a
 * negative error number: -EEXIST if the request is known.
 */
static __always_inline int enter(enum flat_side side, struct flat_seat *seat, struct half *h,
				 const struct flat_pending *request)
{
	if (seat && !seat->holder) {
		/* From when the seat was another's. */
		if (has_others(seat) && find_in_table(side, &h->key))
			return -EEXIST;
		if (take_seat(seat, h, request))
			return 0;
	}
	if (seat && has_tag(seat->holder, h->hash))
		return -EEXIST; /* it is there, or just coming */
	return enter_table(side, seat, &h->key, request);
}

/*
 * forget deletes a request. One call for each table: where the kernel knows which
 * map a call is about, it calls that map's function straight.
 */
static __always_inline void forget(enum flat_side side, const struct half *h, bool owned)
{
	struct flat_seat *seat = seat_of(side, h->hash);
	struct flat_key key;
	int failed;

	if (seat && is_seated(seat, &h->key, h->hash)) {
		leave_seat(seat, owned);
		return;
	}
	key = h->key;
	if (side == SIDE_CLIENT) {
		failed = bpf_map_delete_elem(&flat_ours, &key);
		barrier(); /* or clang makes one call of the two */
	} else {
		failed = bpf_map_delete_elem(&flat_theirs, &key);
	}
	if (!failed)
		add_others(seat, -1);
}

/* is_current tells an exchange that goes on from one that has long been over. */
static __always_inline bool is_current(const struct flat_options *s, const struct half *h,
				       const struct flat_pending *found)
{
	return found && elapsed(h, found->last_ns) < udp_idle(s);
}

/*
 * is_repeat tells a request sent again from a new one of the same five-tuple:
 * a SYN has its sequence number, others are repeats until the flow is idle.
 */
static __always_inline bool is_repeat(const struct flat_options *s, const struct half *h,
				      const struct flat_pending *found)
{
	return found->isn == h->isn && (h->key.kind == KIND_TCP || is_current(s, h, found));
}

/* repeat notes that a request was sent again. One that is not found is just being finished. */
static __always_inline void repeat(const struct half *h, struct flat_pending *found)
{
	if (found) {
		found->last_ns = h->now;
		found->last_tsval = h->tsval;
		found->repeats++;
	}
	count(COUNT_REPEATS);
}

/*
 * remember takes a request in, and returns whether it is new and measured. Most
 * are new, and are spared a lookup.
 */
__checked_alone bool remember(struct __sk_buff *skb, struct flat_options *s, struct half *h)
{
	struct flat_pending *found = 0;
	struct flat_pending request;
	struct flat_seat *seat;
	enum flat_side side;
	bool is_wanted;
	int failed = 0;

	if (!s || !h)
		return false; /* never, but the verifier looks at this function alone */
	side = side_of_request(h->direction);
	is_wanted = wanted(s, h, side);
	if (!is_wanted)
		found = found_asking(h); /* from before the filter was such */
	if (found && is_repeat(s, h, found)) {
		repeat(h, found);
		return false;
	}
	if (!is_wanted) {
		count(COUNT_FILTERED);
		return false;
	}

	if (h->key.kind == KIND_TCP)
		open_gate(side == SIDE_CLIENT ? GATE_OUR_SYNS : GATE_THEIR_SYNS, h->now);
	new_request(skb, h, &request);
	if (side == SIDE_CLIENT) {
		own_socket(skb, &request.cgroup, &request.uid);
		own_process(skb, h, &request);
	}
	seat = seat_of(side, h->hash);
	if (have_seats && !seat)
		return false; /* never */
	if (!found) {
		failed = enter(side, seat, h, &request);
		if (failed == -EEXIST) {
			found = found_asking(h);
			if (!found || is_repeat(s, h, found)) {
				repeat(h, found);
				return false;
			}
		}
	}
	if (found) {
		bool open = is_open(found);

		if (open) {
			if (!own(h->hash, found)) {
				repeat(h, 0);
				return false;
			}
			count(COUNT_REPLACED);
		}
		forget(side, h, open);
		failed = enter_table(side, seat, &h->key, &request);
	}
	count(COUNT_REQUESTS);
	if (failed)
		count(COUNT_PENDING_FULL);
	trace("request kind %d side %d id %x", h->key.kind, side, h->key.id);
	return true;
}

/*
 * finish closes an open exchange, unless the sweep or another CPU was faster.
 * It returns whether it did.
 */
__checked_alone bool finish(struct __sk_buff *skb, struct flat_options *s, struct half *h,
			    struct flat_pending *found, struct answer *a)
{
	__u64 duration;

	if (!s || !h || !found || !a || !own(h->hash, found))
		return false;
	/* Two CPUs may see request and answer with clocks a little apart. */
	if (found->first_ns > a->at_ns)
		found->first_ns = a->at_ns;
	if (found->last_ns > a->at_ns)
		found->last_ns = a->at_ns;
	duration = a->at_ns - found->first_ns;

	count(COUNT_FINISHED);
	trace("answer kind %d result %d in %llu ns", h->key.kind, a->result, duration);
	observe_duration(h, a, found->ifindex, duration);
	if (s->skip_results & result_bit(h, a))
		count(COUNT_RESULT_OUT);
	else if (a->success && duration < s->min_duration_ns)
		count(COUNT_TOO_FAST);
	else if (a->success && s->sample > 1 && bpf_get_prandom_u32() % s->sample)
		count(COUNT_SAMPLED_OUT);
	else
		report(skb, h, found, a);

	if (a->keep) {
		found->last_ns = h->now;
		found->state = a->keep;
	} else {
		forget(a->side, h, true);
	}
	return true;
}

/* answer looks for the open request that a packet answers, and finishes it. */
static __always_inline void answer(struct __sk_buff *skb, struct flat_options *s, struct half *h,
				   struct flat_pending *found, struct answer *a)
{
	if (!found) {
		count(COUNT_UNMATCHED);
		return;
	}
	if (found->state != STATE_OPEN) {
		count(COUNT_LATE);
		return;
	}
	if (a->side == SIDE_SERVER && a->result == RESULT_ANSWERED && h->key.kind != KIND_ICMP)
		own_socket(skb, &found->cgroup, &found->uid);
	if (!finish(skb, s, h, found, a))
		count(COUNT_LATE);
}

/* What the daemon's sweep wants to claim. */
struct flat_overdue {
	struct flat_key key;
	__u64 first_ns;
	__u64 side; /* enum flat_side */
};

/*
 * claim makes the daemon the owner of a request that had no answer in time. It
 * stays in the table, so that what else belongs to it is known for that.
 */
static __always_inline bool claim(const struct flat_overdue *c)
{
	__u64 hash = key_hash(&c->key);
	struct flat_pending *found = find_request(c->side, &c->key, hash);

	if (!found || !is_open(found) || found->first_ns != c->first_ns || !own(hash, found))
		return false;
	found->state = STATE_REPORTED;
	return true;
}
