/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The records: what the kernel half hands to user space. This file is the
 * contract with flows/decode.go; a test compares offsets, sizes and names.
 *
 * Addresses and ports are in network byte order, everything else in host
 * order. Times are nanoseconds of CLOCK_BOOTTIME, which goes on during suspend
 * as the peer's clock does. What is unknown is 0.
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
	RESULT_TIMEOUT = 5,	/* no answer within duration_ns */
};

enum flat_record_flags {
	RECORD_RTT = 1 << 0,		 /* rtt_ns is known */
	RECORD_AMBIGUOUS = 1 << 1,	 /* which request was answered is not known */
	RECORD_QUIC = 1 << 2,		 /* the request was a QUIC long-header packet */
	RECORD_TRUNCATED = 1 << 3,	 /* the DNS answer was cut short (TC; RFC 1035, 4.1.1) */
	RECORD_LATE = 1 << 4,		 /* the answer came after the timeout was reported */
	RECORD_NAT_SOURCE = 1 << 5,	 /* nat is the source's end as the answer had it */
	RECORD_NAT_DESTINATION = 1 << 6, /* nat is the destination's */
	RECORD_NAT = RECORD_NAT_SOURCE | RECORD_NAT_DESTINATION,
};

/* An address is 16 bytes, IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2). */
union flat_addr {
	__u8 bytes[16];
	__be32 words[4];
	__u64 halves[2];
};

/* One finished exchange, or one without an answer. */
struct flat_record {
	__u64 sequence;	     /* position in the order of reporting; a gap is a loss */
	__u64 end_ns;	     /* when the answer was seen; of a timeout, when the limit was over */
	__u64 duration_ns;   /* first request packet to answer; of a timeout, the limit */
	__u64 rtt_ns;	     /* answered request packet to answer, if RECORD_RTT */
	__u64 client_rtt_ns; /* TCP, server side: SYN/ACK out to the completing ACK in */
	__u64 cgroup;	     /* id of the local socket's cgroup (v2) */
	union flat_addr source;
	union flat_addr destination;
	union flat_addr nat; /* the end that was translated; see the flags */
	__be16 nat_port;
	__be16 source_port;
	__be16 destination_port;
	__u16 vlan; /* outermost VLAN id */
	__u32 ifindex;
	__u32 id;	/* DNS: transaction id; ICMP: identifier << 16 | sequence */
	__u32 repeats;	/* further request packets before the answer */
	__u32 uid;	/* of the local socket's owner, if the cgroup is known */
	__u32 pid;	/* of the process that asked */
	__u32 flags;	/* enum flat_record_flags */
	__u64 comm[2];	/* name of that process, TASK_COMM_LEN bytes */
	__u8 kind;	/* enum flat_kind */
	__u8 side;	/* enum flat_side */
	__u8 result;	/* enum flat_result */
	__u8 ttl;	/* TTL or hop limit of the remote end's packet */
	__u16 rcode;	/* DNS response code, extended (RFC 6891, 6.1.3) */
	__u8 icmp_type; /* of the error, if RESULT_UNREACHABLE */
	__u8 icmp_code;
	__u16 question_length; /* bytes of question[] in use: KIND_DNS only */
	__u16 spare_half[3];
	__u64 request_id; /* of a timeout that layout 2 found: hash of the request; never from the
			     programs */
	__u64 spare[2];
};

/* A DNS name takes 255 bytes at most (RFC 1035, 2.3.4), type and class 4. */
#define QUESTION_MAX 259
#define QUESTION_BYTES 264

/* A DNS exchange: the record, and the first question. */
struct flat_dns_record {
	struct flat_record record;
	__u8 question[QUESTION_BYTES]; /* as on the wire, without what follows it; the rest is zero
					*/
};
