/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is reported of an exchange: a duration in a histogram, and a record in the
 * ring unless the settings leave it out.
 */
#pragma once

#include "half.h"

static __always_inline __u64 next_sequence(void)
{
	__u32 zero = 0;
	struct flat_numbering *s = bpf_map_lookup_elem(&flat_sequence, &zero);

	return s ? next_number(&s->last, &s->lock) : 0;
}

/* What an answer says, beside having come. It has no gaps: see __checked_alone. */
struct answer {
	__u64 result; /* enum flat_result */
	__u64 at_ns;  /* when it was seen */
	__u64 client_rtt_ns;
	union flat_addr nat; /* an end that was translated, as the answer has it; see flags */
	__be16 nat_port;
	__u16 rcode;
	__u16 question_length; /* of that in flat_scratch; 0: none */
	__u8 side;	       /* enum flat_side */
	bool success;
	__u32 echoed_tsval; /* TCP: which SYN is answered (RFC 7323, 3.2); 0: unknown */
	__u8 ttl;	    /* of the remote end's packet, if this is one */
	__u8 flags;	    /* enum flat_record_flags */
	__u8 icmp_type;	    /* of an error */
	__u8 icmp_code;
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

static __always_inline __u16 rcode_class(__u16 rcode)
{
	return rcode < RCODE_LAST ? rcode : RCODE_LAST;
}

/* histogram_of is the histogram for an exchange with this answer, or 0. */
static __always_inline struct flat_histogram *histogram_of(const struct half *h,
							   const struct answer *a, __u32 ifindex)
{
	struct flat_histogram_key key = {
		.ifindex = ifindex,
		.kind = kind_of(&h->key),
		.side = a->side,
		.result = a->result,
		.ipv6 = h->ipv6,
		.rcode = rcode_class(a->rcode),
	};
	struct flat_histogram *histogram = bpf_map_lookup_elem(&flat_histograms, &key);

	if (!histogram) {
		bpf_map_update_elem(&flat_histograms, &key, &no_durations, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(&flat_histograms, &key);
	}
	return histogram;
}

__own_frame int observe_duration(const struct half *h, const struct answer *a, __u32 ifindex,
				 __u64 ns)
{
	struct flat_histogram *histogram = histogram_of(h, a, ifindex);
	__u32 bucket = histogram_bucket(ns);

	if (!histogram) {
		count(COUNT_HISTOGRAM_FULL);
		return 0;
	}
	histogram->sum_ns += ns;
	barrier_var(bucket); /* clang knows the bound and drops the check, the verifier wants it */
	if (bucket < HISTOGRAM_BUCKETS)
		histogram->buckets[bucket]++;
	return 0;
}

/* is_left_out reports whether the settings leave out this result. */
static __always_inline bool is_left_out(const struct flat_options *s, const struct half *h,
					const struct answer *a)
{
	__u64 bit = a->result;

	if (kind_of(&h->key) == KIND_DNS && a->result == RESULT_ANSWERED)
		bit = DNS_RESULT_BIT + rcode_class(a->rcode);
	return s->skip_results >> (bit & 63) & 1;
}

/*
 * answered_request is when the request packet was sent that this answers, or 0
 * if it cannot be known which of several it was (Karn and Partridge, 1987).
 */
static __always_inline __u64 answered_request(const struct flat_request *r, const struct answer *a)
{
	if (a->result == RESULT_TIMEOUT || r->flags & RECORD_AMBIGUOUS)
		return 0;
	if (!r->repeats)
		return r->first_ns;
	if (!a->echoed_tsval || r->first_tsval == r->last_tsval)
		return 0;
	if (a->echoed_tsval == r->last_tsval)
		return r->last_ns;
	if (a->echoed_tsval == r->first_tsval)
		return r->first_ns;
	return 0;
}

static __always_inline void write_record(struct flat_record *to, const struct half *h,
					 const struct flat_request *r, const struct answer *a)
{
	bool client = a->side == SIDE_CLIENT;
	__u64 asked_ns = answered_request(r, a);
	__u32 known = asked_ns ? RECORD_RTT : RECORD_AMBIGUOUS;

	to->end_ns = a->at_ns;
	to->duration_ns = a->at_ns - r->first_ns;
	to->rtt_ns = asked_ns ? a->at_ns - asked_ns : 0;
	to->client_rtt_ns = a->client_rtt_ns;
	to->cgroup = r->cgroup;
	to->source = client ? h->key.local : h->key.remote;
	to->destination = client ? h->key.remote : h->key.local;
	to->nat = a->nat;
	to->nat_port = a->nat_port;
	to->source_port = client ? h->key.local_port : h->key.remote_port;
	to->destination_port = client ? h->key.remote_port : h->key.local_port;
	to->vlan = r->vlan;
	to->ifindex = r->ifindex;
	to->id = kind_of(&h->key) == KIND_DNS ? h->key.id >> DNS_ID_SHIFT & 0xffff : h->key.id;
	to->repeats = r->repeats;
	to->uid = r->uid;
	to->pid = r->pid;
	to->flags = r->flags | a->flags | (a->result == RESULT_TIMEOUT ? 0 : known);
	to->comm[0] = client ? r->comm[0] : 0;
	to->comm[1] = client ? r->comm[1] : 0;
	to->kind = kind_of(&h->key);
	to->side = a->side;
	to->result = a->result;
	to->ttl = client ? a->ttl : r->ttl;
	to->rcode = a->rcode;
	to->icmp_type = a->icmp_type;
	to->icmp_code = a->icmp_code;
	to->question_length = 0;
	to->spare_half[0] = 0;
	to->spare_half[1] = 0;
	to->spare_half[2] = 0;
	to->request_id = 0;
	to->spare[0] = 0;
	to->spare[1] = 0;
}

static __always_inline struct flat_scratch_values *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&flat_scratch, &zero);
}

/* write_question takes it from the answer, or from the request if the answer has none. */
static __always_inline void write_question(struct flat_dns_record *to, const struct half *h,
					   const struct answer *a)
{
	__u64 hash = h->hash;
	struct flat_question *q = bpf_map_lookup_elem(&flat_questions, &hash);

	if (a->question_length) {
		struct flat_scratch_values *read = scratch();

		q = read ? &read->question : 0;
	}
	if (!q) {
		__builtin_memset(to->question, 0, sizeof(to->question));
		return;
	}
	__builtin_memcpy(to->question, q->question, sizeof(to->question));
	to->record.question_length = q->length;
}

/*
 * reserve takes room in the ring for the record of an exchange, and returns it, or 0. One of
 * DNS has a question behind it: dns.
 */
static __always_inline struct flat_record *reserve(const struct half *h,
						   struct flat_dns_record **dns)
{
	*dns = 0;
	if (kind_of(&h->key) != KIND_DNS)
		return bpf_ringbuf_reserve(&flat_events, sizeof(struct flat_record), 0);
	*dns = bpf_ringbuf_reserve(&flat_events, sizeof(struct flat_dns_record), 0);
	return *dns ? &(*dns)->record : 0;
}

/* report puts a record into the ring. Its number comes first, so that a gap is a loss. */
static __always_inline void report(const struct half *h, const struct flat_request *r,
				   const struct answer *a)
{
	__u64 sequence = next_sequence();
	struct flat_dns_record *dns;
	struct flat_record *to = reserve(h, &dns);

	if (!to) {
		count(COUNT_RING_FULL);
		return;
	}
	write_record(to, h, r, a);
	if (dns)
		write_question(dns, h, a);
	to->sequence = sequence;
	bpf_ringbuf_submit(to, 0);
}
