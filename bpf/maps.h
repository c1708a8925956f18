/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The state that outlives every process. Each map is pinned by its name, below
 * the directory the loader chooses: flatd's own, or /sys/fs/bpf/tc/globals when
 * tc(8) loads the object, so that ingress and egress share one set.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "compat.h"
#include "counters.h"
#include "histogram.h"
#include "record.h"
#include "settings.h"
#include "shared.h"

#define OPEN_MAX 61440
#define RECENT_MAX 8192
#define SEEN_MAX 65536
#define SLOTS 1024 /* of each side */
#define FLOW_SETS 32768
#define FLOW_WAYS 4 /* of each side */
#define ATTEMPT_SETS 8192
#define ATTEMPT_WAYS 8
#define HINTS 4096
#define RING_BYTES (4 << 20)
#define NETS_MAX 2048
#define QUESTIONS_MAX 4096
#define HISTOGRAMS_MAX 512

/*
 * What an exchange is, as this host sees it: an outgoing packet's source is
 * local, an incoming one's destination is. Request and answer thus have the
 * same key, and the answer's is the request's five-tuple reversed.
 */
struct flat_key {
	union flat_addr local;
	union flat_addr remote;
	__be16 local_port;
	__be16 remote_port;
	__u32 ifindex; /* 0 if answers may arrive on any interface */
	__u64 id; /* enum flat_kind in the upper 8 bits, then what the kind has: see exchange_id()
		   */
};

enum flat_state {
	STATE_OPEN = 0,
	STATE_HALF_OPEN = 1, /* TCP from outside: SYN/ACK sent, the completing ACK is awaited */
	STATE_REPORTED = 2,  /* timed out or unreachable: in a memory of recent ones only */
};

enum flat_request_traits {
	REQUEST_OVERFLOW = 1 << 0, /* the table was full; in a memory of recent ones only */
	REQUEST_HINTED = 1 << 1,   /* the hints of its tuple count it: hint.h */
	REQUEST_TRACED = 1 << 2,   /* the hints for translated answers count it too */
};

/*
 * A request. The members before key are in these places in every layout from 3 on,
 * so that a daemon of another layout can find what is overdue.
 */
struct flat_request {
	__u64 first_ns; /* first request packet */
	__u64 last_ns;	/* latest request packet */
	__u64 version;	/* version_of() its hash and first_ns; 0: claimed */
	__u32 ifindex;	/* where the request was seen */
	__u8 state;	/* enum flat_state */
	__u8 traits;	/* enum flat_request_traits */
	__u8 flags;	/* enum flat_record_flags */
	__u8 ttl;
	struct flat_key key;
	__u64 cgroup; /* of the local socket; 0: unknown */
	__u32 uid;    /* of its owner, if the cgroup is known */
	__u32 pid;    /* of the process that asked; 0: unknown */
	union {
		__u64 comm[2];	 /* ours: its name, as in struct flat_record */
		__u64 answer_ns; /* STATE_HALF_OPEN: when the first SYN/ACK went out */
	};
	__u32 isn;	   /* TCP: sequence number of the SYN */
	__u32 first_tsval; /* TCP timestamps (RFC 7323) of first and latest SYN; 0: none */
	__u32 last_tsval;
	__u32 repeats;
	__u16 payload; /* TCP: bytes in the SYN (RFC 7413) */
	__u16 vlan;
	union {
		__u8 answers; /* STATE_HALF_OPEN: further SYN/ACKs, at most 255 */
		__u8 crossed; /* TCP, ours: both ends have asked, and this one has answered */
	};
	__u8 spare[3];
};

/* A request in the hash map of its side. */
struct flat_open {
	struct flat_request request;
	version_lock lock;
	__u32 spare;
};

/* A place that the hash of a request names: see table.h. */
struct flat_slot {
	__u64 word; /* the tag of the request in it, or 0, and how many more are in the hash map */
	__u64 spare;
	struct flat_request request;
};

/* The question of a DNS request, for one that is never answered. */
struct flat_question {
	__u8 question[QUESTION_BYTES]; /* as on the wire; the rest is zero */
	__u64 length;
};

/* What does not fit on the stack, for the packet at hand. */
struct flat_scratch_values {
	struct flat_question question; /* that read_question() has read */
	struct flat_request request;
	__u64 open[sizeof(struct flat_open) / sizeof(__u64)]; /* a per-CPU map has no locks */
};

struct flat_flow_set {
	__u64 ours[FLOW_WAYS];	 /* that this host began */
	__u64 theirs[FLOW_WAYS]; /* that began outside; apart, as requests are */
};

struct flat_attempt_set {
	__u64 ways[ATTEMPT_WAYS];
};

/* How many open requests have something in common, and the sum of their hashes: see hint.h. */
struct flat_hint {
	__u64 word; /* a tag above, the number below */
	__u64 sum;
	__u64 untraced_ns; /* when an answer last came that may be of any of them */
	__u64 spare;
};

