/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the start of a packet to its transport header. Nothing here looks into
 * a map or calls a helper: this is what each packet of the host pays.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "awaiting.h"
#include "counters.h"

/*
 * opaque returns its argument. The verifier does not know that a field read
 * twice is twice the same, so that with offsets that went through here it need
 * not check a handler anew for every path through the parser. A global function
 * would do as well, were it not for the price of the call.
 */
static __always_inline __u64 opaque(const struct __sk_buff *skb, __u64 value)
{
	__u64 once = *(const volatile __u32 *)&skb->mark;
	__u64 again = *(const volatile __u32 *)&skb->mark;

	return value ^ (once << 32 | once) ^ (again << 32 | again);
}

#define VLAN_TAGS_MAX 2
#define EXTENSIONS_MAX 6

enum direction {
	INGRESS,
	EGRESS,
};

/* What a packet begins with on this device. */
enum link {
	LINK_ETHERNET,
	LINK_NONE, /* tun, wireguard, ppp, ipip: straight with the IP header */
};

/* The bytes still to be read. Each parser checks them, then moves on. */
struct cursor {
	void *pos;
	void *end;
	__u32 offset; /* of pos; subtracting packet pointers would take CAP_PERFMON */
};

/* What parse() finds out. Offsets are from the start of the packet. */
struct packet {
	__u32 network;	 /* offset of the IP header */
	__u32 transport; /* offset of the TCP, UDP or ICMP header, whose fixed part is there */
	__u32 length;	 /* of transport header and payload, by the IP header */
	__u32 traits;	 /* enum trait, and the outermost VLAN id above them */
	__u32 source;	 /* fold_addr() of the source address */
	__u8 protocol;
};

enum trait {
	TRAIT_IPV6 = 1 << 0,
	TRAIT_GROUP = 1 << 1, /* sent to an Ethernet group address */
};

#define TRAIT_VLAN_SHIFT 4

/*
 * A place is a struct packet in one number: offset of the IP header, offset of
 * the transport header, length and traits, 16 bits each from the lowest. Numbers
 * can be made opaque() to the verifier, structures cannot.
 */
#define OFFSET_MAX 0x3fff

static __always_inline __u64 pack(const struct packet *p)
{
	return (__u64)p->traits << 48 | (__u64)p->length << 32 | p->transport << 16 | p->network;
}

/*
 * packet_at returns where the bytes at an offset are, or 0 if they are not all
 * in the linear part of the packet.
 */
static __always_inline const void *packet_at(const struct __sk_buff *skb, __u64 offset, __u32 size)
{
	const void *pos;

	barrier_var(offset); /* or clang drops the bound that the verifier wants to see */
	pos = (void *)(long)skb->data + (offset & OFFSET_MAX);
	barrier_var(pos);
	return pos + size > (void *)(long)skb->data_end ? 0 : pos;
}

/* What parse() made of a packet. A negative value is minus an enum flat_counter. */
enum parsed {
	PARSED_SKIP = 0, /* an ordinary TCP segment: nothing to learn, nothing to count */
	PARSED = 1,
};

static __always_inline void advance(struct cursor *c, __u32 bytes)
{
	c->pos += bytes;
	c->offset += bytes;
}

struct vlan_tag {
	__be16 tci;
	__be16 protocol; /* of what follows */
};

/* The type and code octets, then identifier and sequence of an echo (RFC 792, RFC 4443). */
struct icmp_echo {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
	__be16 sequence;
};

#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* The fixed part (RFC 9293, 3.1), with octets where C bit-fields would depend on endianness. */
struct tcp_header {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledgment;
	__u8 offset; /* header length in words, in the upper half */
	__u8 flags;
	__be16 window;
	__be16 checksum;
	__be16 urgent;
};

struct udp_header {
	__be16 source;
	__be16 destination;
	__be16 length;
	__be16 checksum;
};

