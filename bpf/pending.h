/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables of open requests: remember() puts a request in, finish() takes
 * its answer and hands the exchange to user space.
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

/* A packet that may be one half of an exchange, with what its handler found out. */
struct half {
	struct __sk_buff *skb;
	const struct flat_options *settings;
	struct flat_key key;
	__u64 now;
	enum direction direction;
	__u16 vlan;
	__u8 ttl; /* or hop limit */
	bool ipv6;
	bool group; /* sent to a multicast or broadcast address */
};

/* Requests this host made go out, those made to it come in; answers the other way. */
static __always_inline enum flat_side side_of_request(enum direction d)
{
	return d == EGRESS ? SIDE_CLIENT : SIDE_SERVER;
}

static __always_inline enum flat_side side_of_answer(enum direction d)
{
	return d == EGRESS ? SIDE_SERVER : SIDE_CLIENT;
}

static __always_inline void *table_of(enum flat_side side)
{
	return side == SIDE_CLIENT ? (void *)&flat_ours : (void *)&flat_theirs;
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

/* 224.0.0.0/4 (RFC 5771) and the limited broadcast (RFC 919). */
static __always_inline bool is_ipv4_group(__be32 addr)
{
	return (addr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
	       addr == bpf_htonl(0xffffffff);
}

static __always_inline __u64 udp_idle(const struct half *h)
{
	return h->settings->udp_idle_ns ? h->settings->udp_idle_ns : UDP_IDLE_DEFAULT_NS;
}

/* set_addresses reads what the handlers need of the IP header. */
static __always_inline bool set_addresses(struct half *h, __u32 network)
{
	bool out = h->direction == EGRESS;
	union flat_addr *from = out ? &h->key.local : &h->key.remote;
	union flat_addr *to = out ? &h->key.remote : &h->key.local;

	if (h->ipv6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(h->skb, network, &ip, sizeof(ip)))
			return false;
		copy_ipv6(from, &ip.saddr);
		copy_ipv6(to, &ip.daddr);
		h->ttl = ip.hop_limit;
		h->group |= ip.daddr.s6_addr[0] == 0xff;
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(h->skb, network, &ip, sizeof(ip)))
			return false;
		copy_ipv4(from, ip.saddr);
		copy_ipv4(to, ip.daddr);
		h->ttl = ip.ttl;
		h->group |= is_ipv4_group(ip.daddr);
	}
	return true;
}

/* take begins with a packet, unless the programs are to sleep. */
static __always_inline bool take(struct half *h, struct __sk_buff *skb, __u32 network, __u32 traits)
{
	__u32 zero = 0;

	__builtin_memset(h, 0, sizeof(*h));
	h->skb = skb;
	h->settings = bpf_map_lookup_elem(&flat_settings, &zero);
	if (!h->settings)
		return false;
	h->now = bpf_ktime_get_boot_ns();
	if (h->settings->lease_until_ns && h->now > h->settings->lease_until_ns) {
		count(COUNT_ASLEEP);
		return false;
	}
	h->direction = traits & TRAIT_EGRESS ? EGRESS : INGRESS;
	h->ipv6 = traits & TRAIT_IPV6;
	h->group = traits & TRAIT_GROUP;
	h->vlan = skb->vlan_present ? skb->vlan_tci & 0xfff : traits >> TRAIT_VLAN_SHIFT;
	h->key.ifindex = h->settings->flags & SETTING_MATCH_HOST ? 0 : skb->ifindex;
	if (!set_addresses(h, network)) {
		count(COUNT_TRUNCATED);
		return false;
	}
	return true;
}

/* set_exchange completes the key with what the transport header says. */
static __always_inline void set_exchange(struct half *h, enum flat_kind kind, __be16 source,
					 __be16 destination, __u32 id)
{
	h->key.kind = kind;
	h->key.local_port = h->direction == EGRESS ? source : destination;
	h->key.remote_port = h->direction == EGRESS ? destination : source;
	h->key.id = id;
}

