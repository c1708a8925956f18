/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the handlers have in common: a packet that is one half of an exchange,
 * with its ends told apart by which of them is this host's.
 */
#pragma once

#include <stdbool.h>

#include "maps.h"
#include "parse.h"

#ifdef FLAT_TRACE
#define trace(fmt, ...) bpf_printk("flat: " fmt, ##__VA_ARGS__)
#else
#define trace(fmt, ...) \
	do {            \
	} while (0)
#endif

/*
 * A packet that may be one half of an exchange, with what its handler found out. It
 * has no gaps: see __checked_alone.
 */
struct half {
	struct flat_key key;
	__u64 hash; /* of the key: what its request is known by */
	__u64 now;
	__u64 direction; /* enum direction; of a narrower one the verifier forgets the value */
	__u32 transport; /* offset of the TCP, UDP or ICMP header */
	__u32 length;	 /* of transport header and payload, by the IP header */
	__u16 vlan;
	__u8 ttl; /* or hop limit */
	bool ipv6;
	bool group; /* sent to an Ethernet group address */

	/* Of a request. */
	__u8 flags;    /* enum flat_record_flags */
	__u16 payload; /* bytes in the SYN; TCP, as are the others */
	__u32 isn;
	__u32 tsval; /* 0: none */
};

/*
 * elapsed is how long ago something was, in nanoseconds. It may be less than none:
 * another CPU that saw the flow's next packet may have begun a little later.
 */
static __always_inline __s64 elapsed(const struct half *h, __u64 then)
{
	return h->now - then;
}

static __always_inline __s64 udp_idle(void)
{
	return flat_shared.udp_idle_ns ? flat_shared.udp_idle_ns : UDP_IDLE_DEFAULT_NS;
}

/* The time, cheaply: by a clock that advances in ticks of some milliseconds. */
static __always_inline __u64 coarse_now(void)
{
	return have_coarse_clock ? bpf_ktime_get_coarse_ns() + flat_shared.suspended_ns
				 : bpf_ktime_get_boot_ns();
}

/* is_asleep reports whether no daemon has renewed the lease. */
static __always_inline bool is_asleep(__u64 now)
{
	return flat_shared.lease_until_ns && now > flat_shared.lease_until_ns;
}

/* key_ifindex is the interface in the key of an exchange that is seen there. */
static __always_inline __u32 key_ifindex(const struct __sk_buff *skb)
{
	return skb->ifindex & (flat_shared.match_host - 1); /* a branch the less for the verifier */
}

/* Requests this host made go out, those made to it come in; answers the other way. */
static __always_inline enum flat_side side_of_request(enum direction d)
{
	return d == EGRESS ? SIDE_CLIENT : SIDE_SERVER;
}

static __always_inline enum flat_side side_of_answer(enum direction d)
{
	return d == EGRESS ? SIDE_SERVER : SIDE_CLIENT;
}

static __always_inline void copy_ipv4(union flat_addr *to, __be32 addr)
{
	to->words[0] = 0;
	to->words[1] = 0;
	to->words[2] = bpf_htonl(0xffff);
	to->words[3] = addr;
}

static __always_inline void copy_ipv6(union flat_addr *to, const struct in6_addr *addr)
{
	__builtin_memcpy(to, addr, sizeof(*to));
}

/* The ends of an IP packet, by which side of this host they are on. */
static __always_inline union flat_addr *source_of(struct half *h)
{
	return h->direction == EGRESS ? &h->key.local : &h->key.remote;
}

static __always_inline union flat_addr *destination_of(struct half *h)
{
	return h->direction == EGRESS ? &h->key.remote : &h->key.local;
}

/*
 * to_group tells a packet to many from one to this host or another: by Ethernet,
 * 224.0.0.0/4 (RFC 5771), the limited broadcast (RFC 919), ff00::/8 (RFC 4291).
 */
