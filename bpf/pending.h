/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables of open requests: remember() puts a request in, finish() takes
 * its answer.
 */
#pragma once

#include <linux/errno.h>

#include "filter.h"
#include "report.h"

/* new_request is what the table keeps of a request, as of now. */
static __always_inline struct flat_pending new_request(const struct half *h)
{
	return (struct flat_pending){
		.first_ns = h->now,
		.last_ns = h->now,
		.ifindex = h->skb->ifindex,
		.isn = h->isn,
		.payload = h->payload,
		.first_tsval = h->tsval,
		.last_tsval = h->tsval,
		.vlan = h->vlan,
		.ttl = h->ttl,
		.flags = h->flags,
	};
}

static __always_inline __s64 udp_idle(const struct half *h)
{
	return h->settings->udp_idle_ns ? h->settings->udp_idle_ns : UDP_IDLE_DEFAULT_NS;
}

/*
 * own_socket tells whose packet this is, as far as it can be known: only of
 * what goes out. On a packet that comes in over veth it is the sender's.
 */
static __always_inline void own_socket(struct __sk_buff *skb, __u64 *cgroup, __u32 *uid)
{
	*cgroup = bpf_skb_cgroup_id(skb);
	*uid = *cgroup ? bpf_get_socket_uid(skb) : 0;
}

/* Whether the kernel has these helpers for programs of tc; set before they are loaded. */
const volatile bool have_pid;  /* Linux 6.10 */
const volatile bool have_comm; /* Linux 6.16 */

/* A SYN that goes out later than this after TCP made it had to wait for something. */
#define AT_ONCE_NS (50 * 1000)

/*
 * own_process tells which process asks, where it is sure to be the current one:
 * its SYN comes straight from TCP, not from a queue for want of the neighbour's
 * address, and the current task is in the cgroup of the socket. Of datagrams,
 * which bear no time, it cannot be told.
 */
static __always_inline void own_process(const struct half *h, struct flat_pending *request)
{
#ifdef FLAT_512
	if (!have_pid || h->key.kind != KIND_TCP || !request->cgroup ||
	    bpf_get_current_cgroup_id() != request->cgroup ||
	    bpf_ktime_get_ns() - h->skb->tstamp > AT_ONCE_NS)
		return;
	request->pid = bpf_get_current_pid_tgid() >> 32;
	if (have_comm)
		bpf_get_current_comm(request->comm, sizeof(request->comm));
#else
	(void)h;
	(void)request;
#endif
}

/* found_asking is what the tables hold of the request that a packet may be. */
static __always_inline struct flat_pending *found_asking(struct half *h)
{
	return bpf_map_lookup_elem(table_of(side_of_request(h->direction)), &h->key);
}

/* found_answering is what they hold of the request that a packet may answer. */
static __always_inline struct flat_pending *found_answering(struct half *h)
{
	return bpf_map_lookup_elem(table_of(side_of_answer(h->direction)), &h->key);
}

/* is_current tells an exchange that goes on from one that has long been over. */
static __always_inline bool is_current(const struct half *h, const struct flat_pending *found)
{
	return found && elapsed(h, found->last_ns) < udp_idle(h);
}

/*
 * is_repeat tells a request sent again from a new one of the same five-tuple:
 * a SYN has its sequence number, others are repeats until the flow is idle.
 */
static __always_inline bool is_repeat(const struct half *h, const struct flat_pending *found)
{
	return found->isn == h->isn && (h->key.kind == KIND_TCP || is_current(h, found));
}

static __always_inline void repeat(const struct half *h, struct flat_pending *found)
{
	found->last_ns = h->now;
	found->last_tsval = h->tsval;
	found->repeats++;
	count(COUNT_REPEATS);
}

/* leave_untracked notes that there is no room for a UDP flow. */
static __always_inline void leave_untracked(const struct half *h)
{
	__u64 now = h->now;

	if (h->key.kind != KIND_UDP)
		return;
	flat_untracked_ns = now;
	bpf_map_update_elem(&flat_untracked, &h->key, &now, BPF_ANY);
}

/* is_untracked reports whether a UDP datagram is of such a flow, which it keeps going. */
static __always_inline bool is_untracked(const struct half *h)
{
	__u64 *last;

	if (!flat_untracked_ns || elapsed(h, flat_untracked_ns) > udp_idle(h))
		return false;
	last = bpf_map_lookup_elem(&flat_untracked, &h->key);
	if (!last || elapsed(h, *last) > udp_idle(h))
		return false;
	*last = h->now;
	flat_untracked_ns = h->now;
	return true;
}

/*
 * remember puts a request into its table. `found` is what the table holds under
 * this key, or 0 if it holds nothing or that is not known yet: most requests are
 * new, and are spared a lookup. It returns whether this one is new and followed.
 */