/* new_request is what the table keeps of a request, as of now. */
static __always_inline struct flat_pending new_request(const struct half *h)
{
	return (struct flat_pending){
		.first_ns = h->now,
		.last_ns = h->now,
		.ifindex = h->skb->ifindex,
		.vlan = h->vlan,
		.ttl = h->ttl,
	};
}

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

static __always_inline bool peer_wanted(const struct half *h)
{
	const struct flat_options *s = h->settings;
	struct flat_net net = {
		.prefix_bits = 32 + 128,
		.table = s->generation * 2 + h->ipv6,
		.addr = h->key.remote,
	};
	__u32 *verdict = bpf_map_lookup_elem(&flat_nets, &net);

	if (verdict)
		return *verdict == NET_INCLUDE;
	return !(s->flags & SETTING_INCLUDE_LISTED);
}

/* The filter acts on requests alone: what was let in is followed to its end. */
static __always_inline bool wanted(const struct half *h, enum flat_side side)
{
	const struct flat_options *s = h->settings;
	const struct flat_key *key = &h->key;

	if (s->skip_kinds & (1U << key->kind) || s->skip_sides & (1U << side))
		return false;
	/* An echo has no port; a port filter does not concern it. */
	if (key->kind != KIND_ICMP &&
	    !port_wanted(s, side == SIDE_CLIENT ? key->remote_port : key->local_port))
		return false;
	return peer_wanted(h);
}

/*
 * own_socket tells whose packet this is, as far as it can be known: only of
 * what goes out. On a packet that comes in over veth it is the sender's.
 */
static __always_inline void own_socket(struct __sk_buff *skb, __u64 *cgroup, __u32 *uid)
{
	*cgroup = bpf_skb_cgroup_id(skb);
	*uid = *cgroup ? bpf_get_socket_uid(skb) : 0;
}

/* found_asking is what the tables hold of the request that a packet may be. */
static __always_inline struct flat_pending *found_asking(struct half *h)
{
	return bpf_map_lookup_elem(table_of(side_of_request(h->direction)), &h->key);
}

/* found_answering is what they hold of the request that a packet may answer. */
static __always_inline struct flat_pending *found_answering(struct half *h)
{
	return bpf_map_lookup_elem(table_of(side_of_answer(h->direction)), &h->key);
}

/* is_current tells an exchange that goes on from one that has long been over. */
static __always_inline bool is_current(const struct half *h, const struct flat_pending *found)
{
	return found && h->now - found->last_ns < udp_idle(h);
}

/*
 * remember puts a request into its table. `old` is what the table holds under
 * this key, if anything; `again` says that this packet repeats that request. It
 * returns whether the request is a new one that is followed.
 */
static __always_inline bool remember(struct half *h, struct flat_pending *request,
				     struct flat_pending *old, bool again)
{
	enum flat_side side = side_of_request(h->direction);

	if (old && again) {
		old->last_ns = h->now;
		old->last_tsval = request->last_tsval;
		old->repeats++;
		count(COUNT_REPEATS);
		return false;
	}
	if (!wanted(h, side)) {
		count(COUNT_FILTERED);
		return false;
	}
	if (old && (old->state == STATE_OPEN || old->state == STATE_HALF_OPEN))
		count(COUNT_REPLACED);
	count(COUNT_REQUESTS);
	if (side == SIDE_CLIENT)
		own_socket(h->skb, &request->cgroup, &request->uid);
	if (bpf_map_update_elem(table_of(side), &h->key, request, BPF_ANY))
		count(COUNT_PENDING_FULL);
	trace("request kind %d side %d id %x", h->key.kind, side, h->key.id);
	return true;
}

