/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of a request: track_request() takes one in, answer() ends it by its
 * answer, and timeout.h without one.
 */
#pragma once

#include "attribution.h"
#include "filter.h"
#include "handover.h"
#include "hint.h"
#include "question.h"
#include "report.h"
#include "table.h"

/* For how long requests without an answer are remembered, at most. */
#define RECENT_NS (70ULL * 1000 * 1000 * 1000)

static __always_inline void *recent_map(enum flat_side side)
{
	return side == SIDE_CLIENT ? (void *)&flat_recent_ours : (void *)&flat_recent_theirs;
}

/* may_be_recent reports whether a request may be remembered. */
static __always_inline bool may_be_recent(__u64 now)
{
	return flat_shared.recent_ns && (__s64)(now - flat_shared.recent_ns) <= (__s64)RECENT_NS;
}

/* find_recent is the request of a side with this key that is remembered, or 0. */
static __always_inline struct flat_request *find_recent(enum flat_side side, const struct half *h)
{
	__u64 hash = h->hash;
	struct flat_request *found;

	if (!may_be_recent(h->now))
		return 0;
	found = bpf_map_lookup_elem(recent_map(side), &hash);
	return found && found->version && same_key(&found->key, &h->key) ? found : 0;
}

/*
 * The version of a request that is remembered is another than while it was open. A timeout
 * writes it into the entry that is about to be taken out, and whoever found that entry open
 * must not be able to claim it again. model: RECENT_DIFFERS
 */
static __always_inline __u64 recent_version_of(__u64 hash, __u64 first_ns)
{
	return ~version_of(hash, first_ns);
}

/*
 * claim_recent makes the caller the one who ends the request of this hash and time that is
 * remembered. The version has the hash in it, for the element may have become another key's
 * after it was found (model: RECENT_KEY). The element stays, and is nobody's: to delete it
 * could hit one that has taken its place (model: RECENT_SEAL).
 */
static __always_inline bool claim_recent(struct flat_request *found, __u64 hash, __u64 first_ns)
{
	__u32 zero = 0;
	struct flat_numbering *s = bpf_map_lookup_elem(&flat_sequence, &zero);

	/* An LRU map has no locks. */
	return s && change_by(&found->version, recent_version_of(hash, first_ns), 0, &s->lock);
}

/* remember keeps a request that is no longer open. */
static __always_inline void remember(enum flat_side side, struct flat_request *r, __u64 hash,
				     __u64 now)
{
	r->version = recent_version_of(hash, r->first_ns);
	bpf_map_update_elem(recent_map(side), &hash, r, BPF_ANY);
	flat_shared.recent_ns = now;
}

static __always_inline bool is_open(const struct flat_request *found)
{
	return found->state == STATE_OPEN || found->state == STATE_HALF_OPEN;
}

/* is_current separates an exchange that continues from one that is long over. */
static __always_inline bool is_current(const struct half *h, const struct flat_request *found)
{
	return elapsed(h, found->last_ns) < udp_idle();
}

/*
 * is_repeat separates a request sent again from a new one of the same key: a SYN has its
 * sequence number, others are repeats as long as they are open.
 */
static __always_inline bool is_repeat(const struct half *h, const struct flat_request *found)
{
	enum flat_kind kind = kind_of(&h->key);

	if (kind == KIND_TCP)
		return found->isn == h->isn;
	return (found->state == STATE_OPEN || kind == KIND_UDP) && is_current(h, found);
}

/* repeat notes that a request was sent again. One that is not found is just being finished. */
static __always_inline void repeat(const struct half *h, struct flat_request *found)
{
	if (found) {
		found->last_ns = h->now;
		found->last_tsval = h->tsval;
		found->repeats++;
	}
	count(COUNT_REPEATS);
}

/* is_known_repeat reports whether a request belongs to one that is no longer open. */
__checked_alone bool is_known_repeat(struct half *h, __u32 side)
{
	struct flat_request *recent;

	if (!h)
		return false; /* never, but the verifier looks at this function alone */
	if (kind_of(&h->key) == KIND_TCP && is_answered(h, side)) {
		repeat(h, 0);
		return true;
	}
	recent = find_recent(side, h);
	if (!recent)
		return false;
	if (is_repeat(h, recent)) {
		repeat(h, recent);
		return true;
	}
	/* An answer that still comes may be that one's: it goes to this one, the newest. */
	if (kind_of(&h->key) != KIND_TCP)
		h->flags |= RECORD_AMBIGUOUS;
	claim_recent(recent, h->hash, recent->first_ns);
	return false;
}

