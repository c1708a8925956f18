/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP: a SYN asks, a SYN/ACK or RST answers. An attempt from outside is over
 * only when the ACK has come that completes the handshake; until then it may be
 * half of a scan, or forged.
 */
#pragma once

#include "pending.h"

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_TIMESTAMPS 8 /* RFC 7323, 3.2 */
#define TCP_OPTIONS_MAX 8

struct tcp_option {
	__u8 kind;
	__u8 length;
};

struct tcp_timestamps {
	__be32 value;
	__be32 echo;
};

/* read_timestamps finds the timestamps option, or returns false. */
static __always_inline bool read_timestamps(struct __sk_buff *skb, __u32 transport, __u32 header,
					    struct tcp_timestamps *ts)
{
	__u32 pos = sizeof(struct tcp_header);

	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		struct tcp_option option;

		if (pos + sizeof(option) > header ||
		    bpf_skb_load_bytes(skb, transport + pos, &option, sizeof(option)) ||
		    option.kind == TCP_OPTION_END)
			return false;
		if (option.kind == TCP_OPTION_TIMESTAMPS && option.length == 10)
			return pos + 10 <= header &&
			       !bpf_skb_load_bytes(skb, transport + pos + 2, ts, sizeof(*ts));
		if (option.kind == TCP_OPTION_NOP)
			pos += 1;
		else if (option.length >= 2)
			pos += option.length;
		else
			return false;
	}
	return false;
}

/* An answer acknowledges the SYN, and its data as far as it took them (RFC 7413). */
static __always_inline bool acknowledges(const struct tcp_header *tcp,
					 const struct flat_pending *found)
{
	return tcp->flags & TCP_ACK &&
	       bpf_ntohl(tcp->acknowledgment) - found->isn - 1 <= found->payload;
}

static __always_inline void observe_syn(struct half *h, const struct tcp_header *tcp,
					__u32 transport, __u32 header, __u32 length)
{
	struct flat_pending request = new_request(h);
	struct flat_pending *found;
	struct tcp_timestamps ts;

	request.isn = bpf_ntohl(tcp->sequence);
	request.payload = length - header;
	if (read_timestamps(h->skb, transport, header, &ts)) {
		request.first_tsval = bpf_ntohl(ts.value);
		request.last_tsval = request.first_tsval;
	}
	found = found_asking(h);
	remember(h, &request, found, found && found->isn == request.isn);
}

/* await_completion notes that this host has answered a SYN from outside. */
static __always_inline void await_completion(struct half *h, struct flat_pending *found,
					     const struct tcp_header *tcp)
{
	__u32 slot = slot_hash(fold_addr((__be32 *)h->key.remote.words), h->key.remote_port,
			       h->key.local_port);

	if (found->state == STATE_HALF_OPEN) {
		count(COUNT_REPEATS); /* the SYN/ACK was sent again */
		return;
	}
	found->state = STATE_HALF_OPEN;
	found->answer_ns = h->now;
	own_socket(h->skb, &found->cgroup, &found->uid);
	if (!await_ack(slot, bpf_ntohl(tcp->sequence) + 1, h->now))
		count(COUNT_AWAITING_FULL);
}

static __always_inline void observe_syn_ack(struct half *h, const struct tcp_header *tcp,
					    __u32 transport, __u32 header)
{
	struct answer a = new_answer(h, RESULT_ESTABLISHED, true);
	enum flat_side side = side_of_answer(h->direction);
	struct flat_pending *found = found_answering(h);
	struct tcp_timestamps ts;

	if (found && !acknowledges(tcp, found)) {
		count(COUNT_WRONG_ACK);
		return;
	}
	if (found && side == SIDE_SERVER && found->state != STATE_REPORTED) {
		await_completion(h, found, tcp);
		return;
	}
	if (found && found->repeats && read_timestamps(h->skb, transport, header, &ts))
		a.echoed_tsval = bpf_ntohl(ts.echo);
	answer(h, found, &a);
}

/* A RST that acknowledges no SYN is somebody's guess (RFC 9293, 3.10.7.3). */
static __always_inline void observe_rst(struct half *h, const struct tcp_header *tcp)
{
	struct answer a = new_answer(h, RESULT_REFUSED, false);
	struct flat_pending *found = found_answering(h);

	if (found && !acknowledges(tcp, found))
		count(COUNT_WRONG_ACK);
	else
		answer(h, found, &a);
}

static __noinline int observe_tcp(struct __sk_buff *skb, __u32 network, __u32 transport,
				  __u32 length, __u32 traits)
{
	struct half half, *h = &half;
	struct tcp_header tcp;
	__u32 header;

	if (!take(h, skb, network, traits))
		return 0;
	if (bpf_skb_load_bytes(skb, transport, &tcp, sizeof(tcp))) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	header = (tcp.offset >> 4) * 4;
	if (header < sizeof(tcp) || header > length) {
		count(COUNT_MALFORMED);
		return 0;
	}
	set_exchange(h, KIND_TCP, tcp.source, tcp.destination, 0);
	if (tcp.flags & TCP_RST)
		observe_rst(h, &tcp);
	else if (tcp.flags & TCP_ACK)
		observe_syn_ack(h, &tcp, transport, header);
	else
		observe_syn(h, &tcp, transport, header, length);
	return 0;
}

/* observe_ack completes a handshake from outside, if this ACK does. */
static __noinline int observe_ack(struct __sk_buff *skb, __u32 network, __u32 transport,
				  __u32 traits)
{
	struct half half, *h = &half;
	struct flat_pending *found;
	struct tcp_header tcp;
	struct answer a;

	if (!take(h, skb, network, traits) || bpf_skb_load_bytes(skb, transport, &tcp, sizeof(tcp)))
		return 0;
	set_exchange(h, KIND_TCP, tcp.source, tcp.destination, 0);
	found = bpf_map_lookup_elem(&flat_theirs, &h->key);
	/* What comes next in sequence: others that fit the slot are other connections'. */
	if (!found || found->state != STATE_HALF_OPEN ||
	    bpf_ntohl(tcp.sequence) - found->isn - 1 > found->payload)
		return 0;
	stop_awaiting(
		slot_hash(fold_addr((__be32 *)h->key.remote.words), tcp.source, tcp.destination),
		bpf_ntohl(tcp.acknowledgment));
	a = new_answer(h, RESULT_ESTABLISHED, true);
	a.at_ns = found->answer_ns;
	a.client_rtt_ns = h->now - found->answer_ns;
	finish(h, SIDE_SERVER, found, &a);
	return 0;
}
