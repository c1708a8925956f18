/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The yardstick of BenchmarkPacket: a program that finds the TCP header behind
 * Ethernet, VLAN tags, IPv4 with options or IPv6, and returns. It is written
 * apart from parse.h, so as not to measure that against itself.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int parse_only(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct tcphdr *tcp;
	__be16 protocol;

	if ((void *)(eth + 1) > end)
		return TC_ACT_UNSPEC;
	protocol = eth->h_proto;
	data = eth + 1;
#pragma unroll
	for (int tags = 0; tags < 2; tags++) {
		__be16 *tag = data;

		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 2) > end)
			return TC_ACT_UNSPEC;
		protocol = tag[1];
		data = tag + 2;
	}

	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;

		if ((void *)(ip + 1) > end || ip->ihl < 5 || ip->protocol != IPPROTO_TCP)
			return TC_ACT_UNSPEC;
		tcp = data + ip->ihl * 4;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data;

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return TC_ACT_UNSPEC;
		tcp = (void *)(ip + 1);
	} else {
		return TC_ACT_UNSPEC;
	}
	if ((void *)(tcp + 1) > end)
		return TC_ACT_UNSPEC;
	/* A verdict that depends on the header, so that it has to be read. */
	return tcp->syn || tcp->rst ? TC_ACT_OK : TC_ACT_UNSPEC;
}
