/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP: a SYN asks, a SYN/ACK or RST answers. An attempt from outside is over
 * only when the ACK has come that completes the handshake; until then it may be
 * half of a scan, or forged.
 */
#pragma once

#include "request.h"

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_TIMESTAMPS 8 /* RFC 7323, 3.2 */
#define TCP_OPTIONS_MAX 8

struct tcp_timestamps {
	__u8 kind;
	__u8 length;
	__be32 value;
	__be32 echo;
} __attribute__((packed));

/*
 * find_timestamps returns the offset of the timestamps option among the options
 * from pos to end, or 0.
 */
__checked_alone __u64 find_timestamps(struct __sk_buff *skb, __u64 pos, __u64 end)
{
#pragma unroll /* clang's own way to turn the loop is one that Linux 5.10 does not follow */
	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		const struct tcp_timestamps *option = packet_at(skb, pos, 2);

		if (!option || pos + 2 > end || option->kind == TCP_OPTION_END)
			return 0;
		if (option->kind == TCP_OPTION_TIMESTAMPS)
			return option->length == sizeof(*option) && pos + sizeof(*option) <= end
				       ? pos
				       : 0;
		if (option->kind == TCP_OPTION_NOP)
			pos += 1;
		else if (option->length >= 2)
			pos += option->length;
		else
			return 0;
		pos = opaque(skb, pos);
	}
	return 0;
}

/* The options of a SYN in the order in which Linux writes them; no need to look for them there. */
struct linux_options {
	__be32 mss;  /* kind 2, length 4 (RFC 9293, 3.2) */
	__be16 sack; /* kind 4, length 2 (RFC 2018, 2) */
	struct tcp_timestamps timestamps;
} __attribute__((packed));

static __always_inline const struct tcp_timestamps *usual_timestamps(const struct __sk_buff *skb,
								     __u64 pos, __u64 end)
{
	const struct linux_options *o = packet_at(skb, pos, sizeof(*o));

	if (!o || pos + sizeof(*o) > end ||
	    (o->mss & bpf_htonl(0xffff0000)) != bpf_htonl(0x02040000) ||
	    o->sack != bpf_htons(0x0402) || o->timestamps.kind != TCP_OPTION_TIMESTAMPS ||
	    o->timestamps.length != sizeof(o->timestamps))
		return 0;
	return &o->timestamps;
}

/* timestamps_of returns the timestamps option of a segment, or 0. */
static __always_inline const struct tcp_timestamps *
timestamps_of(struct __sk_buff *skb, const struct half *h, const struct tcp_header *tcp)
{
	__u64 begin = h->transport + sizeof(*tcp);
	__u64 end = h->transport + (tcp->offset >> 4) * 4;
	const struct tcp_timestamps *usual = usual_timestamps(skb, begin, end);
	__u64 found;

	if (usual)
		return usual;
	found = opaque(skb, find_timestamps(skb, begin, end));
	return found ? packet_at(skb, found, sizeof(struct tcp_timestamps)) : 0;
}

/* An answer acknowledges the SYN, and its data as far as it took them (RFC 7413). */
static __always_inline bool acknowledges(const struct tcp_header *tcp,
					 const struct flat_request *found)
{
	return tcp->flags & TCP_ACK &&
	       bpf_ntohl(tcp->acknowledgment) - found->isn - 1 <= found->payload;
}

static __always_inline void observe_syn(struct __sk_buff *skb, struct flat_options *s,
					struct half *h, const struct tcp_header *tcp)
{
	const struct tcp_timestamps *ts = timestamps_of(skb, h, tcp);

	h->isn = bpf_ntohl(tcp->sequence);
	h->payload = h->length - (tcp->offset >> 4) * 4;
	h->tsval = ts ? bpf_ntohl(ts->value) : 0;
	track_request(skb, s, h);
}

/* The slot of a connection from outside, whichever way this packet goes: see awaiting.h. */
static __always_inline __u32 slot_of_peer(struct half *h)
{
	return slot_hash(fold_addr(h->key.remote.words), h->key.remote_port, h->key.local_port);
}

/* What flat_questions has of a handshake from outside: the translated end of its SYN/ACK. */
struct kept_nat {
	union flat_addr addr;
	__be16 port;
};

/* keep_nat keeps the translated end of a SYN/ACK for the record, which waits for the ACK. */
static __always_inline void keep_nat(const struct half *h, struct flat_request *found,
				     const struct answer *a)
{
	struct flat_scratch_values *values = scratch();
	struct kept_nat *kept;
	__u64 hash = h->hash;

	if (!values)
		return; /* never */
	kept = (void *)values->question.question;
	kept->addr = a->nat;
	kept->port = a->nat_port;
	if (!bpf_map_update_elem(&flat_questions, &hash, &values->question, BPF_ANY))
		found->flags |= a->flags & RECORD_NAT;
}

/* recall_nat gives a record what keep_nat() has kept, unless others have displaced it. */
static __always_inline void recall_nat(const struct half *h, struct flat_request *found,
				       struct answer *a)
{
	__u64 hash = h->hash;
	struct kept_nat *kept = bpf_map_lookup_elem(&flat_questions, &hash);

	if (!kept) {
		found->flags &= ~RECORD_NAT;
		return;
	}
	a->nat = kept->addr;
	a->nat_port = kept->port;
}