static __always_inline __u64 next_sequence(void)
{
	__u32 zero = 0;
	struct flat_numbering *s = bpf_map_lookup_elem(&flat_sequence, &zero);
	__u64 next;

	if (!s)
		return 0;
	bpf_spin_lock(&s->lock);
	next = ++s->last;
	bpf_spin_unlock(&s->lock);
	return next;
}

static const struct flat_histogram no_durations;

static __always_inline void observe_duration(const struct half *h, enum flat_side side,
					     enum flat_result result, __u32 ifindex, __u64 ns)
{
	struct flat_histogram_key key = {
		.ifindex = ifindex,
		.kind = h->key.kind,
		.side = side,
		.result = result,
		.ipv6 = h->ipv6,
	};
	struct flat_histogram *histogram = bpf_map_lookup_elem(&flat_histograms, &key);
	__u32 bucket = histogram_bucket(ns);

	if (!histogram) {
		bpf_map_update_elem(&flat_histograms, &key, &no_durations, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(&flat_histograms, &key);
	}
	if (!histogram) {
		count(COUNT_HISTOGRAM_FULL);
		return;
	}
	histogram->sum_ns += ns;
	barrier_var(bucket); /* clang knows the bound and drops the check, the verifier wants it */
	if (bucket < HISTOGRAM_BUCKETS)
		histogram->buckets[bucket]++;
}

/* What an answer says, beside having come. */
struct answer {
	enum flat_result result;
	bool success;
	__u8 rcode;
	__u8 icmp_type; /* of an error */
	__u8 icmp_code;
	__u8 ttl;    /* of the remote end's packet, if this is one */
	__u64 at_ns; /* when it was seen */
	__u64 client_rtt_ns;
	__u32 echoed_tsval;    /* TCP: which SYN is answered (RFC 7323, 3.2); 0: not told */
	__u32 question_offset; /* from the start of the packet */
	__u32 question_length; /* bytes at hand, at most QUESTION_MAX */
};

static __always_inline struct answer new_answer(const struct half *h, enum flat_result result,
						bool success)
{
	return (struct answer){
		.result = result,
		.success = success,
		.ttl = h->ttl,
		.at_ns = h->now,
	};
}

/*
 * answered_request is when the request packet was sent that this answers, or 0
 * if it cannot be known which of several it was (Karn and Partridge, 1987).
 */
static __always_inline __u64 answered_request(const struct flat_pending *open,
					      const struct answer *a)
{
	if (!open->repeats)
		return open->first_ns;
	if (!a->echoed_tsval || open->first_tsval == open->last_tsval)
		return 0;
	if (a->echoed_tsval == open->last_tsval)
		return open->last_ns;
	if (a->echoed_tsval == open->first_tsval)
		return open->first_ns;
	return 0;
}

static __always_inline void write_record(struct flat_record *r, const struct half *h,
					 const struct flat_pending *open, enum flat_side side,
					 const struct answer *a, __u64 sequence)
{
	bool client = side == SIDE_CLIENT;
	__u64 asked_ns = answered_request(open, a);

	r->sequence = sequence;
	r->end_ns = a->at_ns;
	r->duration_ns = a->at_ns - open->first_ns;
	r->rtt_ns = asked_ns ? a->at_ns - asked_ns : 0;
	r->client_rtt_ns = a->client_rtt_ns;
	r->cgroup = open->cgroup;
	r->uid = open->uid;
	r->source = client ? h->key.local : h->key.remote;
	r->destination = client ? h->key.remote : h->key.local;
	r->source_port = client ? h->key.local_port : h->key.remote_port;
	r->destination_port = client ? h->key.remote_port : h->key.local_port;
	r->ifindex = open->ifindex;
	r->id = h->key.id;
	r->repeats = open->repeats;
	r->vlan = open->vlan;
	r->kind = h->key.kind;
	r->side = side;
	r->result = a->result;
	r->flags = open->flags | (asked_ns ? RECORD_RTT : RECORD_AMBIGUOUS);
	r->ttl = client ? a->ttl : open->ttl;
	r->rcode = a->rcode;
	r->icmp_type = a->icmp_type;
	r->icmp_code = a->icmp_code;
	r->question_length = a->question_length;
}

/*
 * The shortest question: the root's name, type and class. Linux 5.10 learns
 * nothing from a comparison with 0, and refuses reads of no bytes.
 */
#define QUESTION_MIN 5

/* repeat_question takes it from the request where the answer does not have it. */
static __always_inline void repeat_question(const struct half *h, struct flat_dns_record *d)
{
	struct flat_question *q = bpf_map_lookup_elem(&flat_questions, &h->key);

	d->record.question_length = 0;
	if (!q)
		return;
	__builtin_memcpy(d->question, q->question, sizeof(q->question));
	d->record.question_length = q->length;
}

static __always_inline void report(const struct half *h, const struct flat_pending *open,
				   enum flat_side side, const struct answer *a)
{
	__u64 sequence = next_sequence();
	struct flat_record *r;

