/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Attribution: the cgroup and user of a request's socket, and the process.
 */
#pragma once

#include "half.h"

/*
 * attribute_socket finds cgroup and user of a packet that goes out. On a packet that
 * comes in over veth they would be the sender's.
 */
static __always_inline void attribute_socket(struct __sk_buff *skb, __u64 *cgroup, __u32 *uid)
{
	*cgroup = bpf_skb_cgroup_id(skb);
	*uid = *cgroup ? bpf_get_socket_uid(skb) : 0;
}

/* Whether the kernel has these helpers for programs of tc; set before they are loaded. */
const volatile bool have_pid;  /* Linux 6.10 */
const volatile bool have_comm; /* Linux 6.16 */

/*
 * hear_neighbour notes a packet from which the kernel may learn a neighbour's
 * address. It then sends what waited for that, at once and on this CPU, in the
 * time of whoever was running there.
 */
static __always_inline void hear_neighbour(void)
{
	if (have_pid)
		flat_shared.neighbour_ns = bpf_ktime_get_boot_ns();
}

/* A SYN that goes out later than this after TCP made it may have waited for something. */
#define AT_ONCE_NS (50 * 1000)

/* is_at_once is whether a packet comes straight from TCP, and not from a queue. */
static __always_inline bool is_at_once(const struct __sk_buff *skb, const struct half *h)
{
	__s64 age = h->now - flat_shared.suspended_ns - skb->tstamp;

	return age <= AT_ONCE_NS && age < elapsed(h, flat_shared.neighbour_ns);
}

/* is_first is whether TCP sends a SYN for the first time: its timer does so again. */
static __always_inline bool is_first(struct __sk_buff *skb)
{
	struct bpf_tcp_sock *tcp = skb->sk ? bpf_tcp_sock(skb->sk) : 0;

	return tcp && !tcp->total_retrans;
}

/*
 * attribute_process finds the process that asks, where it is sure to be the current one:
 * its SYN comes straight from TCP, not from a queue because the neighbour's address
 * was unknown, nor from a timer, and the current task is in the cgroup of the socket.
 * Datagrams bear no time, so for them it stays unknown.
 */
static __always_inline void attribute_process(struct __sk_buff *skb, const struct half *h,
					      struct flat_request *request)
{
	if (!have_current || !have_pid || kind_of(&h->key) != KIND_TCP || !request->cgroup ||
	    bpf_get_current_cgroup_id() != request->cgroup || !is_at_once(skb, h) || !is_first(skb))
		return;
	request->pid = bpf_get_current_pid_tgid() >> 32;
	if (have_comm)
		bpf_get_current_comm(request->comm, sizeof(request->comm));
}
