/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What becomes of an exchange with an answer: it is counted in a histogram, and
 * unless the settings leave it out, goes into the ring as a record.
 */
#pragma once

#include "half.h"

static __always_inline __u64 next_sequence(void)
{
	__u32 zero = 0;
	struct flat_numbering *s = bpf_map_lookup_elem(&flat_sequence, &zero);
	__u64 next;

	if (!s)
		return 0;
#ifdef FLAT_512 /* for Linux 5.12 and later: see gen.go */
	next = __sync_fetch_and_add(&s->last, 1) + 1;
#else
	bpf_spin_lock(&s->lock);
	next = ++s->last;
	bpf_spin_unlock(&s->lock);
#endif
	return next;
}

/* What an answer says, beside having come. It has no gaps: see __checked_alone. */
struct answer {
	enum flat_result result;
	__u8 side; /* enum flat_side */
	bool success;
	__u8 ttl;   /* of the remote end's packet, if this is one */
	__u8 flags; /* enum flat_record_flags */
	__u8 keep;  /* enum flat_state in which the table keeps the request; 0: it is forgotten */
	__u8 rcode;
	__u8 icmp_type; /* of an error */
	__u8 icmp_code;
	__u32 echoed_tsval; /* TCP: which SYN is answered (RFC 7323, 3.2); 0: not told */
	__u64 at_ns;	    /* when it was seen */
	__u64 client_rtt_ns;
	__u32 question_offset; /* from the start of the packet */
	__u32 question_length; /* bytes at hand, at most QUESTION_MAX */
};

static __always_inline struct answer new_answer(const struct half *h, enum flat_result result,
						bool success)
{
	return (struct answer){
		.result = result,
		.success = success,
		.ttl = h->ttl,
		.side = side_of_answer(h->direction),
		.at_ns = h->now,
	};
}

static const struct flat_histogram no_durations;

static __always_inline void observe_duration(const struct half *h, const struct answer *a,
					     __u32 ifindex, __u64 ns)
{
	struct flat_histogram_key key = {
		.ifindex = ifindex,
		.kind = h->key.kind,
		.side = a->side,
		.result = a->result,
		.ipv6 = h->ipv6,
	};
	struct flat_histogram *histogram = bpf_map_lookup_elem(&flat_histograms, &key);
	__u32 bucket = histogram_bucket(ns);

	if (!histogram) {
		bpf_map_update_elem(&flat_histograms, &key, &no_durations, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(&flat_histograms, &key);
	}
	if (!histogram) {
		count(COUNT_HISTOGRAM_FULL);
		return;
	}
	histogram->sum_ns += ns;
	barrier_var(bucket); /* clang knows the bound and drops the check, the verifier wants it */
	if (bucket < HISTOGRAM_BUCKETS)
		histogram->buckets[bucket]++;
}

/* result_bit is where the settings have this result in skip_results. */
static __always_inline __u32 result_bit(const struct half *h, const struct answer *a)
{
	if (h->key.kind == KIND_DNS && a->result == RESULT_ANSWERED)
		return 1U << (16 + (a->rcode & 0xf));
	return 1U << a->result;
}

/*
 * answered_request is when the request packet was sent that this answers, or 0
 * if it cannot be known which of several it was (Karn and Partridge, 1987).
 */
static __always_inline __u64 answered_request(const struct flat_pending *open,
					      const struct answer *a)
{
	if (!open->repeats)
		return open->first_ns;
	if (!a->echoed_tsval || open->first_tsval == open->last_tsval)
		return 0;
	if (a->echoed_tsval == open->last_tsval)
		return open->last_ns;
	if (a->echoed_tsval == open->first_tsval)
		return open->first_ns;
	return 0;
}

static __always_inline void write_record(struct flat_record *r, const struct half *h,
					 const struct flat_pending *open, const struct answer *a,
					 __u64 sequence)
{
	bool client = a->side == SIDE_CLIENT;
	__u64 asked_ns = answered_request(open, a);

	r->sequence = sequence;
	r->end_ns = a->at_ns;
	r->duration_ns = a->at_ns - open->first_ns;
	r->rtt_ns = asked_ns ? a->at_ns - asked_ns : 0;
	r->client_rtt_ns = a->client_rtt_ns;
	r->cgroup = open->cgroup;
	r->uid = open->uid;
	r->source = client ? h->key.local : h->key.remote;
	r->destination = client ? h->key.remote : h->key.local;
	r->source_port = client ? h->key.local_port : h->key.remote_port;
	r->destination_port = client ? h->key.remote_port : h->key.local_port;
	r->ifindex = open->ifindex;
	r->id = h->key.id;
	r->repeats = open->repeats;
	r->vlan = open->vlan;
	r->kind = h->key.kind;
	r->side = a->side;
	r->result = a->result;
	r->flags = open->flags | a->flags | (asked_ns ? RECORD_RTT : RECORD_AMBIGUOUS);
	r->ttl = client ? a->ttl : open->ttl;
	r->rcode = a->rcode;
	r->icmp_type = a->icmp_type;
	r->icmp_code = a->icmp_code;
	r->question_length = a->question_length;
	r->pid = open->pid;
	r->comm[0] = client ? open->comm[0] : 0;
	r->comm[1] = client ? open->comm[1] : 0;
	r->reserved = 0;
}

/*
 * The shortest question: the root's name, type and class. Linux 5.10 learns
 * nothing from a comparison with 0, and refuses reads of no bytes.
 */
#define QUESTION_MIN 5

/* repeat_question takes it from the request where the answer does not have it. */
static __always_inline void repeat_question(const struct half *h, struct flat_dns_record *d)
{
	struct flat_key key = h->key;
	struct flat_question *q = bpf_map_lookup_elem(&flat_questions, &key);

	d->record.question_length = 0;
	if (!q)
		return;
	__builtin_memcpy(d->question, q->question, sizeof(q->question));
	d->record.question_length = q->length;
}

static __always_inline void report(struct __sk_buff *skb, const struct half *h,
				   const struct flat_pending *open, const struct answer *a)
{
	__u64 sequence = next_sequence();
	struct flat_record *r;

	if (h->key.kind != KIND_DNS) {
		r = bpf_ringbuf_reserve(&flat_events, sizeof(*r), 0);
		if (!r) {
			count(COUNT_RING_FULL);
			return;
		}
		write_record(r, h, open, a, sequence);
		bpf_ringbuf_submit(r, 0);
		return;
	}

	struct flat_dns_record *d = bpf_ringbuf_reserve(&flat_events, sizeof(*d), 0);
	__u64 length = a->question_length;

	if (!d) {
		count(COUNT_RING_FULL);
		return;
	}
	write_record(&d->record, h, open, a, sequence);
	__builtin_memset(d->question, 0, sizeof(d->question));
	barrier_var(length); /* the check again, for the verifier: see observe_duration */
	if (length < QUESTION_MIN || length > QUESTION_MAX ||
	    bpf_skb_load_bytes(skb, a->question_offset, d->question, length))
		repeat_question(h, d);
	bpf_ringbuf_submit(d, 0);
}