static __always_inline bool to_group(struct half *h)
{
	const union flat_addr *to = destination_of(h);

	if (h->group)
		return true;
	if (h->ipv6)
		return to->bytes[0] == 0xff;
	return (to->words[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
	       to->words[3] == bpf_htonl(0xffffffff);
}

static __always_inline void set_ipv4(struct half *h, const struct iphdr *ip)
{
	copy_ipv4(source_of(h), ip->saddr);
	copy_ipv4(destination_of(h), ip->daddr);
	h->ttl = ip->ttl;
}

static __always_inline void set_ipv6(struct half *h, const struct ipv6hdr *ip)
{
	copy_ipv6(source_of(h), &ip->saddr);
	copy_ipv6(destination_of(h), &ip->daddr);
	h->ttl = ip->hop_limit;
}

static __always_inline bool set_ends(const struct __sk_buff *skb, struct half *h, __u64 network)
{
	if (h->ipv6) {
		const struct ipv6hdr *ip = packet_at(skb, network, sizeof(*ip));

		if (ip)
			set_ipv6(h, ip);
		return ip;
	} else {
		const struct iphdr *ip = packet_at(skb, network, sizeof(*ip));

		if (ip)
			set_ipv4(h, ip);
		return ip;
	}
}

/*
 * take begins with a packet, unless the programs are to sleep, and returns the
 * settings, or 0. It chooses by arithmetic where it can, for the verifier follows
 * both ways of a branch.
 */
static __always_inline struct flat_options *take(struct __sk_buff *skb, struct half *h, __u64 place,
						 enum direction direction)
{
	__u32 traits = place >> 48;
	__u32 tagged = -skb->vlan_present; /* all ones if the tag is beside the packet */
	struct flat_options *s;
	__u32 zero = 0;

	__builtin_memset(h, 0, sizeof(*h));
	s = bpf_map_lookup_elem(&flat_settings, &zero);
	if (!s)
		return 0;
	h->now = bpf_ktime_get_boot_ns();
	if (is_asleep(h->now)) {
		count(COUNT_ASLEEP);
		return 0;
	}
	h->transport = place >> 16 & OFFSET_MAX;
	h->length = place >> 32 & 0xffff;
	h->direction = direction;
	h->ipv6 = traits & TRAIT_IPV6;
	h->group = traits & TRAIT_GROUP;
	h->vlan = (tagged & skb->vlan_tci & 0xfff) | (~tagged & traits >> TRAIT_VLAN_SHIFT);
	h->key.ifindex = key_ifindex(skb);
	if (!set_ends(skb, h, place)) {
		count(COUNT_TRUNCATED);
		return 0;
	}
	return s;
}

/*
 * mixed takes one more word into a hash. It shifts before it multiplies: else a
 * difference in the uppermost bits would go through whatever the seed is.
 */
static __always_inline __u64 mixed(__u64 hash, __u64 more)
{
	hash ^= more;
	hash ^= hash >> 32;
	hash *= 0x9e3779b97f4a7c15;
	return hash ^ hash >> 29;
}

/* The ends of a flow: addresses by halves, the upper half 0 for IPv4. */
struct flow_ends {
	__u64 local[2];
	__u64 remote[2];
	__be16 local_port;
	__be16 remote_port;
};

/*
 * flow_hash is the same for the packets of a flow in both directions. Every datagram of the
 * host pays for it.
 */
static __always_inline __u64 flow_hash(const struct flow_ends *e, __u32 ifindex)
{
	__u64 local = mixed(flat_shared.seed, e->local[1]);
	__u64 remote = mixed(~flat_shared.seed, e->remote[1]);

	if (e->local[0] | e->remote[0]) { /* IPv6 */
		local = mixed(local, e->local[0]);
		remote = mixed(remote, e->remote[0]);
	}
	return mixed(local + 3 * remote,
		     (__u64)ifindex << 32 | (__u32)e->local_port << 16 | e->remote_port);
}

/* flow_of_key is the hash of the flow with the ends of a key. */
static __always_inline __u64 flow_of_key(const struct flat_key *key)
{
	struct flow_ends e = {
		.local = {key->local.halves[0], key->local.halves[1]},
		.remote = {key->remote.halves[0], key->remote.halves[1]},
		.local_port = key->local_port,
		.remote_port = key->remote_port,
	};

	return flow_hash(&e, key->ifindex);
}

/* A tag is the upper 40 bits of a hash; the lower 24 of a word with a tag hold something else. */
#define TAG_SHIFT 24

static __always_inline __u64 tag_of(__u64 hash)
{
	return hash >> TAG_SHIFT << TAG_SHIFT;
}

static __always_inline bool has_tag(__u64 word, __u64 hash)
{
	return word >> TAG_SHIFT == hash >> TAG_SHIFT;
}

#define KIND_SHIFT 56
#define DNS_ID_SHIFT 40 /* the hash of the question is below */
#define QUESTION_HASH_MASK ((1ULL << DNS_ID_SHIFT) - 1)

static __always_inline enum flat_kind kind_of(const struct flat_key *key)
{
	return key->id >> KIND_SHIFT;
}

static __always_inline void set_ports(struct half *h, __be16 source, __be16 destination)
{
	h->key.local_port = h->direction == EGRESS ? source : destination;
	h->key.remote_port = h->direction == EGRESS ? destination : source;
}

/* exchange_hash is what an exchange of a flow is known by. No tag of it is 0. */
static __always_inline __u64 exchange_hash(__u64 flow, __u64 id)
{
	return mixed(flow, id) | 1ULL << 63;
}

static __always_inline __u64 exchange_id(enum flat_kind kind, __u64 id)
{
	return (__u64)kind << KIND_SHIFT | id;
}

/*
 * set_exchange completes the key with what the transport header and what follows it say. It
 * returns the hash of the flow, which the caller may know, or 0.
 */
static __always_inline __u64 set_exchange(struct half *h, enum flat_kind kind, __be16 source,
					  __be16 destination, __u64 id, __u64 flow)
{
	set_ports(h, source, destination);
	h->key.id = exchange_id(kind, id);
	if (!flow)
		flow = flow_of_key(&h->key);
	h->hash = exchange_hash(flow, h->key.id);
	return flow;
}
