/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Requests that are never answered. The daemon reads the table of open requests and
 * runs a program for each that has waited too long. In one run, which a kill of the
 * daemon cannot split, that takes room in the ring, claims the request, numbers and
 * writes the record, and moves the request from the table to the recent ones.
 *
 * Nothing depends on what the run returns: before Linux 5.13 a signal makes a
 * finished run look interrupted.
 */
#pragma once

#include "request.h"

/* Why an open request is ended without a word. */
enum flat_unreported {
	UNREPORTED_NOT = 0,
	UNREPORTED_NOT_LOOKING = 1, /* flatd did not see every packet while it waited */
	UNREPORTED_LEFT = 2,	    /* claimed long ago, and never taken out */
};

/* What the daemon found to be overdue. It has the same layout in every one from 3 on. */
struct flat_overdue {
	__u64 hash;
	__u64 first_ns; /* a newer request of this hash is not overdue; model: FIRST_IN_CLAIM */
	__u64 limit_ns;
	__u32 side;	  /* enum flat_side */
	__u32 unreported; /* enum flat_unreported */
};

/*
 * has_room reports whether a quarter of the ring is free, which is for answers alone.
 * model: QUARTER
 */
static __always_inline bool has_room(void)
{
	__u64 size = bpf_ringbuf_query(&flat_events, BPF_RB_RING_SIZE);

	return bpf_ringbuf_query(&flat_events, BPF_RB_AVAIL_DATA) <= size - size / 4;
}

static __always_inline bool is_ipv6(const union flat_addr *addr)
{
	return addr->words[0] || addr->words[1] || addr->words[2] != bpf_htonl(0xffff);
}

/*
 * settle moves a request that was claimed from the table to the recent ones: a copy of it,
 * for in the table nobody may claim it again.
 */
static __always_inline void settle(struct flat_request *found, const struct half *h,
				   const struct flat_overdue *o)
{
	__u32 own = 1;
	struct flat_scratch_values *values = bpf_map_lookup_elem(&flat_scratch, &own);

	if (found->traits)
		leave_hints(found, o->hash);
	if (values) {
		values->request = *found;
		values->request.traits = 0;
		values->request.state = STATE_REPORTED;
		/* model: RECENT_FIRST, before it is taken out */
		remember(o->side, &values->request, o->hash, h->now);
	}
	take_out(o->side, o->hash);
}

/* end_silently ends a request that no record reports. */
static __always_inline bool end_silently(struct flat_request *found, const struct half *h,
					 const struct flat_overdue *o, enum flat_counter why)
{
	if (!claim_since(found, o->hash, o->first_ns))
		return false;
	count_atomic(why);
	settle(found, h, o);
	return true;
}

/* observe_timeout counts a timeout in its histogram; atomically, see count_atomic(). */
static __always_inline void observe_timeout(const struct half *h, const struct answer *a,
					    __u32 ifindex, __u64 limit_ns)
{
	struct flat_histogram *histogram = histogram_of(h, a, ifindex);
	__u32 bucket = histogram_bucket(limit_ns);

	if (!histogram) {
		count_atomic(COUNT_HISTOGRAM_FULL);
		return;
	}
	__sync_fetch_and_add(&histogram->sum_ns, limit_ns);
	barrier_var(bucket);
	if (bucket < HISTOGRAM_BUCKETS)
		__sync_fetch_and_add(&histogram->buckets[bucket], 1);
}

/*
 * report_timeout reports a request if there is room and nobody else was faster. It takes
 * room before it claims (model: RESERVE_FIRST), a number after that (model: NUMBER_OWNED),
 * and all in this one run (model: NUMBER_IN_RUN, COUNT_IN_RUN).
 */
static __always_inline void report_timeout(struct flat_request *found, const struct half *h,
					   const struct answer *a, const struct flat_overdue *o)
{
	struct flat_dns_record *dns = 0;
	struct flat_record *to = has_room() ? reserve(h, &dns) : 0;

	if (!to) {
		__sync_fetch_and_add(&flat_shared.timeouts_refused, 1);
		return;
	}
	if (!claim_since(found, o->hash, o->first_ns)) {
		bpf_ringbuf_discard(to, 0);
		return;
	}
	write_record(to, h, found, a);
	if (dns)
		write_question(dns, h, a);
	to->sequence = next_sequence();
	observe_timeout(h, a, found->ifindex, o->limit_ns);
	count_atomic(COUNT_TIMED_OUT);
	settle(found, h, o);
	bpf_ringbuf_submit(to, 0);
}

/* time_out ends an overdue request. */
static __always_inline void time_out(const struct flat_overdue *o, struct flat_options *s)
{
	struct flat_request *found = find_hash(o->side, o->hash);
	struct answer a = {.result = RESULT_TIMEOUT, .side = o->side};
	struct half h;
	__u32 ifindex;

	if (!found || found->first_ns != o->first_ns)
		return;
	if (o->unreported == UNREPORTED_LEFT && !found->version) {
		take_out(o->side, o->hash);
		return;
	}
	__builtin_memset(&h, 0, sizeof(h));
	h.key = found->key;
	h.hash = o->hash;
	h.now = bpf_ktime_get_boot_ns();
	h.ipv6 = is_ipv6(&h.key.remote);
	a.at_ns = o->first_ns + o->limit_ns;
	if (kind_of(&h.key) == KIND_TCP && o->side == SIDE_SERVER)
		end_silently(found, &h, o, COUNT_HALF_OPEN);
	else if (o->unreported == UNREPORTED_NOT_LOOKING)
		end_silently(found, &h, o, COUNT_NOT_LOOKING);
	else if (may_be_untraced(found))
		end_silently(found, &h, o, COUNT_TRANSLATED);
	else if (is_left_out(s, &h, &a)) {
		ifindex = found->ifindex; /* the entry is another's once this one has ended */
		if (end_silently(found, &h, o, COUNT_TIMED_OUT)) {
			count_atomic(COUNT_RESULT_OUT);
			observe_timeout(&h, &a, ifindex, o->limit_ns);
		}
	} else
		report_timeout(found, &h, &a, o);
}
