/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * UDP: DNS by transaction id on its ports, and elsewhere the first datagram of
 * an idle flow and the first one back.
 */
#pragma once

#include "flow.h"
#include "pending.h"

static __always_inline bool is_dns_port(const struct flat_options *s, __be16 port)
{
	if (!s->dns_ports[0])
		return port == bpf_htons(53);
	for (int i = 0; i < DNS_PORTS_MAX; i++) {
		if (!s->dns_ports[i])
			break;
		if (s->dns_ports[i] == port)
			return true;
	}
	return false;
}

/* RFC 1035, 4.1.1; flags as octets. */
struct dns_header {
	__be16 id;
	__u8 flags; /* QR is the top bit */
	__u8 rcode; /* in the lower half */
	__be16 questions;
	__be16 answers;
	__be16 authorities;
	__be16 additional;
};

#define DNS_QR 0x80
#define DNS_TC 0x02

/* The longest question does not fit on the stack beside all else. */
static const struct flat_question no_question;

/* remember_question keeps what is asked, in case there is no answer to repeat it. */
static __always_inline void remember_question(struct __sk_buff *skb, const struct half *h,
					      __u32 offset, __u64 length)
{
	struct flat_question *q;

	barrier_var(length);
	if (length < QUESTION_MIN || length > QUESTION_MAX ||
	    bpf_map_update_elem(&flat_questions, &h->key, &no_question, BPF_ANY))
		return;
	q = bpf_map_lookup_elem(&flat_questions, &h->key);
	if (q && !bpf_skb_load_bytes(skb, offset, q->question, length))
		q->length = length;
}

static __always_inline void observe_dns(struct __sk_buff *skb, struct flat_options *s,
					struct half *h, const struct udp_header *udp)
{
	__u32 offset = h->transport + sizeof(*udp);
	__u32 headers = sizeof(*udp) + sizeof(struct dns_header);
	struct dns_header dns;
	__u32 question;

	if (h->length < headers || bpf_skb_load_bytes(skb, offset, &dns, sizeof(dns))) {
		count(COUNT_DNS_OTHER);
		return;
	}
	question = dns.questions ? h->length - headers : 0;
	if (question > QUESTION_MAX)
		question = QUESTION_MAX;
	question = opaque(skb, question); /* one way on for each of them */
	set_exchange(h, KIND_DNS, udp->source, udp->destination, bpf_ntohs(dns.id));

	if (!(dns.flags & DNS_QR) && is_dns_port(s, udp->destination)) {
		if (remember(skb, s, h))
			remember_question(skb, h, offset + sizeof(dns), question);
		return;
	}
	if (!(dns.flags & DNS_QR) || !is_dns_port(s, udp->source)) {
		count(COUNT_DNS_OTHER);
		return;
	}

	struct answer a = new_answer(h, RESULT_ANSWERED, !(dns.rcode & 0xf));

	a.rcode = dns.rcode & 0xf;
	a.flags = dns.flags & DNS_TC ? RECORD_TRUNCATED : 0;
	a.question_offset = offset + sizeof(dns);
	a.question_length = question;
	answer(skb, s, h, found_answering(h), &a);
}

/* RFC 9000, 14.1: a client's first datagram is at least this long. */
#define QUIC_INITIAL_MIN 1200

/*
 * is_quic knows the first datagram of a connection by its long header (RFC
 * 9000, 17.2), of version 1, 2 (RFC 9369) or a draft.
 */
static __always_inline bool is_quic(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	__be32 wire;
	__u32 version;
	__u8 flags;

	if (length < QUIC_INITIAL_MIN || bpf_skb_load_bytes(skb, offset, &flags, 1) ||
	    bpf_skb_load_bytes(skb, offset + 1, &wire, sizeof(wire)))
		return false;
	version = bpf_ntohl(wire);
	return (flags & 0xc0) == 0xc0 &&
	       (version == 1 || version == 0x6b3343cf || version >> 16 == 0xff00);
}

