/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP and ICMPv6: echo by identifier and sequence, and errors, which quote the
 * request that they answer (RFC 792, RFC 4443).
 */
#pragma once

#include "udp.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* Neighbour discovery (RFC 4861, 4): solicitations, advertisements and redirects. */
static __always_inline bool is_discovery(bool ipv6, __u8 type)
{
	return ipv6 && type >= 133 && type <= 137;
}

static __always_inline __u32 echo_id(const struct icmp_echo *echo)
{
	return (__u32)bpf_ntohs(echo->id) << 16 | bpf_ntohs(echo->sequence);
}

/* Errors that end a request (RFC 792; RFC 4443, 3). Too big is not one: it is tried again smaller.
 */
static __always_inline bool is_error(bool ipv6, __u8 type, __u8 code)
{
	if (ipv6)
		return type == 1 || type == 3 || type == 4;
	return (type == 3 && code != 4) || type == 11 || type == 12;
}

/* What is quoted of a packet behind its IP header: 8 octets at least. */
union quoted {
	struct {
		__be16 source;
		__be16 destination;
		__be32 sequence; /* TCP only */
	} ports;
	struct icmp_echo echo;
};

/* What an error says of the packet that it quotes. */
struct quote {
	__u32 transport; /* offset of the transport header */
	__u8 protocol;
};

/* The quoted headers may lie anywhere in the packet, so they are copied out. */
static __always_inline bool read_quoted_ipv4(struct __sk_buff *skb, struct half *h, __u32 offset,
					     struct quote *q)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || is_later_fragment(&ip))
		return false;
	set_ipv4(h, &ip);
	q->protocol = ip.protocol;
	q->transport = offset + (first_octet(&ip) & 0xf) * 4;
	return true;
}

static __always_inline bool read_quoted_ipv6(struct __sk_buff *skb, struct half *h, __u32 offset,
					     struct quote *q)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return false;
	set_ipv6(h, &ip);
	q->protocol = ip.nexthdr;
	q->transport = offset + sizeof(ip);
	for (int i = 0; i < EXTENSIONS_MAX && is_extension(q->protocol); i++) {
		struct extension ext;
		__u32 size;

		if (bpf_skb_load_bytes(skb, q->transport, &ext, sizeof(ext)))
			return false;
		size = extension_size(q->protocol, &ext);
		if (!size)
			return false;
		q->protocol = opaque(skb, ext.next);
		q->transport = opaque(skb, q->transport + size);
	}
	return true;
}

/*
 * set_quoted_dns makes the key that of the DNS request that an error quotes. Without
 * its id and question, which not every router quotes, only the ends are known.
 */
static __always_inline void set_quoted_dns(struct __sk_buff *skb, struct half *h, __u64 offset,
					   const union quoted *q)
{
	__u64 id = 0, begin = offset + sizeof(*q) + sizeof(struct dns_header);
	struct dns_header dns;

	if (!bpf_skb_load_bytes(skb, offset + sizeof(*q), &dns, sizeof(dns)))
		id = dns_id(skb, &dns, begin, skb->len > begin ? skb->len - begin : 0);
	set_exchange(h, KIND_DNS, q->ports.source, q->ports.destination, id, 0);
}

/* set_quoted makes the key that of the request that an error quotes. */
__subprogram int set_quoted(struct __sk_buff *skb, struct flat_options *s, struct half *h,
			    __u32 *isn)
{
	__u32 offset = h->transport + sizeof(struct icmp_echo);
	struct quote quote;
	union quoted q;

	if (!(h->ipv6 ? read_quoted_ipv6(skb, h, offset, &quote)
		      : read_quoted_ipv4(skb, h, offset, &quote)) ||
	    bpf_skb_load_bytes(skb, quote.transport, &q, sizeof(q)))
		return false;
	switch (quote.protocol) {
	case IPPROTO_TCP:
		set_exchange(h, KIND_TCP, q.ports.source, q.ports.destination, 0, 0);
		*isn = bpf_ntohl(q.ports.sequence);
		return true;
	case IPPROTO_UDP:
		if (is_dns_port(s, q.ports.destination))
			set_quoted_dns(skb, h, quote.transport, &q);
		else
			set_exchange(h, KIND_UDP, q.ports.source, q.ports.destination, 0, 0);
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (q.echo.type != (h->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST))
			return false;
		set_exchange(h, KIND_ICMP, 0, 0, echo_id(&q.echo), 0);
		return true;
	}
	return false;
}

