/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The settings that user space gives the programs. All zero means "measure everything",
 * so that the object also works loaded by hand, with no daemon to fill it.
 */
#pragma once

#include <linux/types.h>

#define DNS_PORTS_MAX 8
#define PORT_RANGES_MAX 16

#define TIMEOUT_DEFAULT_NS (10ULL * 1000 * 1000 * 1000)
#define UDP_IDLE_DEFAULT_NS (30ULL * 1000 * 1000 * 1000)

enum flat_settings_flags {
	/* flat_nets has prefixes for this end of an exchange. */
	SETTING_REMOTE_NETS = 1 << 1,
	SETTING_LOCAL_NETS = 1 << 2,
	/* Only addresses that a prefix includes, not all but the excluded. */
	SETTING_REMOTE_LISTED = 1 << 3,
	SETTING_LOCAL_LISTED = 1 << 4,
};

/* The bit of a DNS response code in skip_results; all from RCODE_LAST on share one. */
#define DNS_RESULT_BIT 16
#define RCODE_LAST 47

struct flat_port_range {
	__u16 first; /* host order, both ends included */
	__u16 last;
};

struct flat_options {
	__u64 lease_until_ns;  /* CLOCK_BOOTTIME after which the programs sleep; 0: never */
	__u64 udp_idle_ns;     /* a UDP flow quiet for this long is new again; 0: default */
	__u64 min_duration_ns; /* faster successes are not reported */
	__u32 sample;	       /* report one success in this many; 0 and 1: all */
	__u32 flags;	       /* enum flat_settings_flags */
	__u32 skip_kinds;      /* bit 1 << enum flat_kind */
	__u32 skip_sides;      /* bit 1 << enum flat_side */
	__u64 skip_results;    /* bit 1 << enum flat_result; for a DNS answer see DNS_RESULT_BIT */
	__u32 generation;      /* the flat_nets entries in force */
	__u32 port_ranges_count;			     /* 0: every port */
	__be16 dns_ports[DNS_PORTS_MAX];		     /* first one 0: port 53; ends at a 0 */
	struct flat_port_range port_ranges[PORT_RANGES_MAX]; /* of the responder */
	__u64 timeout_ns; /* an open request is overdue after this; 0: TIMEOUT_DEFAULT_NS */
	__u64 spare[15];
};

/* An end of an exchange, as this host sees it (struct flat_key). */
enum flat_end {
	END_REMOTE = 0,
	END_LOCAL = 1,
};

/* flat_nets: longest prefix wins. */
enum flat_net_verdict {
	NET_INCLUDE = 1,
	NET_EXCLUDE = 2,
};

struct flat_net {
	__u32 prefix_bits; /* 32 for the table, then those of the address */
	__u32 table;	   /* generation * 4 + enum flat_end * 2, + 1 for IPv6, so that ::/0 is
			    * not about IPv4 */
	union flat_addr addr;
};
