/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP and ICMPv6: echo by identifier and sequence, and errors, which quote the
 * request that they answer (RFC 792, RFC 4443).
 */
#pragma once

#include "pending.h"
#include "udp.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

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

/* quoted_protocol finds the quoted transport header and which it is, or returns -1. */
static __always_inline int quoted_protocol(struct half *h, __u32 quote, __u32 *transport)
{
	__u8 octet, protocol;

	if (h->ipv6) {
		*transport = quote + sizeof(struct ipv6hdr);
		if (bpf_skb_load_bytes(h->skb, quote + 6, &protocol, 1))
			return -1;
		return protocol;
	}
	if (bpf_skb_load_bytes(h->skb, quote, &octet, 1) ||
	    bpf_skb_load_bytes(h->skb, quote + 9, &protocol, 1))
		return -1;
	*transport = quote + (octet & 0xf) * 4;
	return protocol;
}

/* set_quoted makes the key that of the request that an error quotes. */
static __always_inline bool set_quoted(struct half *h, __u32 quote, __u32 *sequence)
{
	__u32 transport;
	union quoted q;
	__be16 dns_id;
	int protocol = quoted_protocol(h, quote, &transport);

	if (protocol < 0 || !set_addresses(h, quote) ||
	    bpf_skb_load_bytes(h->skb, transport, &q, sizeof(q)))
		return false;
	switch (protocol) {
	case IPPROTO_TCP:
		set_exchange(h, KIND_TCP, q.ports.source, q.ports.destination, 0);
		*sequence = bpf_ntohl(q.ports.sequence);
		return true;
	case IPPROTO_UDP:
		if (!is_dns_port(h->settings, q.ports.destination)) {
			set_exchange(h, KIND_UDP, q.ports.source, q.ports.destination, 0);
			return true;
		}
		if (bpf_skb_load_bytes(h->skb, transport + sizeof(q), &dns_id, sizeof(dns_id)))
			return false;
		set_exchange(h, KIND_DNS, q.ports.source, q.ports.destination, bpf_ntohs(dns_id));
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (q.echo.type != (h->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST))
			return false;
		set_exchange(h, KIND_ICMP, 0, 0, echo_id(&q.echo));
		return true;
	}
	return false;
}

/* observe_error finishes the request that an error quotes. */
static __always_inline void observe_error(struct half *h, __u32 transport,
					  const struct icmp_echo *icmp)
{
	struct answer a = new_answer(h, RESULT_UNREACHABLE, false);
	enum flat_side side = side_of_answer(h->direction);
	struct flat_pending *found;
	struct flat_pending reported;
	__u32 sequence = 0;
	bool known;

	a.icmp_type = icmp->type;
	a.icmp_code = icmp->code;
	a.ttl = 0; /* a router's, as a rule */
	/* What is quoted went the other way. */
	h->direction = h->direction == EGRESS ? INGRESS : EGRESS;
	known = set_quoted(h, transport + sizeof(*icmp), &sequence);
	h->direction = h->direction == EGRESS ? INGRESS : EGRESS;

	found = known ? bpf_map_lookup_elem(table_of(side), &h->key) : 0;
	if (!found || found->state != STATE_OPEN ||
	    (h->key.kind == KIND_TCP && found->isn != sequence)) {
		count(COUNT_QUOTE);
		return;
	}
	/* TCP goes on trying all the same; that is not to be a new attempt. */
	reported = *found;
	reported.state = STATE_REPORTED;
	if (finish(h, side, found, &a))
		bpf_map_update_elem(table_of(side), &h->key, &reported, BPF_NOEXIST);
}

static __noinline int observe_icmp(struct __sk_buff *skb, __u32 network, __u32 transport,
				   __u32 length, __u32 traits)
{
	struct half half, *h = &half;
	struct flat_pending *found;
	struct icmp_echo echo;
	bool request, reply;

	if (!take(h, skb, network, traits))
		return 0;
	if (bpf_skb_load_bytes(skb, transport, &echo, sizeof(echo))) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	if (is_error(h->ipv6, echo.type, echo.code)) {
		observe_error(h, transport, &echo);
		return 0;
	}
	request = echo.type == (h->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST);
	reply = echo.type == (h->ipv6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY);
	if (!request && !reply) {
		count(COUNT_ICMP_OTHER);
		return 0;
	}
	if (length < sizeof(echo)) {
		count(COUNT_MALFORMED);
		return 0;
	}
	if (h->group) {
		count(COUNT_MULTICAST);
		return 0;
	}
	set_exchange(h, KIND_ICMP, 0, 0, echo_id(&echo));

	if (request) {
		struct flat_pending pending = new_request(h);

		found = found_asking(h);
		remember(h, &pending, found, is_current(h, found));
		return 0;
	}

	struct answer a = new_answer(h, RESULT_ANSWERED, true);

	answer(h, found_answering(h), &a);
	return 0;
}
