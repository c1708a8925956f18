/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The other yardstick: the least that can match a SYN with its SYN/ACK, or a
 * datagram with the first one back, in the kernel. No filter, no counter, no
 * histogram, no sequence; IPv4 and IPv6 behind plain Ethernet; what this host
 * asks only. Written apart from flat.c, so as not to measure that against itself.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct key {
	__be32 local[4];
	__be32 remote[4];
	__be16 local_port;
	__be16 remote_port;
	__u32 protocol;
};

struct record {
	struct key key;
	__u64 duration_ns;
	__u64 end_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct key);
	__type(value, __u64);
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

static __always_inline int observe(struct __sk_buff *skb, bool out)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct key key = {};
	__be32 *from = out ? key.local : key.remote;
	__be32 *to = out ? key.remote : key.local;
	struct record *r;
	__be16 *ports;
	__u64 *asked;
	__u64 now;
	void *l4;

	if ((void *)(eth + 1) > end)
		return TC_ACT_UNSPEC;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->ihl < 5)
			return TC_ACT_UNSPEC;
		key.protocol = ip->protocol;
		from[3] = ip->saddr;
		to[3] = ip->daddr;
		l4 = (void *)ip + ip->ihl * 4;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return TC_ACT_UNSPEC;
		key.protocol = ip->nexthdr;
		__builtin_memcpy(from, &ip->saddr, 16);
		__builtin_memcpy(to, &ip->daddr, 16);
		l4 = ip + 1;
	} else {
		return TC_ACT_UNSPEC;
	}
	if (key.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || !tcp->syn || tcp->ack == out)
			return TC_ACT_UNSPEC;
	} else if (key.protocol != IPPROTO_UDP || l4 + sizeof(struct udphdr) > end) {
		return TC_ACT_UNSPEC;
	}
	ports = l4;
	key.local_port = ports[!out];
	key.remote_port = ports[out];
	now = bpf_ktime_get_ns();
	if (out) {
		bpf_map_update_elem(&pending, &key, &now, BPF_NOEXIST);
		return TC_ACT_UNSPEC;
	}
	asked = bpf_map_lookup_elem(&pending, &key);
	if (!asked)
		return TC_ACT_UNSPEC;
	r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);
	if (r) {
		r->key = key;
		r->duration_ns = now - *asked;
		r->end_ns = now;
		bpf_ringbuf_submit(r, 0);
	}
	bpf_map_delete_elem(&pending, &key);
	return TC_ACT_UNSPEC;
}

SEC("tc/egress")
int minimal_egress(struct __sk_buff *skb)
{
	return observe(skb, true);
}

SEC("tc/ingress")
int minimal_ingress(struct __sk_buff *skb)
{
	return observe(skb, false);
}

char _license[] SEC("license") = "Dual BSD/GPL";
