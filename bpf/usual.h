/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets whose headers are as most are, without tags, options and extensions: read in one
 * go, in few lines of the CPU's cache. parse.h reads all others.
 */
#pragma once

#include "half.h"
#include "parse.h"

/*
 * is_ordinary knows the segments for which parse() would return PARSED_SKIP, if their
 * headers are usual.
 */
static __always_inline bool is_ordinary(const struct __sk_buff *skb, enum direction direction)
{
	const struct ethhdr *eth = (void *)(long)skb->data;
	const struct iphdr *v4 = (void *)(eth + 1);
	const struct ipv6hdr *v6 = (void *)(eth + 1);
	const struct tcp_header *tcp = (void *)(v4 + 1);
	const void *end = (void *)(long)skb->data_end;
	__u32 source;

	if ((void *)(tcp + 1) > end)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (first_octet(v4) != 0x45 || v4->protocol != IPPROTO_TCP || is_later_fragment(v4))
			return false;
		source = fold_ipv4(v4->saddr);
	} else {
		tcp = (void *)(v6 + 1);
		if (eth->h_proto != bpf_htons(ETH_P_IPV6) || (void *)(tcp + 1) > end ||
		    first_octet(v6) >> 4 != 6 || v6->nexthdr != IPPROTO_TCP)
			return false;
		source = fold_addr(v6->saddr.in6_u.u6_addr32);
	}
	return !(tcp->flags & (TCP_SYN | TCP_RST)) &&
	       (direction == EGRESS || !is_awaited_ack(tcp, source));
}

/* may_pass reports whether a packet is one that pass_known() or pass_reset() may take. */
static __always_inline bool may_pass(__u8 protocol, const void *transport, const void *end)
{
	const struct udp_header *udp = transport;
	const struct tcp_header *tcp = transport;

	if (protocol == IPPROTO_UDP)
		return bpf_ntohs(udp->length) >= sizeof(*udp);
	return protocol == IPPROTO_TCP && (void *)(tcp + 1) <= end && tcp->flags & TCP_RST &&
	       tcp->offset >> 4 >= sizeof(*tcp) / 4;
}

/*
 * read_ends reads the ends of a datagram or a RST, if its headers are usual. It returns the
 * protocol, or 0 if they are not.
 */
static __always_inline __u8 read_ends(const struct __sk_buff *skb, struct flow_ends *e,
				      enum direction direction, enum link link)
{
	const struct iphdr *v4 =
		(void *)(long)skb->data + (link == LINK_ETHERNET ? sizeof(struct ethhdr) : 0);
	const struct ipv6hdr *v6 = (void *)v4;
	const struct udp_header *udp = (void *)(v4 + 1); /* TCP begins with the ports as well */
	const void *end = (void *)(long)skb->data_end;
	union flat_addr source, destination;
	bool out = direction == EGRESS;
	__u8 protocol;

	if ((void *)(udp + 1) > end || (link == LINK_NONE && !out && outer_first))
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (first_octet(v4) != 0x45 || v4->frag_off & bpf_htons(0x3fff) ||
		    !may_pass(v4->protocol, udp, end))
			return 0;
		protocol = v4->protocol;
		copy_ipv4(&source, v4->saddr);
		copy_ipv4(&destination, v4->daddr);
	} else {
		udp = (void *)(v6 + 1);
		if (skb->protocol != bpf_htons(ETH_P_IPV6) || (void *)(udp + 1) > end ||
		    first_octet(v6) >> 4 != 6 || !may_pass(v6->nexthdr, udp, end))
			return 0;
		protocol = v6->nexthdr;
		copy_ipv6(&source, &v6->saddr);
		copy_ipv6(&destination, &v6->daddr);
	}
	e->local[0] = out ? source.halves[0] : destination.halves[0];
	e->local[1] = out ? source.halves[1] : destination.halves[1];
	e->remote[0] = out ? destination.halves[0] : source.halves[0];
	e->remote[1] = out ? destination.halves[1] : source.halves[1];
	e->local_port = out ? udp->source : udp->destination;
	e->remote_port = out ? udp->destination : udp->source;
	return protocol;
}
