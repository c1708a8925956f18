/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is measured. The filter acts on requests alone, so that what was let in
 * is followed to its end whatever a reload changes.
 */
#pragma once

#include "half.h"

static __always_inline bool port_wanted(const struct flat_options *s, __be16 responder)
{
	__u16 port = bpf_ntohs(responder);

	if (s->port_ranges_count == 0)
		return true;
	for (__u32 i = 0; i < PORT_RANGES_MAX; i++) {
		if (i >= s->port_ranges_count)
			break;
		if (port >= s->port_ranges[i].first && port <= s->port_ranges[i].last)
			return true;
	}
	return false;
}

static __always_inline bool address_wanted(const struct flat_options *s, const struct half *h,
					   enum flat_end end)
{
	struct flat_net net = {
		.prefix_bits = 32 + 128,
		.table = s->generation * 4 + end * 2 + h->ipv6,
		.addr = end == END_LOCAL ? h->key.local : h->key.remote,
	};
	__u32 *verdict = bpf_map_lookup_elem(&flat_nets, &net);

	if (verdict)
		return *verdict == NET_INCLUDE;
	return !(s->flags & (end == END_LOCAL ? SETTING_LOCAL_LISTED : SETTING_REMOTE_LISTED));
}

__checked_alone bool wanted(struct flat_options *s, struct half *h, __u32 side)
{
	const struct flat_key *key = &h->key;
	enum flat_kind kind;

	if (!s || !h)
		return false; /* never, but the verifier looks at this function alone */
	kind = kind_of(key);

	if (s->skip_kinds & (1U << kind) || s->skip_sides & (1U << side))
		return false;
	/* An echo has no port; a port filter does not concern it. */
	if (kind != KIND_ICMP &&
	    !port_wanted(s, side == SIDE_CLIENT ? key->remote_port : key->local_port))
		return false;
	if (s->flags & SETTING_REMOTE_NETS && !address_wanted(s, h, END_REMOTE))
		return false;
	return !(s->flags & SETTING_LOCAL_NETS) || address_wanted(s, h, END_LOCAL);
}
