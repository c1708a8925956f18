//go:build ignore

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * flatd's kernel half. A packet comes in at one of the four programs at the
 * end of this file and goes through observe(): parse.h finds its transport
 * header, a handler below tells request from answer, pending.h matches the two
 * and writes the record (record.h) that user space reads.
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

#include "pending.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define NEXT TC_ACT_UNSPEC

/* Named here so that they are in the object's BTF, from which bpf2go makes the Go types. */
const struct flat_dns_record *const type_record = 0;
const enum flat_counter *const type_counter = 0;

/*
 * opaque returns its argument. The verifier checks a global function by itself
 * and knows nothing of what it returns, so that with offsets that went through
 * here it need not check a handler anew for every path through the parser. The
 * handlers are not global: to let one have the skb takes BTF in the kernel.
 */
__noinline __u32 opaque(__u32 value)
{
	asm volatile("" : "+r"(value)); /* or clang knows better */
	return value;
}

static __noinline int observe_tcp(struct __sk_buff *skb, __u32 network, __u32 transport,
				  __u32 length, __u32 traits)
{
	struct half half, *h = &half;
	struct flat_pending *found;
	struct tcp_header tcp;
	__u32 sequence, header;

	if (!take(h, skb, network, traits))
		return 0;
	if (bpf_skb_load_bytes(skb, transport, &tcp, sizeof(tcp))) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	sequence = bpf_ntohl(tcp.sequence);
	header = (tcp.offset >> 4) * 4;
	if (header < sizeof(tcp) || header > length) {
		count(COUNT_MALFORMED);
		return 0;
	}
	set_exchange(h, KIND_TCP, tcp.source, tcp.destination, 0);

	if ((tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN) {
		struct flat_pending request = new_request(h);

		request.isn = sequence;
		request.payload = length - header;
		found = bpf_map_lookup_elem(table_of(side_of_request(h->direction)), &h->key);
		remember(h, &request, found, found && found->isn == sequence);
		return 0;
	}

	/*
	 * An answer acknowledges the SYN, and its data as far as it took them;
	 * a RST that does not is somebody's guess (RFC 9293, 3.10.7.3).
	 */
	struct answer a = {
		.result = tcp.flags & TCP_RST ? RESULT_REFUSED : RESULT_ESTABLISHED,
		.success = !(tcp.flags & TCP_RST),
	};

	found = bpf_map_lookup_elem(table_of(side_of_answer(h->direction)), &h->key);
	if (found && (!(tcp.flags & TCP_ACK) ||
		      bpf_ntohl(tcp.acknowledgment) - found->isn - 1 > found->payload)) {
		count(COUNT_WRONG_ACK);
		return 0;
	}
	answer(h, found, &a);
	return 0;
}

static __always_inline bool is_dns_port(const struct flat_options *s, __be16 port)
{
	if (!s->dns_ports[0])
		return port == bpf_htons(53);
	for (int i = 0; i < DNS_PORTS_MAX; i++) {
		if (!s->dns_ports[i])
			break;
		if (s->dns_ports[i] == port)
			return true;
	}
	return false;
}

/* RFC 1035, 4.1.1; flags as octets. */
struct dns_header {
	__be16 id;
	__u8 flags; /* QR is the top bit */
	__u8 rcode; /* in the lower half */
	__be16 questions;
	__be16 answers;
	__be16 authorities;
	__be16 additional;
};

#define DNS_QR 0x80

static __always_inline void observe_dns(struct half *h, const struct udp_header *udp,
					__u32 transport, __u32 length)
{
	__u32 offset = transport + sizeof(*udp);
	__u32 headers = sizeof(*udp) + sizeof(struct dns_header);
	struct flat_pending *found;
	struct dns_header dns;

	if (length < headers || bpf_skb_load_bytes(h->skb, offset, &dns, sizeof(dns))) {
		count(COUNT_DNS_OTHER);
		return;
	}
	set_exchange(h, KIND_DNS, udp->source, udp->destination, bpf_ntohs(dns.id));

	if (!(dns.flags & DNS_QR) && is_dns_port(h->settings, udp->destination)) {
		struct flat_pending request = new_request(h);

		found = bpf_map_lookup_elem(table_of(side_of_request(h->direction)), &h->key);
		remember(h, &request, found, found && h->now - found->last_ns < udp_idle(h));
		return;
	}
	if (!(dns.flags & DNS_QR) || !is_dns_port(h->settings, udp->source)) {
		count(COUNT_DNS_OTHER);
		return;
	}

	struct answer a = {
		.result = RESULT_ANSWERED,
		.success = !(dns.rcode & 0xf),
		.rcode = dns.rcode & 0xf,
		.question_offset = offset + sizeof(dns),
		.question_length = length - headers,
	};

	if (!dns.questions)
		a.question_length = 0;
	if (a.question_length > QUESTION_MAX)
		a.question_length = QUESTION_MAX;
	found = bpf_map_lookup_elem(table_of(side_of_answer(h->direction)), &h->key);
	answer(h, found, &a);
}

/*
 * A UDP exchange is the first datagram of an idle flow and the first one back.
 * The flow then stays known until it has been idle, so that what follows in
 * either direction is not taken for another exchange.
 */
static __always_inline void observe_flow(struct half *h, const struct udp_header *udp)
{
	void *answering = table_of(side_of_answer(h->direction));
	void *asking = table_of(side_of_request(h->direction));
	struct flat_pending request = new_request(h);
	struct flat_pending *found;

	set_exchange(h, KIND_UDP, udp->source, udp->destination, 0);

	found = bpf_map_lookup_elem(answering, &h->key);
	if (found && found->state == STATE_OPEN) {
		struct answer a = {.result = RESULT_ANSWERED, .success = true};
		struct flat_pending flow = *found;

		flow.last_ns = h->now;
		flow.state = STATE_ANSWERED;
		if (finish(h, found, &a))
			bpf_map_update_elem(answering, &h->key, &flow, BPF_NOEXIST);
		return;
	}
	if (found && h->now - found->last_ns < udp_idle(h)) {
		found->last_ns = h->now;
		count(found->state == STATE_TIMED_OUT ? COUNT_LATE : COUNT_FLOW);
		return;
	}
	if (found)
		bpf_map_delete_elem(answering, &h->key);

	found = bpf_map_lookup_elem(asking, &h->key);
	if (found && found->state == STATE_ANSWERED && h->now - found->last_ns < udp_idle(h)) {
		found->last_ns = h->now;
		count(COUNT_FLOW);
		return;
	}
	remember(h, &request, found, found && h->now - found->last_ns < udp_idle(h));
}

static __noinline int observe_udp(struct __sk_buff *skb, __u32 network, __u32 transport,
				  __u32 length, __u32 traits)
{
	struct half half, *h = &half;
	struct udp_header udp;

	if (!take(h, skb, network, traits))
		return 0;
	if (h->group)
		count(COUNT_MULTICAST);
	else if (bpf_skb_load_bytes(skb, transport, &udp, sizeof(udp)))
		count(COUNT_TRUNCATED);
	else if (length < sizeof(udp))
		count(COUNT_MALFORMED);
	else if (is_dns_port(h->settings, udp.destination) || is_dns_port(h->settings, udp.source))
		observe_dns(h, &udp, transport, length);
	else
		observe_flow(h, &udp);
	return 0;
}

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

static __noinline int observe_icmp(struct __sk_buff *skb, __u32 network, __u32 transport,
				   __u32 length, __u32 traits)
{
	struct half half, *h = &half;
	struct flat_pending *found;
	struct icmp_echo echo;
	bool request, reply;

	if (!take(h, skb, network, traits))
		return 0;
	if (bpf_skb_load_bytes(skb, transport, &echo, sizeof(echo))) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	request = echo.type == (h->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST);
	reply = echo.type == (h->ipv6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY);
	if (!request && !reply) {
		count(COUNT_ICMP_OTHER);
		return 0;
	}
	if (length < sizeof(echo)) {
		count(COUNT_MALFORMED);
		return 0;
	}
	if (h->group) {
		count(COUNT_MULTICAST);
		return 0;
	}
	set_exchange(h, KIND_ICMP, 0, 0,
		     (__u32)bpf_ntohs(echo.id) << 16 | bpf_ntohs(echo.sequence));

	if (request) {
		struct flat_pending pending = new_request(h);

		found = bpf_map_lookup_elem(table_of(side_of_request(h->direction)), &h->key);
		remember(h, &pending, found, found && h->now - found->last_ns < udp_idle(h));
		return 0;
	}

	struct answer a = {.result = RESULT_ANSWERED, .success = true};

	found = bpf_map_lookup_elem(table_of(side_of_answer(h->direction)), &h->key);
	answer(h, found, &a);
	return 0;
}

/* Enough for Ethernet, two tags, IPv6 with some extension headers and TCP. */
#define PULL_BYTES 256

static __always_inline int observe(struct __sk_buff *skb, enum direction direction, enum link link)
{
	__u32 direction_trait = direction == EGRESS ? TRAIT_EGRESS : 0;
	struct packet p = {.traits = direction_trait};
	int parsed = parse(skb, &p, link);

	if (parsed == -COUNT_TRUNCATED) {
		/* The headers may lie beyond the linear part of the buffer. */
		__u32 bytes = skb->len < PULL_BYTES ? skb->len : PULL_BYTES;

		if (!bpf_skb_pull_data(skb, bytes)) {
			p = (struct packet){.traits = direction_trait};
			parsed = parse(skb, &p, link);
		}
	}
	if (parsed == PARSED_SKIP)
		return NEXT;
	if (parsed < 0) {
		count(-parsed);
		return NEXT;
	}
	p.network = opaque(p.network);
	p.transport = opaque(p.transport);
	p.length = opaque(p.length);
	p.traits = opaque(p.traits);
	if (p.protocol == IPPROTO_TCP)
		observe_tcp(skb, p.network, p.transport, p.length, p.traits);
	else if (p.protocol == IPPROTO_UDP)
		observe_udp(skb, p.network, p.transport, p.length, p.traits);
	else
		observe_icmp(skb, p.network, p.transport, p.length, p.traits);
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
