/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * UDP: DNS by transaction id on its ports, and elsewhere the first datagram of
 * an idle flow and the first one back.
 */
#pragma once

#include "flow.h"
#include "request.h"

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

#define DNS_OPT 41 /* RFC 6891, 6.1.1 */

/* The beginning of an OPT record (RFC 6891, 6.1.2): the root's name, type, class, TTL. */
struct dns_opt {
	__u8 name;
	__u8 type[2];
	__u8 class[2];
	__u8 extended_rcode;
};

/*
 * extended_rcode returns the upper bits of a response code (RFC 6891, 6.1.3), where the
 * OPT record follows the question: in an answer without others.
 */
static __always_inline __u16 extended_rcode(struct __sk_buff *skb, const struct dns_header *dns,
					    __u64 offset)
{
	struct dns_opt opt;

	if (dns->answers || dns->authorities || !dns->additional ||
	    bpf_skb_load_bytes(skb, offset, &opt, sizeof(opt)) || opt.name || opt.type[0] ||
	    opt.type[1] != DNS_OPT)
		return 0;
	return opt.extended_rcode << 4;
}

/* answer_dns ends the request that a DNS answer is for. */
static __always_inline void answer_dns(struct __sk_buff *skb, struct flat_options *s,
				       struct half *h, const struct dns_header *dns, __u64 offset)
{
	struct flat_scratch_values *read = scratch();
	__u16 length = read ? read->question.length : 0;
	__u16 rcode = (dns->rcode & 0xf) | extended_rcode(skb, dns, offset + length);
	struct answer a = new_answer(h, RESULT_ANSWERED, !rcode);
	struct flat_request *open = find(a.side, &h->key, h->hash), *recent = 0;

	a.rcode = rcode;
	a.flags = dns->flags & DNS_TC ? RECORD_TRUNCATED : 0;
	a.question_length = length;
	if (!open)
		recent = find_recent(a.side, h);
	if (!open && !recent) {
		open = find_by_tuple(h, a.side, false);
		/* Without a question it answers the only one; with one, another than was asked. */
		if (open && length) {
			count(COUNT_WRONG_QUESTION);
			return;
		}
		if (!open)
			open = find_translated(skb, h, &a, 0);
	}
	end_request(skb, s, h, open, recent, &a, 0);
}

/* remember_question keeps what is asked, in case there is no answer that repeats it. */
static __always_inline void remember_question(const struct half *h)
{
	struct flat_scratch_values *read = scratch();
	__u64 hash = h->hash;

	if (read && read->question.length)
		bpf_map_update_elem(&flat_questions, &hash, &read->question, BPF_ANY);
}

/* dns_id is the id of a DNS exchange in its key; it reads the question into flat_scratch. */
static __always_inline __u64 dns_id(struct __sk_buff *skb, const struct dns_header *dns,
				    __u64 offset, __u64 octets)
{
	return (__u64)bpf_ntohs(dns->id) << DNS_ID_SHIFT |
	       read_question(skb, offset, dns->questions ? octets : 0);
}

/* ports are the source's and, above it, the destination's, in network order. */
__subprogram int observe_dns(struct __sk_buff *skb, struct flat_options *s, struct half *h,
			     __u32 ports, __u64 flow)
{
	__u32 headers = sizeof(struct udp_header) + sizeof(struct dns_header);
	__u64 offset = h->transport + headers;
	__be16 source = ports, destination = ports >> 16;
	struct dns_header dns;
	bool is_answer;

	if (h->length < headers ||
	    bpf_skb_load_bytes(skb, offset - sizeof(dns), &dns, sizeof(dns))) {
		count(COUNT_DNS_OTHER);
		return 0;
	}
	is_answer = dns.flags & DNS_QR;
	if (!is_dns_port(s, is_answer ? source : destination)) {
		count(COUNT_DNS_OTHER);
		return 0;
	}
	set_exchange(h, KIND_DNS, source, destination,
		     dns_id(skb, &dns, offset, h->length - headers), flow);
	if (is_answer)
		answer_dns(skb, s, h, &dns, offset);
	else if (track_request(skb, s, h))
		remember_question(h);
	return 0;
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
					struct half *h, __u64 *flow, __u64 hash)
{
	struct answer a = new_answer(h, RESULT_ANSWERED, true);
	bool asked = flow_state(*flow) != FLOW_ANSWERED;

	/* First, or the swap in it would wait until the record is written. */
	see(flow, hash, h->now, FLOW_ANSWERED);
	if (asked)
		answer(skb, s, h, &a);
	else
		count(COUNT_FLOW);
}