/* parse_ethernet returns the EtherType in network order, or a negative counter. */
static __always_inline int parse_ethernet(struct cursor *c, struct packet *p)
{
	struct ethhdr *eth = c->pos;
	__be16 protocol;

	if ((void *)(eth + 1) > c->end)
		return -COUNT_TRUNCATED;
	advance(c, sizeof(*eth));
	if (eth->h_dest[0] & 1)
		p->traits |= TRAIT_GROUP;
	protocol = eth->h_proto;

#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		struct vlan_tag *tag = c->pos;

		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			return protocol;
		if ((void *)(tag + 1) > c->end)
			return -COUNT_TRUNCATED;
		advance(c, sizeof(*tag));
		if (i == 0)
			p->traits |= (bpf_ntohs(tag->tci) & 0xfff) << TRAIT_VLAN_SHIFT;
		protocol = tag->protocol;
	}
	if (protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD))
		return -COUNT_EXTENSIONS;
	return protocol;
}

/*
 * The octet that an IP header begins with: version, and for IPv4 the header's
 * length in words. The bit-fields of struct iphdr are in the order of the host
 * that compiles this.
 */
static __always_inline __u8 first_octet(const void *ip)
{
	return *(const __u8 *)ip;
}

/* fold_addr makes 32 bits of an address, IPv4 mapped into IPv6. */
static __always_inline __u32 fold_addr(const __be32 *words)
{
	return words[0] ^ words[1] ^ words[2] ^ words[3];
}

static __always_inline __u32 fold_ipv4(__be32 addr)
{
	return addr ^ bpf_htonl(0xffff);
}

/* Of a fragmented packet only the first has the transport header (RFC 791, 3.2). */
static __always_inline bool is_later_fragment(const struct iphdr *ip)
{
	return ip->frag_off & bpf_htons(0x1fff);
}

static __always_inline int parse_ipv4(struct cursor *c, struct packet *p)
{
	struct iphdr *ip = c->pos;
	__u32 header;

	if ((void *)(ip + 1) > c->end)
		return -COUNT_TRUNCATED;
	header = (first_octet(ip) & 0xf) * 4;
	if (first_octet(ip) >> 4 != 4 || header < sizeof(*ip))
		return -COUNT_MALFORMED;
	if (is_later_fragment(ip))
		return -COUNT_FRAGMENT;
	p->network = c->offset;
	p->protocol = ip->protocol;
	p->length = bpf_ntohs(ip->tot_len) - header;
	p->source = fold_ipv4(ip->saddr);
	advance(c, header);
	return PARSED;
}

/* Every extension header that may precede the transport header starts like this. */
struct extension {
	__u8 next;
	__u8 length;	 /* in 8 octets beyond the first 8; AH: in 4 octets, less 2 */
	__be16 fragment; /* fragment header: offset in the upper 13 bits */
	__be32 rest;
};

static __always_inline bool is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_AH;
}

/* extension_size returns the octets of an extension header, 0 for a later fragment. */
static __always_inline __u32 extension_size(__u8 protocol, const struct extension *ext)
{
	if (protocol == IPPROTO_FRAGMENT)
		return ext->fragment & bpf_htons(0xfff8) ? 0 : 8;
	if (protocol == IPPROTO_AH)
		return 8 + 4 * (__u32)ext->length;
	return 8 + 8 * (__u32)ext->length;
}

static __always_inline int parse_ipv6(const struct __sk_buff *skb, struct cursor *c,
				      struct packet *p)
{
	struct ipv6hdr *ip = c->pos;
	__u32 length;

	if ((void *)(ip + 1) > c->end)
		return -COUNT_TRUNCATED;
	if (first_octet(ip) >> 4 != 6)
		return -COUNT_MALFORMED;
	p->network = c->offset;
	p->traits |= TRAIT_IPV6;
	p->protocol = ip->nexthdr;
	p->source = fold_addr(ip->saddr.in6_u.u6_addr32);
	length = bpf_ntohs(ip->payload_len);
	advance(c, sizeof(*ip));

#pragma unroll
	for (int i = 0; i <= EXTENSIONS_MAX; i++) {
		struct extension *ext = c->pos;
		__u32 size;

		if (!is_extension(p->protocol))
			break;
		if (i == EXTENSIONS_MAX)
			return -COUNT_EXTENSIONS;
		if ((void *)(ext + 1) > c->end)
			return -COUNT_TRUNCATED;
		size = extension_size(p->protocol, ext);
		if (!size)
			return -COUNT_FRAGMENT;
		size = opaque(skb, size) & 0xfff; /* one way on for all of them */
		p->protocol = ext->next;
		length -= size;
		advance(c, size);
	}
	p->length = length;
	return PARSED;
}