/* await_completion notes that this host has answered a SYN from outside. */
static __always_inline void await_completion(struct __sk_buff *skb, struct half *h,
					     struct flat_request *found,
					     const struct tcp_header *tcp, const struct answer *a)
{
	struct flat_request *crossing;

	if (found->state == STATE_HALF_OPEN) {
		if (found->answers < 255)
			found->answers++; /* the SYN/ACK was sent again */
		count(COUNT_REPEATS);
		return;
	}
	crossing = find(SIDE_CLIENT, &h->key, h->hash);
	if (crossing && crossing->state == STATE_OPEN)
		crossing->crossed = true;
	found->state = STATE_HALF_OPEN;
	found->answer_ns = h->now;
	attribute_socket(skb, &found->cgroup, &found->uid);
	if (a->flags & RECORD_NAT)
		keep_nat(h, found, a);
	if (!await_ack(slot_of_peer(h), bpf_ntohl(tcp->sequence) + 1, h->now))
		count(COUNT_AWAITING_FULL);
}

/* complete ends the handshake from outside that a segment acknowledges, if it does. */
__subprogram int complete(struct __sk_buff *skb, struct flat_options *s, struct half *h)
{
	const struct tcp_header *tcp = packet_at(skb, h->transport, sizeof(*tcp));
	struct answer a = new_answer(h, RESULT_ESTABLISHED, true);
	struct flat_request *open, *found;
	__u32 sequence;

	if (!tcp)
		return 0; /* never: the caller has read it */
	open = find(SIDE_SERVER, &h->key, h->hash);
	found = open ? open : find_recent(SIDE_SERVER, h);
	sequence = bpf_ntohl(tcp->sequence) + !!(tcp->flags & TCP_SYN);
	/* What comes next in sequence: others that fit the slot are other connections'. */
	if (!found || found->state != STATE_HALF_OPEN || sequence - found->isn - 1 > found->payload)
		return 0;
	stop_awaiting(slot_of_peer(h), bpf_ntohl(tcp->acknowledgment));
	a.side = SIDE_SERVER;
	a.at_ns = found->answer_ns;
	if (found->flags & RECORD_NAT)
		recall_nat(h, found, &a);
	/* Which of several SYN/ACKs this acknowledges is not known. */
	if (!found->answers && elapsed(h, found->answer_ns) > 0)
		a.client_rtt_ns = elapsed(h, found->answer_ns);
	if (open)
		complete_exchange(s, h, open, &a);
	else
		complete_recent(s, h, found, &a);
	return 0;
}

/*
 * observe_reply looks at a SYN/ACK or RST, either of which acknowledges a SYN. It returns
 * whether that is the ACK of our own SYN/ACK too (RFC 9293, 3.5).
 */
__subprogram int observe_reply(struct __sk_buff *skb, struct flat_options *s, struct half *h)
{
	const struct tcp_header *tcp = packet_at(skb, h->transport, sizeof(*tcp));
	struct flat_request *open, *recent = 0, *found;
	struct answer a;
	bool refused;
	__u32 isn;
	const struct tcp_timestamps *ts;
	bool crossed;

	if (!tcp)
		return 0; /* never: the caller has read it */
	refused = tcp->flags & TCP_RST;
	isn = bpf_ntohl(tcp->acknowledgment) - 1;
	a = new_answer(h, refused ? RESULT_REFUSED : RESULT_ESTABLISHED, !refused);
	open = find(a.side, &h->key, h->hash);
	if (!open)
		recent = find_recent(a.side, h);
	if (!open && !recent)
		open = find_translated(skb, h, &a, isn);
	found = open ? open : recent;
	/* A RST that acknowledges no SYN is somebody's guess (RFC 9293, 3.10.7.3). */
	if (found && !acknowledges(tcp, found)) {
		count(COUNT_WRONG_ACK);
		return 0;
	}
	if (found && !refused && a.side == SIDE_SERVER && is_open(found)) {
		await_completion(skb, h, found, tcp, &a);
		return 0;
	}
	ts = found && !refused && found->repeats ? timestamps_of(skb, h, tcp) : 0;
	if (ts)
		a.echoed_tsval = bpf_ntohl(ts->echo);
	crossed = found && !refused && found->crossed;
	end_request(skb, s, h, open, recent, &a, isn);
	return opaque(skb, crossed); /* one way on for all who come here */
}

/*
 * pass_reset takes a RST that ends no attempt, and returns whether it is one: a connection
 * that was established may end so.
 */
static __always_inline bool pass_reset(const struct __sk_buff *skb, enum direction direction,
				       __u64 flow)
{
	__u64 now;

	if (flat_shared.phase != PHASE_ALONE || is_translating(skb->ifindex))
		return false;
	now = coarse_now();
	if (is_asleep(now) || may_be_recent(now) ||
	    find_hash(side_of_answer(direction), exchange_hash(flow, exchange_id(KIND_TCP, 0))))
		return false;
	count(COUNT_UNMATCHED);
	return true;
}

/* flow is the hash of the flow, or 0: not known. */
__subprogram int observe_tcp(struct __sk_buff *skb, __u64 place, enum direction direction,
			     __u64 flow)
{
	struct half half, *h = &half;
	struct flat_options *s = take(skb, h, place, direction);
	const struct tcp_header *tcp;
	__u32 header;

	if (!s)
		return 0;
	tcp = packet_at(skb, h->transport, sizeof(*tcp));
	if (!tcp) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	if (to_group(h)) {
		count(COUNT_MULTICAST);
		return 0;
	}
	header = (tcp->offset >> 4) * 4;
	if (header < sizeof(*tcp) || header > h->length) {
		count(COUNT_MALFORMED);
		return 0;
	}
	set_exchange(h, KIND_TCP, tcp->source, tcp->destination, 0, flow);
	if (!(tcp->flags & (TCP_ACK | TCP_RST)))
		observe_syn(skb, s, h, tcp);
	else if (!(tcp->flags & (TCP_SYN | TCP_RST)) || observe_reply(skb, s, h))
		complete(skb, s, h);
	return 0;
}
