/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ACK that completes a handshake from outside looks like any other ACK of
 * any connection. So that these need no lookup in a hash map, each SYN/ACK that
 * goes out leaves the number that its ACK will carry in a slot found by the
 * connection's ends; an ACK that finds its number there is worth a closer look.
 *
 * The slots are in a global variable, read without any helper. A connection has a
 * choice of two; where both are taken, it is not looked out for, and counted.
 *
 * Half a megabyte read here and there has its price too, so there is a flag "any
 * open?" before it: as long as nobody has connected to this host, and again once
 * user space has seen that no handshake is open, the slots are not looked at.
 */
#pragma once

#include <linux/types.h>

#include "shared.h"

/* awaiting_unit is a time in units of 2^30 ns, from 1. */
static __always_inline __u32 awaiting_unit(__u64 now)
{
	return (now >> 30) + 1;
}

/* any_awaited is false where user space has set handshakes_shut to what handshakes_opened is. */
static __always_inline bool any_awaited(void)
{
	return flat_shared.handshakes_opened != flat_shared.handshakes_shut;
}

/* A slot that was not cleared for so long may be taken: about ten seconds. */
#define AWAITING_UNITS 10

/* slot_hash mixes the ends of a connection: any packet from outside gives the same. */
static __always_inline __u32 slot_hash(__u32 remote, __be16 remote_port, __be16 local_port)
{
	return (remote ^ ((__u32)remote_port << 16 | local_port)) * 0x9e3779b1;
}

/* Both slots of a connection are in one cache line. */
static __always_inline __u32 awaiting_slot(__u32 hash, int choice)
{
	return ((hash >> 16) ^ choice) & (AWAITING_SLOTS - 1);
}

/* is_awaited is what each ACK from outside pays. */
static __always_inline bool is_awaited(__u32 hash, __u32 acknowledgment)
{
	const struct awaited *one = &flat_shared.awaiting[awaiting_slot(hash, 0)];
	const struct awaited *other = &flat_shared.awaiting[awaiting_slot(hash, 1)];

	if (!any_awaited())
		return false;
	return (one->acknowledgment == acknowledgment && one->since) ||
	       (other->acknowledgment == acknowledgment && other->since);
}

/* await_ack returns whether there was a slot. */
static __always_inline bool await_ack(__u32 hash, __u32 acknowledgment, __u64 now)
{
	__u32 unit = awaiting_unit(now);

	if (flat_shared.handshakes_opened != unit)
		flat_shared.handshakes_opened = unit;
#pragma unroll
	for (int choice = 0; choice < 2; choice++) {
		struct awaited *slot = &flat_shared.awaiting[awaiting_slot(hash, choice)];

		if (!slot->since || (__s32)(unit - slot->since) > AWAITING_UNITS) {
			slot->acknowledgment = acknowledgment;
			slot->since = unit;
			return true;
		}
	}
	return false;
}

static __always_inline void stop_awaiting(__u32 hash, __u32 acknowledgment)
{
#pragma unroll
	for (int choice = 0; choice < 2; choice++) {
		struct awaited *slot = &flat_shared.awaiting[awaiting_slot(hash, choice)];

		if (slot->acknowledgment == acknowledgment)
			slot->since = 0;
	}
}