/*
 * Protocols in which a question goes to a group and the answer comes from one
 * host: it would look like a request from there. mDNS (RFC 6762), LLMNR (RFC
 * 4795), SSDP.
 */
static __always_inline bool asks_groups(__be16 port)
{
	return port == bpf_htons(5353) || port == bpf_htons(5355) || port == bpf_htons(1900);
}

/* answer_flow takes a datagram that goes the other way than the first of its flow. */
static __always_inline void answer_flow(struct __sk_buff *skb, struct flat_options *s,
					struct half *h, __u64 *flow)
{
	struct answer a = new_answer(h, RESULT_ANSWERED, true);
	enum flow_state state = flow_state(*flow);
	struct flat_pending *found = state == FLOW_ASKED ? found_answering(h) : 0;

	if (found && found->state == STATE_REPORTED)
		state = FLOW_REPORTED;
	/* First, or the swap in it would wait until the record is written. */
	see(h, flow, state == FLOW_REPORTED ? FLOW_REPORTED : FLOW_ANSWERED);
	if (found && found->state == STATE_OPEN)
		answer(skb, s, h, found, &a);
	else
		count(state == FLOW_REPORTED ? COUNT_LATE : COUNT_FLOW);
}

/* continue_flow takes one that goes the way of the first. */
static __always_inline void continue_flow(struct half *h, __u64 *flow)
{
	enum flow_state state = flow_state(*flow);
	struct flat_pending *found = state == FLOW_ASKED ? found_asking(h) : 0;

	if (found && found->state == STATE_REPORTED)
		state = FLOW_REPORTED;
	if (found)
		repeat(h, found);
	else
		count(state == FLOW_REPORTED ? COUNT_REPEATS : COUNT_FLOW);
	see(h, flow, state);
}

/*
 * A UDP exchange is the first datagram of an idle flow and the first one back.
 * The flow then stays known until it has been idle, so that what follows in
 * either direction is not taken for another exchange.
 */
static __always_inline void observe_flow(struct __sk_buff *skb, struct flat_options *s,
					 struct half *h, const struct udp_header *udp)
{
	struct flat_flow_set *set;
	__u64 *ways, *flow;

	set_exchange(h, KIND_UDP, udp->source, udp->destination, 0);
	set = flows_of(h);
	if (!set)
		return;

	flow = find_flow(skb, s, h, ways_of(set, side_of_answer(h->direction)));
	if (flow) {
		answer_flow(skb, s, h, flow);
		return;
	}
	ways = ways_of(set, side_of_request(h->direction));
	flow = find_flow(skb, s, h, ways);
	if (flow) {
		continue_flow(h, flow);
		return;
	}
	if (is_quic(skb, h->transport + sizeof(*udp), h->length - sizeof(*udp)))
		h->flags |= RECORD_QUIC;
	if (remember(skb, s, h))
		begin_flow(s, h, ways);
}

/* The datagram ends where it says, or with the IP packet if it says nothing (RFC 2675, 4). */
static __always_inline __u32 datagram_length(const struct udp_header *udp, __u32 length)
{
	__u32 told = bpf_ntohs(udp->length);

	return told && told < length ? told : length;
}

__subprogram int observe_udp(struct __sk_buff *skb, __u64 place, enum direction direction)
{
	struct half half, *h = &half;
	struct flat_options *s = take(skb, h, place, direction);
	const struct udp_header *udp;

	if (!s)
		return 0;
	udp = packet_at(skb, h->transport, sizeof(*udp));
	if (!udp) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	if (to_group(h)) {
		count(COUNT_MULTICAST);
		return 0;
	}
	h->length = datagram_length(udp, h->length);
	if (h->length < sizeof(*udp))
		count(COUNT_MALFORMED);
	else if (is_dns_port(s, udp->destination) || is_dns_port(s, udp->source))
		observe_dns(skb, s, h, udp);
	else if (asks_groups(udp->source) || asks_groups(udp->destination))
		count(COUNT_MULTICAST);
	else
		observe_flow(skb, s, h, udp);
	return 0;
}
