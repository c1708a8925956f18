//go:build ignore

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * flatd's kernel half. A packet comes in at one of the four programs at the
 * end of this file and goes through observe(): parse.h finds its transport
 * header and half.h its ends; tcp.h, udp.h or icmp.h separates request and answer;
 * request.h tracks the one and ends it by the other, table.h is where it is kept
 * meanwhile, report.h writes the record (record.h) that user space reads.
 * A request without an answer ends in timeout.h, by a record of the same kind.
 *
 * The packet is never changed, delayed or dropped, and the verdict is always
 * "next": TC_ACT_UNSPEC for clsact, TCX_NEXT for tcx, both -1. TC_ACT_OK would
 * end the chain for every other program on the hook.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "icmp.h"
#include "parse.h"
#include "tcp.h"
#include "timeout.h"
#include "udp.h"
#include "usual.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define NEXT TC_ACT_UNSPEC

/* Named here so that they are in the object's BTF, from which bpf2go makes the Go types. */
const struct flat_dns_record *const type_record = 0;
const enum flat_counter *const type_counter = 0;
const struct flat_options2 *const type_options2 = 0;
const struct flat_overdue *const type_overdue = 0;

/* Enough for Ethernet, two tags, IPv6 with some extension headers and TCP. */
#define PULL_BYTES 256

static __always_inline int observe(struct __sk_buff *skb, enum direction direction, enum link link)
{
	struct packet p = {};
	__u64 place, flow = 0, way = UNSEARCHED;
	struct flow_ends e;
	__u8 protocol;
	int parsed;

	if (link == LINK_ETHERNET && is_ordinary(skb, direction))
		return NEXT;
	protocol = read_ends(skb, &e, direction, link);
	if (protocol) {
		flow = flow_hash(&e, key_ifindex(skb));
		if (protocol == IPPROTO_UDP ? pass_known(direction, flow, &way)
					    : pass_reset(skb, direction, flow))
			return NEXT;
		way = opaque(skb, way);
	}
	parsed = parse(skb, &p, direction, link);
	if (parsed == -COUNT_TRUNCATED) {
		/* The headers may lie beyond the linear part of the buffer. */
		__u32 bytes = skb->len < PULL_BYTES ? skb->len : PULL_BYTES;

		if (!bpf_skb_pull_data(skb, bytes)) {
			p = (struct packet){};
			parsed = parse(skb, &p, direction, link);
		}
	}
	if (parsed == PARSED_SKIP)
		return NEXT;
	if (parsed < 0) {
		if (direction == INGRESS && skb->protocol == bpf_htons(ETH_P_ARP))
			hear_neighbour();
		count(-parsed);
		return NEXT;
	}
	if (p.length > 0xffff) {
		count(COUNT_MALFORMED); /* shorter than its IP header */
		return NEXT;
	}
	place = opaque(skb, pack(&p));
	if (p.protocol == IPPROTO_TCP)
		observe_tcp(skb, place, direction, flow);
	else if (p.protocol == IPPROTO_UDP)
		observe_udp(skb, place, direction, flow, way);
	else
		observe_icmp(skb, place, direction);
	return NEXT;
}

/* The daemon runs this one, never a packet: what is overdue is behind the place of an Ethernet
 * header. */
SEC("tc/timeout")
int flat_timeout(struct __sk_buff *skb)
{
	struct flat_overdue o;
	struct flat_options *s;
	__u32 zero = 0;

	s = bpf_map_lookup_elem(&flat_settings, &zero);
	if (s && !bpf_skb_load_bytes(skb, ETH_HLEN, &o, sizeof(o)))
		time_out(&o, s);
	return NEXT;
}

SEC("tc/ingress")
int flat_ingress(struct __sk_buff *skb)
{
	return observe(skb, INGRESS, LINK_ETHERNET);
}

SEC("tc/egress")
int flat_egress(struct __sk_buff *skb)
{
	return observe(skb, EGRESS, LINK_ETHERNET);
}

/* For devices without a link header. */
SEC("tc/ingress_l3")
int flat_ingress_l3(struct __sk_buff *skb)
{
	return observe(skb, INGRESS, LINK_NONE);
}

SEC("tc/egress_l3")
int flat_egress_l3(struct __sk_buff *skb)
{
	return observe(skb, EGRESS, LINK_NONE);
}
