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

struct flat_numbering {
	struct bpf_spin_lock lock;
	__u32 reserved;
	__u64 last;
};

/*
 * Open requests of this host for which no slot was free, by hash. Plain hash maps:
 * an LRU would lose one without a count.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, OPEN_MAX);
	__type(key, __u64);
	__type(value, struct flat_open);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_ours SEC(".maps");

/* Requests to this host, apart, so that a flood of them cannot evict ours. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, OPEN_MAX);
	__type(key, __u64);
	__type(value, struct flat_open);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_theirs SEC(".maps");

/* Those that have a slot, first of this host, then to it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flat_slot);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_slots SEC(".maps");

/*
 * Requests that were reported without an answer, by which their repeats and late
 * answers are known, and those for which the table was full. They lose the oldest.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RECENT_MAX);
	__type(key, __u64);
	__type(value, struct flat_request);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_recent_ours SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RECENT_MAX);
	__type(key, __u64);
	__type(value, struct flat_request);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_recent_theirs SEC(".maps");

/*
 * During a take-over, the requests of the programs of the other layout, and for a moment
 * our own: see handover.h. Empty, and no memory, at all other times.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SEEN_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_seen SEC(".maps");

/*
 * By the hash of a request: the question of one of DNS, or the translated end of a SYN/ACK that
 * is not acknowledged yet (tcp.h). An LRU: of too many the oldest are forgotten, which costs a
 * name and no more.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, QUESTIONS_MAX);
	__type(key, __u64);
	__type(value, struct flat_question);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_questions SEC(".maps");

/* One for packets, one for what the daemon runs: see count_atomic(). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct flat_scratch_values);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_scratch SEC(".maps");

/* UDP flows: see flow.h. What user space can map begins with a page: a set is a cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_SETS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flat_flow_set);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_flows SEC(".maps");

/* TCP attempts that were answered: see attempt.h. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ATTEMPT_SETS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flat_attempt_set);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_attempts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HINTS);
	__type(key, __u32);
	__type(value, struct flat_hint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flat_hints SEC(".maps");

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

/*
 * The number of the latest record. It outlives layouts: user space gives each the
 * same map (model: ONE_SEQUENCE). The lock is for Linux before 5.12, see compat.h.
 */
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
