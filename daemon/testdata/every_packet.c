/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What flatd is not: a program that sends the headers of every packet to user
 * space, for a process to match there.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define HEADERS 54 /* Ethernet, IPv4, TCP */

struct record {
	__u64 at_ns;
	__u8 headers[HEADERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 20);
} packets SEC(".maps");

__u64 lost;

SEC("tc")
int every_packet(struct __sk_buff *skb)
{
	struct record *r = bpf_ringbuf_reserve(&packets, sizeof(*r), 0);

	if (!r) {
		__sync_fetch_and_add(&lost, 1);
		return TC_ACT_UNSPEC;
	}
	r->at_ns = bpf_ktime_get_ns();
	if (bpf_skb_load_bytes(skb, 0, r->headers, HEADERS))
		bpf_ringbuf_discard(r, 0);
	else
		bpf_ringbuf_submit(r, 0);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
