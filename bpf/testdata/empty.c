/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the kernel needs to run a program at all. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int empty(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_UNSPEC;
}