__subprogram bool remember(struct half *h, struct flat_pending *found)
{
	enum flat_side side = side_of_request(h->direction);
	struct flat_pending request = new_request(h);
	bool is_wanted = wanted(h, side);
	int failed = -EEXIST; /* an int: before Linux 6.4 helpers leave the upper half as it is */

	if (is_wanted && side == SIDE_CLIENT) {
		own_socket(h->skb, &request.cgroup, &request.uid);
		own_process(h, &request);
	}
	if (is_wanted && !found)
		failed = bpf_map_update_elem(table_of(side), &h->key, &request, BPF_NOEXIST);
	if (failed == -EEXIST) {
		if (!found)
			found = found_asking(h);
		if (found && is_repeat(h, found)) {
			repeat(h, found);
			return false;
		}
		if (!is_wanted) {
			count(COUNT_FILTERED);
			return false;
		}
		if (!found) {
			count(COUNT_REPEATS); /* of what another CPU is about to finish */
			return false;
		}
		if (found->state == STATE_OPEN || found->state == STATE_HALF_OPEN)
			count(COUNT_REPLACED);
		failed = bpf_map_update_elem(table_of(side), &h->key, &request, BPF_ANY);
	}
	count(COUNT_REQUESTS);
	if (failed) {
		count(COUNT_PENDING_FULL);
		leave_untracked(h);
	}
	trace("request kind %d side %d id %x", h->key.kind, side, h->key.id);
	return true;
}

/*
 * forget deletes a request from its table and returns whether it was there. One
 * call for each table: where the kernel knows which map a call is about, it
 * calls that map's function straight.
 */
static __always_inline bool forget(enum flat_side side, const struct flat_key *key)
{
	int failed;

	if (side == SIDE_CLIENT) {
		failed = bpf_map_delete_elem(&flat_ours, key);
		barrier_var(failed); /* or clang makes one call of the two */
	} else {
		failed = bpf_map_delete_elem(&flat_theirs, key);
	}
	return !failed;
}

/*
 * make_room takes a request away that is not one: while the exchange was out of the
 * table, another CPU took a further packet of it for the first of a new one.
 */
static __always_inline bool make_room(const struct half *h, enum flat_side side)
{
	const struct flat_pending *found = bpf_map_lookup_elem(table_of(side), &h->key);

	if (!found || found->state != STATE_OPEN || !forget(side, &h->key))
		return false;
	count(COUNT_REPLACED);
	return true;
}

/* keep puts a finished request back, so that what follows it is known for that. */
static __always_inline void keep(const struct half *h, enum flat_side side,
				 struct flat_pending *request, enum flat_state state)
{
	__u64 last_ns = request->last_ns;
	int failed;

	request->last_ns = h->now;
	request->state = state;
	failed = bpf_map_update_elem(table_of(side), &h->key, request, BPF_NOEXIST);
	if (failed == -EEXIST && make_room(h, side))
		failed = bpf_map_update_elem(table_of(side), &h->key, request, BPF_NOEXIST);
	if (failed == -E2BIG)
		leave_untracked(h); /* another request took the room of this one */
	request->last_ns = last_ns;
}

/*
 * finish closes an open exchange, unless the sweep or another CPU was faster.
 * It returns whether it did.
 */
__subprogram bool finish(struct half *h, enum flat_side side, const struct flat_pending *found,
			 struct answer *a)
{
	const struct flat_options *s = h->settings;
	/* Deleting the entry frees it for reuse at once, so keep what it said. */
	struct flat_pending open = *found;
	__u64 duration;

	if (!forget(side, &h->key))
		return false;
	if (a->keep)
		keep(h, side, &open, a->keep);
	/* Two CPUs may see request and answer with clocks a little apart. */
	if (open.first_ns > a->at_ns)
		open.first_ns = a->at_ns;
	if (open.last_ns > a->at_ns)
		open.last_ns = a->at_ns;
	duration = a->at_ns - open.first_ns;

	count(COUNT_FINISHED);
	trace("answer kind %d result %d in %llu ns", h->key.kind, a->result, duration);
	observe_duration(h, side, a->result, open.ifindex, duration);
	if (s->skip_results & result_bit(h, a))
		count(COUNT_RESULT_OUT);
	else if (a->success && duration < s->min_duration_ns)
		count(COUNT_TOO_FAST);
	else if (a->success && s->sample > 1 && bpf_get_prandom_u32() % s->sample)
		count(COUNT_SAMPLED_OUT);
	else
		report(h, &open, side, a);
	return true;
}

/* answer looks for the open request that a packet answers, and finishes it. */
static __always_inline void answer(struct half *h, struct flat_pending *found, struct answer *a)
{
	enum flat_side side = side_of_answer(h->direction);

	if (!found) {
		count(COUNT_UNMATCHED);
		return;
	}
	if (found->state != STATE_OPEN) {
		count(COUNT_LATE);
		return;
	}
	if (side == SIDE_SERVER && a->result == RESULT_ANSWERED && h->key.kind != KIND_ICMP)
		own_socket(h->skb, &found->cgroup, &found->uid);
	if (!finish(h, side, found, a))
		count(COUNT_LATE);
}