/* is_awaited_ack is whether a segment from outside may complete a handshake. */
static __always_inline bool is_awaited_ack(const struct tcp_header *tcp, __u32 source)
{
	return is_awaited(slot_hash(source, tcp->source, tcp->destination),
			  bpf_ntohl(tcp->acknowledgment));
}

/* judge_tcp tells the few segments that matter from all others. */
static __always_inline int judge_tcp(const struct tcp_header *tcp, const struct packet *p,
				     enum direction direction)
{
	bool matters = tcp->flags & (TCP_SYN | TCP_RST) ||
		       (direction == INGRESS && is_awaited_ack(tcp, p->source));

	return matters ? PARSED : PARSED_SKIP;
}

/*
 * Whether what comes from a tunnel still has the headers around it in front: so
 * with ipip, gre, sit and their like before Linux 5.14, whose series "net: reset
 * MAC header consistently across L3 virtual devices" took them away.
 */
const volatile bool outer_first;

/* Ethernet, two tags, IPv6 and GRE with all its fields, and some to spare. */
#define OUTER_MAX 127

static __always_inline bool begins_with(const struct cursor *c, const __be16 *begin)
{
	const __be16 *found = c->pos;

	return (void *)(found + 3) <= c->end && found[0] == begin[0] && found[1] == begin[1] &&
	       found[2] == begin[2];
}

/*
 * skip_outer moves on to the IP header that the kernel takes for this packet's,
 * or returns a negative counter. It is where the packet begins, or as far from
 * its end as it is long.
 */
static __always_inline int skip_outer(struct __sk_buff *skb, struct cursor *c)
{
	__be16 begin[3]; /* the length is in the second word of IPv4, the third of IPv6 */
	__u64 length, outer;

	if (bpf_skb_load_bytes_relative(skb, 0, begin, sizeof(begin), BPF_HDR_START_NET))
		return -COUNT_TRUNCATED;
	if (begins_with(c, begin))
		return PARSED;
	length = skb->protocol == bpf_htons(ETH_P_IP)
			 ? bpf_ntohs(begin[1])
			 : sizeof(struct ipv6hdr) + bpf_ntohs(begin[2]);
	outer = skb->len - length;
	if (outer > OUTER_MAX)
		return -COUNT_MALFORMED;
	advance(c, opaque(skb, outer) & OUTER_MAX);
	if (c->pos + sizeof(begin) > c->end)
		return -COUNT_TRUNCATED;
	return begins_with(c, begin) ? PARSED : -COUNT_MALFORMED;
}

static __always_inline int parse(struct __sk_buff *skb, struct packet *p, enum direction direction,
				 enum link link)
{
	struct cursor c = {(void *)(long)skb->data, (void *)(long)skb->data_end, 0};
	int protocol = link == LINK_ETHERNET ? parse_ethernet(&c, p) : (__u16)skb->protocol;
	struct tcp_header *tcp;
	int result;

	if (link == LINK_NONE && direction == INGRESS && outer_first &&
	    (protocol == bpf_htons(ETH_P_IP) || protocol == bpf_htons(ETH_P_IPV6))) {
		result = skip_outer(skb, &c);
		if (result < 0)
			return result;
	}
	if (protocol == bpf_htons(ETH_P_IP))
		result = parse_ipv4(&c, p);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		result = parse_ipv6(skb, &c, p);
	else
		result = protocol < 0 ? protocol : -COUNT_NOT_IP;
	if (result < 0)
		return result;

	p->transport = c.offset;
	switch (p->protocol) {
	case IPPROTO_TCP:
		tcp = c.pos;
		if ((void *)(tcp + 1) > c.end)
			return -COUNT_TRUNCATED;
		return judge_tcp(tcp, p, direction);
	case IPPROTO_UDP:
		return c.pos + sizeof(struct udp_header) > c.end ? -COUNT_TRUNCATED : PARSED;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((p->protocol == IPPROTO_ICMPV6) != !!(p->traits & TRAIT_IPV6))
			return -COUNT_PROTOCOL;
		return c.pos + sizeof(struct icmp_echo) > c.end ? -COUNT_TRUNCATED : PARSED;
	}
	return -COUNT_PROTOCOL;
}
