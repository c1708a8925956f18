/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The records: what the kernel half hands to user space. This file is the
 * contract with flows/decode.go; a test compares offsets, sizes and names.
 *
 * Addresses and ports are in network byte order, everything else in host
 * order. Times are nanoseconds of CLOCK_BOOTTIME, which goes on during suspend
 * as the peer's clock does.
 */
#pragma once

#include <linux/types.h>

enum flat_kind {
	KIND_TCP = 1,
	KIND_DNS = 2,
	KIND_UDP = 3,
	KIND_ICMP = 4,
};

/* The side this host is on: it asked (client) or it was asked (server). */
enum flat_side {
	SIDE_CLIENT = 1,
	SIDE_SERVER = 2,
};

enum flat_result {
	RESULT_ESTABLISHED = 1, /* SYN/ACK */
	RESULT_ANSWERED = 2,	/* UDP datagram, DNS answer (see rcode), echo reply */
	RESULT_REFUSED = 3,	/* RST */
	RESULT_UNREACHABLE = 4, /* ICMP error that quotes the request */
};

enum flat_record_flags {
	RECORD_RTT = 1 << 0,	   /* rtt_ns is known */
	RECORD_AMBIGUOUS = 1 << 1, /* retransmitted: which request was answered is not known */
	RECORD_QUIC = 1 << 2,	   /* the request was a QUIC long-header packet */
	RECORD_TRUNCATED = 1 << 3, /* the DNS answer was cut short (TC; RFC 1035, 4.1.1) */
};

/* An address is 16 bytes, IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2). */
union flat_addr {
	__u8 bytes[16];
	__be32 words[4];
	__u64 halves[2];
};

/* One finished exchange. */
struct flat_record {
	__u64 sequence;	     /* position in the global order; a gap is a loss */
	__u64 end_ns;	     /* when the answer was seen */
	__u64 duration_ns;   /* first request packet to answer */
	__u64 rtt_ns;	     /* answered request packet to answer, if RECORD_RTT */
	__u64 client_rtt_ns; /* TCP, server side: SYN/ACK out to the completing ACK in; 0: unknown
			      */
	__u64 cgroup;	     /* id of the local socket's cgroup (v2); 0: unknown */
	union flat_addr source;
	union flat_addr destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 ifindex;
	__u32 id;	/* DNS: transaction id; ICMP: identifier << 16 | sequence */
	__u32 repeats;	/* further request packets before the answer */
	__u32 uid;	/* of the local socket's owner, if the cgroup is known */
	__u16 vlan;	/* outermost VLAN id, 0 for none */
	__u8 kind;	/* enum flat_kind */
	__u8 side;	/* enum flat_side */
	__u8 result;	/* enum flat_result */
	__u8 flags;	/* enum flat_record_flags */
	__u8 ttl;	/* TTL or hop limit of the remote end's packet */
	__u8 rcode;	/* DNS response code (RFC 1035, 4.1.1) */
	__u8 icmp_type; /* of the error, if RESULT_UNREACHABLE */
	__u8 icmp_code;
	__u16 question_length; /* bytes of question[] in use: KIND_DNS only */
	__u64 comm[2];	       /* name of the process that asked, TASK_COMM_LEN bytes; 0: unknown */
	__u32 pid;	       /* of that process; 0: unknown */
	__u32 reserved;
};

/* A DNS name takes 255 bytes at most (RFC 1035, 2.3.4), type and class 4. */
#define QUESTION_MAX 259

/* A finished DNS exchange: the record, and the start of the question section. */
struct flat_dns_record {
	struct flat_record record;
	__u8 question[QUESTION_MAX + 5]; /* as on the wire; the rest is zero */
};