/* find_quoted is the open request that an error quotes, or 0. */
static __always_inline struct flat_request *find_quoted(struct __sk_buff *skb, struct half *h,
							struct answer *a, __u32 isn)
{
	struct flat_request *found = find(a->side, &h->key, h->hash);

	/* An error may quote a question cut short, or nothing of the message. */
	if (!found && kind_of(&h->key) == KIND_DNS && !(h->key.id & QUESTION_HASH_MASK))
		found = find_by_tuple(h, a->side, true);
	if (!found)
		found = find_translated(skb, h, a, isn);
	if (!found || found->state != STATE_OPEN ||
	    (kind_of(&h->key) == KIND_TCP && found->isn != isn))
		return 0;
	return found;
}

/* observe_error finishes the request that an error quotes. */
__subprogram int observe_error(struct __sk_buff *skb, struct flat_options *s, struct half *h)
{
	struct answer a = new_answer(h, RESULT_UNREACHABLE, false);
	const struct icmp_echo *icmp = packet_at(skb, h->transport, sizeof(*icmp));
	struct flat_request *found;
	__u32 isn = 0;
	bool known;

	if (!icmp)
		return 0; /* never: the caller has read it */
	a.icmp_type = icmp->type;
	a.icmp_code = icmp->code;
	a.ttl = 0; /* a router's, as a rule */
	/* What is quoted went the other way. */
	h->direction = h->direction == EGRESS ? INGRESS : EGRESS;
	known = set_quoted(skb, s, h, &isn);
	h->direction = h->direction == EGRESS ? INGRESS : EGRESS;

	found = known ? find_quoted(skb, h, &a, isn) : 0;
	if (!found && known && flat_shared.phase != PHASE_ALONE)
		forget_seen(h, a.side, isn);
	if (!found || !complete_exchange(s, h, found, &a))
		count(COUNT_QUOTE);
	return 0;
}

/* observe_echo looks at an echo request or reply, whose exchange is in h. */
__subprogram int observe_echo(struct __sk_buff *skb, struct flat_options *s, struct half *h,
			      bool request)
{
	struct answer a;

	if (request) {
		track_request(skb, s, h);
		return 0;
	}
	a = new_answer(h, RESULT_ANSWERED, true);
	answer(skb, s, h, &a);
	return 0;
}

__subprogram int observe_icmp(struct __sk_buff *skb, __u64 place, enum direction direction)
{
	struct half half, *h = &half;
	struct flat_options *s = take(skb, h, place, direction);
	const struct icmp_echo *echo;
	bool request, reply;

	if (!s)
		return 0;
	echo = packet_at(skb, h->transport, sizeof(*echo));
	if (!echo) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	if (is_error(h->ipv6, echo->type, echo->code)) {
		observe_error(skb, s, h);
		return 0;
	}
	request = echo->type == (h->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST);
	reply = echo->type == (h->ipv6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY);
	if (!request && !reply) {
		if (direction == INGRESS && is_discovery(h->ipv6, echo->type))
			hear_neighbour();
		count(COUNT_ICMP_OTHER);
		return 0;
	}
	set_exchange(h, KIND_ICMP, 0, 0, echo_id(echo), 0);
	if (h->length < sizeof(*echo)) {
		count(COUNT_MALFORMED);
		return 0;
	}
	if (to_group(h)) {
		count(COUNT_MULTICAST);
		return 0;
	}
	observe_echo(skb, s, h, request);
	return 0;
}