/* A map with a key and a value, pinned by its name. */
#define PINNED_MAP(name, kind, entries, flags, key_type, value_type) \
	struct {                                                     \
		__uint(type, BPF_MAP_TYPE_##kind);                   \
		__uint(max_entries, entries);                        \
		__uint(map_flags, flags);                            \
		__type(key, key_type);                               \
		__type(value, value_type);                           \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                 \
	} name SEC(".maps")

struct flat_numbering {
	struct bpf_spin_lock lock;
	__u32 reserved;
	__u64 last;
};

/*
 * Open requests of this host for which no slot was free, by hash. Plain hash maps:
 * an LRU would lose one without a count.
 */
PINNED_MAP(flat_ours, HASH, OPEN_MAX, 0, __u64, struct flat_open);

/* Requests to this host, apart, so that a flood of them cannot evict ours. */
PINNED_MAP(flat_theirs, HASH, OPEN_MAX, 0, __u64, struct flat_open);

/* Those that have a slot, first of this host, then to it. */
PINNED_MAP(flat_slots, ARRAY, 2 * SLOTS, BPF_F_MMAPABLE, __u32, struct flat_slot);

/*
 * Requests that were reported without an answer, by which their repeats and late
 * answers are known, and those for which the table was full. They lose the oldest.
 */
PINNED_MAP(flat_recent_ours, LRU_HASH, RECENT_MAX, 0, __u64, struct flat_request);

PINNED_MAP(flat_recent_theirs, LRU_HASH, RECENT_MAX, 0, __u64, struct flat_request);

/*
 * During a take-over, the requests of the programs of the other layout, and for a moment
 * our own: see handover.h. Empty, and no memory, at all other times.
 */
PINNED_MAP(flat_seen, HASH, SEEN_MAX, BPF_F_NO_PREALLOC, __u64, __u64);

/*
 * By the hash of a request: the question of one of DNS, or the translated end of a SYN/ACK that
 * is not acknowledged yet (tcp.h). An LRU: of too many the oldest are forgotten, which costs a
 * name and no more.
 */
PINNED_MAP(flat_questions, LRU_HASH, QUESTIONS_MAX, 0, __u64, struct flat_question);

/* One for packets, one for what the daemon runs: see count_atomic(). */
PINNED_MAP(flat_scratch, PERCPU_ARRAY, 2, 0, __u32, struct flat_scratch_values);

/* UDP flows: see flow.h. What user space can map begins with a page: a set is a cache line. */
PINNED_MAP(flat_flows, ARRAY, FLOW_SETS, BPF_F_MMAPABLE, __u32, struct flat_flow_set);

/* TCP attempts that were answered: see attempt.h. */
PINNED_MAP(flat_attempts, ARRAY, ATTEMPT_SETS, BPF_F_MMAPABLE, __u32, struct flat_attempt_set);

PINNED_MAP(flat_hints, ARRAY, HINTS, 0, __u32, struct flat_hint);

/* Finished exchanges on their way to user space. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_events SEC(".maps");

PINNED_MAP(flat_settings, ARRAY, 1, 0, __u32, struct flat_options);

/* Those of layout 2, as far as handover.h needs them. */
struct flat_options2 {
	__u64 words[4];
	__u32 skip_kinds; /* every bit: its programs begin nothing */
	__u32 skip_others[2];
	__u32 generation; /* each start of its daemon makes another */
	__u32 rest[22];
};

/* While ours take over from programs of layout 2: the settings of these. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__uint(key_size,
			       sizeof(__u32)); /* __type() leaves the value's out of BTF */
			__uint(value_size, sizeof(struct flat_options2));
		});
} flat_settings2 SEC(".maps");

/*
 * Peers to measure or not, of both generations while a reload changes them. A value is an
 * enum flat_net_verdict.
 */
PINNED_MAP(flat_nets, LPM_TRIE, NETS_MAX, BPF_F_NO_PREALLOC, struct flat_net, __u32);

PINNED_MAP(flat_counters, PERCPU_ARRAY, COUNTERS_MAX, 0, __u32, __u64);

/* Made when first needed: a full set for every CPU would be megabytes of zeros. */
PINNED_MAP(flat_histograms, PERCPU_HASH, HISTOGRAMS_MAX, BPF_F_NO_PREALLOC,
	   struct flat_histogram_key, struct flat_histogram);

/*
 * The number of the latest record. It outlives layouts: user space gives each the
 * same map (model: ONE_SEQUENCE). The lock is for Linux before 5.12, see compat.h.
 */
PINNED_MAP(flat_sequence, ARRAY, 1, 0, __u32, struct flat_numbering);

static __always_inline void count(enum flat_counter which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&flat_counters, &key);

	if (value)
		*value += 1;
}

/*
 * count_atomic is count for a program that the daemon runs. Before Linux 6.3 a test
 * run leaves softirqs on, in which a packet's program may count in between.
 */
static __always_inline void count_atomic(enum flat_counter which)
{
	__u32 key = which;
	__u64 *value = bpf_map_lookup_elem(&flat_counters, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}