/* repeats_open notes a request that is open and sent again, and returns whether it is one. */
static __always_inline bool repeats_open(const struct half *h, enum flat_side side)
{
	struct flat_request *found = find(side, &h->key, h->hash);

	if (!found || !is_repeat(h, found))
		return false;
	repeat(h, found);
	return true;
}

/*
 * is_ours_to_begin reports whether these programs are to measure a new request. What
 * they have begun before they finish, whatever has changed.
 */
__checked_or_inline bool is_ours_to_begin(struct __sk_buff *skb, struct flat_options *s,
					  struct half *h)
{
	__u32 phase = flat_shared.phase;
	enum flat_side side;
	bool paused;

	if (!s || !h)
		return false; /* never, but the verifier looks at this function alone */
	/* An interface with programs in one direction alone: answers would not be seen. */
	paused = flat_shared.attaching && flat_shared.attaching == skb->ifindex;
	if (phase == PHASE_ALONE && !paused)
		return true;
	side = side_of_request(h->direction);
	if (repeats_open(h, side))
		return false;
	if (!paused && may_begin_beside(s, h, side, phase))
		return true;
	count(paused ? COUNT_PAUSED : COUNT_HANDED_OVER);
	return false;
}

/* replace ends a request whose key a new one has, and returns whether it was still open. */
static __always_inline bool replace(enum flat_side side, struct flat_request *found, __u64 hash)
{
	if (!is_open(found) || !claim(found, hash))
		return false; /* being finished: the new one is not measured, and nothing is wrong
			       */
	count(COUNT_REPLACED);
	if (found->traits)
		leave_hints(found, hash);
	take_out(side, hash);
	return true;
}

/* leave undoes enter_hints() for a request that is not tracked after all. */
static __always_inline bool leave(struct flat_request *r, struct half *h,
				  struct flat_request *found)
{
	if (r->traits)
		leave_hints(r, h->hash);
	repeat(h, found);
	return false;
}

/*
 * new_request fills a place with what is known of a request as of now: all but the id and
 * the version, which publish() writes.
 */
static __always_inline void new_request(struct __sk_buff *skb, struct half *h, enum flat_side side,
					struct flat_request *r)
{
	r->first_ns = h->now;
	r->last_ns = h->now;
	r->ifindex = skb->ifindex;
	r->state = STATE_OPEN;
	r->traits = 0;
	r->flags = h->flags;
	r->ttl = h->ttl;
	r->key.local = h->key.local;
	r->key.remote = h->key.remote;
	r->key.local_port = h->key.local_port;
	r->key.remote_port = h->key.remote_port;
	r->key.ifindex = h->key.ifindex;
	r->cgroup = 0;
	r->uid = 0;
	r->pid = 0;
	r->comm[0] = 0;
	r->comm[1] = 0;
	r->isn = h->isn;
	r->first_tsval = h->tsval;
	r->last_tsval = h->tsval;
	r->repeats = 0;
	r->payload = h->payload;
	r->vlan = h->vlan;
	r->crossed = false;
	if (side == SIDE_CLIENT) {
		attribute_socket(skb, &r->cgroup, &r->uid);
		attribute_process(skb, h, r);
	}
	if (kind_of(&h->key) == KIND_DNS || is_translating(skb->ifindex))
		enter_hints(r, h);
}

/*
 * begin_in_map takes in a request whose slot is in use, and returns whether it is new. Where
 * the table is full it is remembered, so that its answer can still be reported.
 */
__checked_or_inline bool begin_in_map(struct __sk_buff *skb, struct half *h, __u32 side)
{
	struct flat_scratch_values *values = scratch();
	struct flat_open *open;
	struct flat_request *r;
	int failed;

	if (!h || !values)
		return false; /* never, but the verifier looks at this function alone */
	open = (void *)&values->open;
	r = &open->request;
	new_request(skb, h, side, r);
	r->key.id = h->key.id;
	r->version = 0;
	failed = enter(side, open, h->hash);
	if (failed == -EEXIST) {
		struct flat_request *found = find(side, &h->key, h->hash);

		if (!found || is_repeat(h, found) || !replace(side, found, h->hash))
			return leave(r, h, found);
		failed = enter(side, open, h->hash);
	}
	count(COUNT_REQUESTS);
	if (failed) {
		count(COUNT_PENDING_FULL);
		if (r->traits)
			leave_hints(r, h->hash);
		r->traits = REQUEST_OVERFLOW;
		remember(side, r, h->hash, h->now);
	}
	return true;
}

/* begin takes in a request that is new, as far as is known, and returns whether it is. */
static __always_inline bool begin(struct __sk_buff *skb, struct half *h, enum flat_side side)
{
	struct flat_request *r = take_slot(side, h->hash);

	if (!r)
		return begin_in_map(skb, h, side);
	new_request(skb, h, side, r);
	publish(r, h->key.id, h->hash);
	count(COUNT_REQUESTS);
	return true;
}

