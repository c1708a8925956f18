/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The state that outlives every process. Each map is pinned by its name, below
 * the directory the loader chooses: flatd's own, or /sys/fs/bpf/tc/globals when
 * tc(8) loads the object, so that ingress and egress share one set.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "counters.h"
#include "histogram.h"
#include "record.h"
#include "settings.h"

#define PENDING_MAX 61440
#define SEATS 1024 /* of each side */
#define FLOW_SETS 32768
#define FLOW_WAYS 4 /* of each side */
#define RING_BYTES (4 << 20)
#define NETS_MAX 2048
#define QUESTIONS_MAX 4096
#define HISTOGRAMS_MAX 512

/*
 * A pending exchange, as this host sees it: an outgoing packet's source is
 * local, an incoming one's destination is. Request and answer thus have the
 * same key, and the answer's is the request's five-tuple reversed.
 */
struct flat_key {
	union flat_addr local;
	union flat_addr remote;
	__be16 local_port;
	__be16 remote_port;
	__u32 id;      /* as in struct flat_record */
	__u32 ifindex; /* 0 if answers may arrive on any interface */
	__u32 kind;    /* enum flat_kind */
};

enum flat_state {
	STATE_OPEN = 0,
	STATE_REPORTED = 1,  /* timed out or unreachable; kept to recognise its retransmits */
	STATE_HALF_OPEN = 2, /* TCP from outside: SYN/ACK sent, the completing ACK is awaited */
};

/*
 * Whoever breaks the seal of an open entry owns the exchange: the program that
 * saw the answer or the daemon's sweep that saw the timeout, never both.
 */
struct flat_pending {
	__u64 first_ns; /* first request packet */
	__u64 last_ns;	/* latest request packet */
	__u64 seal;	/* seal_of() its hash and first_ns; 0: broken */
	__u64 cgroup;	/* of the local socket; 0: unknown */
	__u32 uid;	/* of its owner, if the cgroup is known */
	__u32 isn;	/* TCP: sequence number of the SYN */
	__u16 payload;	/* TCP: bytes in the SYN (RFC 7413) */
	union {
		__u8 answers; /* STATE_HALF_OPEN: further SYN/ACKs, at most 255 */
		__u8 crossed; /* TCP, ours: both ends have asked, and this one has answered */
	};
	__u8 flags;	   /* enum flat_record_flags */
	__u32 first_tsval; /* TCP timestamps (RFC 7323) of first and latest SYN; 0: none */
	__u32 last_tsval;
	__u32 repeats;
	__u32 ifindex; /* where the request was seen */
	__u16 vlan;
	__u8 state; /* enum flat_state */
	__u8 ttl;
#ifdef FLAT_512
	__u32 reserved;
#else
	struct bpf_spin_lock lock; /* of the seal: Linux before 5.12 has no compare-and-swap */
#endif
	__u32 pid; /* of the process that asked; 0: unknown */
	union {
		__u64 comm[2];	 /* ours: its name, as in struct flat_record */
		__u64 answer_ns; /* STATE_HALF_OPEN: when the first SYN/ACK went out */
	};
};

/* The question of a DNS request, for one that is never answered. */
struct flat_question {
	__u16 length;
	__u8 question[QUESTION_MAX + 3]; /* as on the wire */
};

/* A place that the hash of a request's key names. */
struct flat_seat {
	__u64 holder; /* whose it is, or 0: see seat.h */
	__u32 others; /* requests in the table whose seat this is */
	__u32 reserved;
	struct flat_key key;
#ifdef FLAT_512
	struct flat_pending request;
#else
	__u64 request[sizeof(struct flat_pending) / sizeof(__u64)]; /* no lock in what is mapped */
#endif
};

struct flat_flow_set {
	__u64 ours[FLOW_WAYS];	 /* that this host began */
	__u64 theirs[FLOW_WAYS]; /* that began outside; apart, as requests are */
};

struct flat_numbering {
	struct bpf_spin_lock lock;
	__u32 reserved;
	__u64 last;
};

/*
 * Requests of this host for which no seat was free. Plain hashes: an LRU would
 * forget without a word.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PENDING_MAX);
	__type(key, struct flat_key);
	__type(value, struct flat_pending);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_ours SEC(".maps");

/* Requests to this host, apart, so that a flood of them cannot evict ours. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PENDING_MAX);
	__type(key, struct flat_key);
	__type(value, struct flat_pending);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_theirs SEC(".maps");

/* Those that have a seat, first of this host, then to it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * SEATS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flat_seat);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_seats SEC(".maps");

/* An LRU: of too many questions the oldest are forgotten, which costs a name and no more. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, QUESTIONS_MAX);
	__type(key, struct flat_key);
	__type(value, struct flat_question);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_questions SEC(".maps");

/* UDP flows: see flow.h. What user space can map begins with a page: a set is a cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_SETS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flat_flow_set);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_flows SEC(".maps");

/* Finished exchanges on their way to user space. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flat_options);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_settings SEC(".maps");

/* Peers to measure or not, of both generations while a reload changes them. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, NETS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flat_net);
	__type(value, __u32); /* enum flat_net_verdict */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_nets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS_MAX);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_counters SEC(".maps");

/* Made when first needed: a full set for every CPU would be megabytes of zeros. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, HISTOGRAMS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flat_histogram_key);
	__type(value, struct flat_histogram);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_histograms SEC(".maps");

/* The lock is for Linux before 5.12, which has no atomic addition that returns the old value. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flat_numbering);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_sequence SEC(".maps");

static __always_inline void count(enum flat_counter which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&flat_counters, &key);

	if (value)
		*value += 1;
}