	if (h->key.kind != KIND_DNS) {
		r = bpf_ringbuf_reserve(&flat_events, sizeof(*r), 0);
		if (!r) {
			count(COUNT_RING_FULL);
			return;
		}
		write_record(r, h, open, side, a, sequence);
		bpf_ringbuf_submit(r, 0);
		return;
	}

	struct flat_dns_record *d = bpf_ringbuf_reserve(&flat_events, sizeof(*d), 0);
	__u64 length = a->question_length;

	if (!d) {
		count(COUNT_RING_FULL);
		return;
	}
	write_record(&d->record, h, open, side, a, sequence);
	__builtin_memset(d->question, 0, sizeof(d->question));
	barrier_var(length); /* the check again, for the verifier: see observe_duration */
	if (length < QUESTION_MIN || length > QUESTION_MAX ||
	    bpf_skb_load_bytes(h->skb, a->question_offset, d->question, length))
		repeat_question(h, d);
	bpf_ringbuf_submit(d, 0);
}

/*
 * finish closes an open exchange, unless the sweep or another CPU was faster.
 * It returns whether it did.
 */
static __always_inline bool finish(struct half *h, enum flat_side side,
				   const struct flat_pending *found, struct answer *a)
{
	const struct flat_options *s = h->settings;
	/* Deleting the entry frees it for reuse at once, so keep what it said. */
	struct flat_pending open = *found;
	__u64 duration;

	if (bpf_map_delete_elem(table_of(side), &h->key))
		return false;
	/* Two CPUs may see request and answer with clocks a little apart. */
	if (open.first_ns > a->at_ns)
		open.first_ns = a->at_ns;
	if (open.last_ns > a->at_ns)
		open.last_ns = a->at_ns;
	duration = a->at_ns - open.first_ns;

	count(COUNT_FINISHED);
	trace("answer kind %d result %d in %llu ns", h->key.kind, a->result, duration);
	observe_duration(h, side, a->result, open.ifindex, duration);
	if (a->success && duration < s->min_duration_ns)
		count(COUNT_TOO_FAST);
	else if (a->success && s->sample > 1 && bpf_get_prandom_u32() % s->sample)
		count(COUNT_SAMPLED_OUT);
	else
		report(h, &open, side, a);
	return true;
}

/* answer looks for the open request that a packet answers, and finishes it. */
static __always_inline void answer(struct half *h, struct flat_pending *found, struct answer *a)
{
	enum flat_side side = side_of_answer(h->direction);

	if (!found) {
		count(COUNT_UNMATCHED);
		return;
	}
	if (found->state != STATE_OPEN) {
		count(COUNT_LATE);
		return;
	}
	if (side == SIDE_SERVER && a->success && h->key.kind != KIND_ICMP)
		own_socket(h->skb, &found->cgroup, &found->uid);
	if (!finish(h, side, found, a))
		count(COUNT_LATE);
}