/* track_request takes a request in, and returns whether it is new and measured. */
__checked_alone bool track_request(struct __sk_buff *skb, struct flat_options *s, struct half *h)
{
	enum flat_side side;

	if (!s || !h)
		return false; /* never, but the verifier looks at this function alone */
	side = side_of_request(h->direction);
	if (!wanted(s, h, side)) {
		if (!repeats_open(h, side)) /* which may be from before the filter was such */
			count(COUNT_FILTERED);
		return false;
	}
	if (is_known_repeat(h, side) || !is_ours_to_begin(skb, s, h))
		return false;
	trace("request kind %d side %d id %llx", kind_of(&h->key), side, h->key.id);
	return begin(skb, h, side);
}

/* clamp corrects times where two CPUs saw request and answer with clocks a little apart. */
static __always_inline void clamp(struct flat_request *r, __u64 at_ns)
{
	if (r->first_ns > at_ns)
		r->first_ns = at_ns;
	if (r->last_ns > at_ns)
		r->last_ns = at_ns;
}

/* finish counts and reports an exchange that the caller has claimed. */
__checked_or_inline int finish(struct flat_options *s, struct half *h, struct flat_request *r,
			       struct answer *a)
{
	__u64 duration;

	if (!s || !h || !r || !a)
		return 0;
	clamp(r, a->at_ns);
	duration = a->at_ns - r->first_ns;
	trace("answer kind %d result %d in %llu ns", kind_of(&h->key), a->result, duration);
	observe_duration(h, a, r->ifindex, duration);
	if (kind_of(&h->key) == KIND_TCP && a->result != RESULT_UNREACHABLE)
		note_answered(h, a->side, r->isn);
	if (is_left_out(s, h, a))
		count(COUNT_RESULT_OUT);
	else if (a->success && duration < s->min_duration_ns)
		count(COUNT_TOO_FAST);
	else if (a->success && s->sample > 1 && bpf_get_prandom_u32() % s->sample)
		count(COUNT_SAMPLED_OUT);
	else
		report(h, r, a);
	return 0;
}

/* remember_reported keeps a request that goes on after its end was reported. */
__subprogram int remember_reported(const struct flat_request *found, const struct half *h,
				   enum flat_side side)
{
	struct flat_scratch_values *values = scratch();

	if (!values)
		return 0;	  /* never */
	values->request = *found; /* Linux 6.1 takes no memory that it knows only by its type */
	values->request.state = STATE_REPORTED;
	values->request.traits = 0;
	remember(side, &values->request, h->hash, h->now);
	return 0;
}

/*
 * complete_exchange ends an open exchange by its answer, unless a timeout or another
 * CPU was faster. It returns whether it did.
 */
__checked_alone bool complete_exchange(struct flat_options *s, struct half *h,
				       struct flat_request *found, struct answer *a)
{
	if (!s || !h || !found || !a || !claim(found, h->hash))
		return false;
	count(COUNT_FINISHED);
	if (found->traits)
		leave_hints(found, h->hash);
	finish(s, h, found, a);
	if (a->result == RESULT_UNREACHABLE) {
		/* TCP goes on trying all the same; that is not to be a new attempt. */
		remember_reported(found, h, a->side);
	}
	take_out(a->side, h->hash);
	return true;
}

/*
 * complete_recent reports an answer to a request that is remembered: a late one, or
 * one to a request for which the table was full.
 */
__checked_alone bool complete_recent(struct flat_options *s, struct half *h,
				     struct flat_request *found, struct answer *a)
{
	struct flat_scratch_values *values = scratch();

	if (!s || !h || !found || !a || !values)
		return false;
	values->request = *found;
	if (!claim_recent(found, h->hash, values->request.first_ns))
		return false;
	if (values->request.traits & REQUEST_OVERFLOW) {
		count(COUNT_RESCUED);
	} else {
		count(COUNT_LATE);
		a->flags |= RECORD_LATE;
	}
	finish(s, h, &values->request, a);
	return true;
}

/* is_late_answer reports whether an answer may end a request that is remembered. */
static __always_inline bool is_late_answer(const struct flat_request *recent,
					   const struct answer *a)
{
	if (recent->traits & REQUEST_OVERFLOW)
		return true;
	/* Attempts from outside that were not completed are counted alone. */
	return a->side == SIDE_CLIENT || kind_of(&recent->key) != KIND_TCP;
}

/* same_ends compares all of two keys but the id. */
static __always_inline bool same_ends(const struct flat_key *one, const struct flat_key *other)
{
	struct flat_key alike = *other;

	alike.id = one->id;
	return same_key(one, &alike);
}