/* continue_flow takes one that goes the way of the first; see is_nothing_new(). */
static __always_inline void continue_flow(struct half *h, __u64 *flow, __u64 hash)
{
	enum flat_side side = side_of_request(h->direction);
	enum flow_state state = flow_state(*flow);
	struct flat_request *found;

	if (state != FLOW_ASKED && state != FLOW_REPEATED) {
		see(flow, hash, h->now, state);
		count(COUNT_FLOW);
		return;
	}
	found = find(side, &h->key, h->hash);
	see(flow, hash, h->now, found ? FLOW_REPEATED : FLOW_REPORTED);
	repeat(h, found ? found : find_recent(side, h));
}

/*
 * follow_flow takes a datagram of a flow that is known, and returns whether it is. way is the
 * place of the flow, as pass_known() has it.
 */
__subprogram int follow_flow(struct __sk_buff *skb, struct flat_options *s, struct half *h,
			     __u64 hash, __u64 way)
{
	struct flat_flow_set *set = flows_of(hash);

	if (!set)
		return true; /* never */
	if (way == UNSEARCHED)
		way = opaque(skb, find_flow(set, hash, h->now));
	if (way >= ALL_WAYS)
		return false;
	if (is_answer_way(way, h->direction))
		answer_flow(skb, s, h, way_at(set, way), hash);
	else
		continue_flow(h, way_at(set, way), hash);
	return true;
}

/* see_answered notes that the flow of a request was answered, by one with other ends. */
__subprogram int see_answered(struct __sk_buff *skb, struct half *h)
{
	__u64 hash = flow_of_key(&h->key), way;
	struct flat_flow_set *set = flows_of(hash);

	if (!set)
		return 0; /* never */
	way = opaque(skb, find_flow(set, hash, h->now));
	if (way < ALL_WAYS)
		see(way_at(set, way), hash, h->now, FLOW_ANSWERED);
	return 0;
}

/*
 * answer_translated takes the answer to a flow that has other ends after NAT, and returns
 * whether it is one.
 */
__subprogram int answer_translated(struct __sk_buff *skb, struct flat_options *s, struct half *h)
{
	struct answer a = new_answer(h, RESULT_ANSWERED, true);
	__u64 hash = flow_of_key(&h->key); /* what follows belongs to another flow */
	struct flat_request *open = find_translated(skb, h, &a, 0);

	if (!open) /* a hint that counts nothing any more: it was answered on another device */
		return !!find_hint(hint_hash(HINT_FAR, &h->key, 0));
	end_request(skb, s, h, open, 0, &a, 0);
	see_answered(skb, h);
	begin_flow(h, hash, FLOW_ANSWERED);
	return true;
}

/*
 * A UDP exchange is the first datagram of an idle flow and the first one back.
 * The flow then stays known until it has been idle, so that what follows in
 * either direction is not taken for another exchange.
 */
static __always_inline void observe_flow(struct __sk_buff *skb, struct flat_options *s,
					 struct half *h, __u32 ports, __u64 flow, __u64 way)
{
	__u64 hash = set_exchange(h, KIND_UDP, ports, ports >> 16, 0, flow);

	if (follow_flow(skb, s, h, hash, way) ||
	    (is_translating(skb->ifindex) && answer_translated(skb, s, h)))
		return;
	if (is_quic(skb, h->transport + sizeof(struct udp_header),
		    h->length - sizeof(struct udp_header)))
		h->flags |= RECORD_QUIC;
	/* One of the programs of another layout is a flow too, or what follows would begin another.
	 */
	if (track_request(skb, s, h) || flat_shared.phase != PHASE_ALONE)
		begin_flow(h, hash, FLOW_ASKED);
}

/* The datagram ends where it says, or with the IP packet if it says nothing (RFC 2675, 4). */
static __always_inline __u32 datagram_length(const struct udp_header *udp, __u32 length)
{
	__u32 told = bpf_ntohs(udp->length);

	return told && told < length ? told : length;
}

/* flow and way are the hash of the flow, or 0, and its place: see pass_known(). */
__subprogram int observe_udp(struct __sk_buff *skb, __u64 place, enum direction direction,
			     __u64 flow, __u64 way)
{
	struct half half, *h = &half;
	struct flat_options *s = take(skb, h, place, direction);
	const struct udp_header *udp;
	__u32 ports;

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
	ports = udp->source | (__u32)udp->destination << 16;
	if (h->length < sizeof(*udp))
		count(COUNT_MALFORMED);
	else if (is_dns_port(s, udp->destination) || is_dns_port(s, udp->source))
		observe_dns(skb, s, h, ports, flow);
	else if (asks_groups(udp->source) || asks_groups(udp->destination))
		count(COUNT_MULTICAST);
	else
		observe_flow(skb, s, h, ports, flow, way);
	return 0;
}