/* become makes an answer the half of a request that has another key. */
static __always_inline void become(struct half *h, const struct flat_request *found, __u64 hash)
{
	h->key = found->key;
	h->hash = hash;
}

/*
 * trace_hash is the hash of the only request that a translated answer may be of, or 0.
 * Where there are several, or both ends differ, none of them is reported as a timeout.
 */
__checked_alone __u64 trace_hash(struct half *h, __u32 isn)
{
	if (!h)
		return 0;
	for (int which = HINT_FAR; which < HINTS_OF_A_REQUEST; which++) {
		struct flat_hint *hint = find_hint(hint_hash(which, &h->key, isn));
		__u32 number = hint ? hint_number(hint) : 0;

		if (hint && number == 1 && which != HINT_CONTENT)
			return hint->sum;
		if (hint && number) {
			hint->untraced_ns = h->now;
			count(COUNT_UNTRACED);
			return 0;
		}
	}
	return 0;
}

static __always_inline bool same_end(const union flat_addr *one, __be16 port,
				     const union flat_addr *other, __be16 other_port)
{
	return one->halves[0] == other->halves[0] && one->halves[1] == other->halves[1] &&
	       port == other_port;
}

/* find_translated is the open request whose translated answer this is, or 0. */
static __always_inline struct flat_request *
find_translated(const struct __sk_buff *skb, struct half *h, struct answer *a, __u32 isn)
{
	bool client = a->side == SIDE_CLIENT, far;
	struct flat_request *found;
	__u64 hash;

	if (!is_translating(skb->ifindex))
		return 0;
	hash = trace_hash(h, isn);
	found = hash ? find_hash(a->side, hash) : 0;
	if (!found || found->key.id != h->key.id || found->isn != isn)
		return 0;
	far = same_end(&found->key.remote, found->key.remote_port, &h->key.remote,
		       h->key.remote_port);
	if (!far &&
	    !same_end(&found->key.local, found->key.local_port, &h->key.local, h->key.local_port))
		return 0;
	a->nat = far ? h->key.local : h->key.remote;
	a->nat_port = far ? h->key.local_port : h->key.remote_port;
	a->flags |= far == client ? RECORD_NAT_SOURCE : RECORD_NAT_DESTINATION;
	become(h, found, hash);
	return found;
}

/*
 * find_by_tuple is the only open DNS request between these ends, or 0. It has the same id,
 * unless the one in the key is 0 and may stand for none.
 */
static __always_inline struct flat_request *find_by_tuple(struct half *h, enum flat_side side,
							  bool may_be_none)
{
	__u64 hash = only_request(hint_hash(HINT_TUPLE, &h->key, 0));
	struct flat_request *found = hash ? find_hash(side, hash) : 0;

	if (!found || !same_ends(&h->key, &found->key) || kind_of(&found->key) != KIND_DNS)
		return 0;
	if ((found->key.id ^ h->key.id) >> DNS_ID_SHIFT &&
	    (!may_be_none || h->key.id >> DNS_ID_SHIFT & 0xffff))
		return 0;
	become(h, found, hash);
	return found;
}

/*
 * end_request ends what find() or find_recent() has found, by its answer. isn is that of
 * the SYN that is acknowledged.
 */
static __always_inline void end_request(struct __sk_buff *skb, struct flat_options *s,
					struct half *h, struct flat_request *open,
					struct flat_request *recent, struct answer *a, __u32 isn)
{
	struct flat_request *found = open ? open : recent;
	enum flat_kind kind = kind_of(&h->key);

	/* Also where it is found: after a roll-back both may have it open. */
	if (flat_shared.phase != PHASE_ALONE)
		forget_seen(h, a->side, isn);
	if (!found) {
		count(COUNT_UNMATCHED);
		return;
	}
	if (a->side == SIDE_SERVER && a->result == RESULT_ANSWERED && kind != KIND_ICMP)
		attribute_socket(skb, &found->cgroup, &found->uid);
	if (open ? open->state == STATE_OPEN && complete_exchange(s, h, open, a)
		 : is_late_answer(recent, a) && complete_recent(s, h, recent, a))
		return;
	count(COUNT_ENDED);
}

/*
 * answer ends the request that a packet answers, of other kinds than TCP and DNS. Here as
 * there, one that is open comes first: a timeout moves it to those remembered. model: OPEN_FIRST
 */
static __always_inline void answer(struct __sk_buff *skb, struct flat_options *s, struct half *h,
				   struct answer *a)
{
	struct flat_request *open = find(a->side, &h->key, h->hash), *recent = 0;

	if (!open)
		recent = find_recent(a->side, h);
	if (!open && !recent)
		open = find_translated(skb, h, a, 0);
	end_request(skb, s, h, open, recent, a, 0);
}
