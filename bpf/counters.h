/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One counter for each way an exchange or a packet can end. Ordinary TCP
 * segments alone are not counted: that would cost them a map lookup.
 * counters.go names them; a test compares the two lists.
 *
 * The books (each line holds at any moment, give or take packets in flight):
 *   requests = finished + timed_out + half_open + translated + not_looking +
 *              open now + replaced + pending_full
 *   finished + timed_out + late + rescued = result_out + too_fast + sampled_out +
 *              ring_full + records
 */
#pragma once

enum flat_counter {
	/* Exchanges. */
	COUNT_REQUESTS,	      /* new exchanges */
	COUNT_FINISHED,	      /* exchanges that got an answer */
	COUNT_TIMED_OUT,      /* exchanges that got none in time, and are reported */
	COUNT_HALF_OPEN,      /* TCP attempts from outside that were not completed */
	COUNT_REPLACED,	      /* open exchanges whose five-tuple was used anew */
	COUNT_PENDING_FULL,   /* requests that found the table of open ones full */
	COUNT_RESULT_OUT,     /* finished with a result that the settings leave out */
	COUNT_TOO_FAST,	      /* successes under min_duration */
	COUNT_SAMPLED_OUT,    /* successes left out by sampling */
	COUNT_RING_FULL,      /* finished exchanges that found no room in the ring */
	COUNT_HISTOGRAM_FULL, /* finished exchanges that found no histogram */
	COUNT_REPEATS,	      /* request packets sent again */
	COUNT_RESCUED,	      /* of pending_full, those that got an answer all the same */
	COUNT_TRANSLATED,  /* open exchanges whose answer may have come to a translated address */
	COUNT_NOT_LOOKING, /* open exchanges during which flatd did not see every packet */

	/* Packets that end here. */
	COUNT_ASLEEP,		  /* no daemon has renewed the lease */
	COUNT_FILTERED,		  /* requests that the filter leaves out */
	COUNT_UNMATCHED,	  /* answers to no open request */
	COUNT_WRONG_ACK,	  /* SYN/ACK or RST that does not acknowledge our SYN */
	COUNT_LATE,		  /* answers after the timeout was reported */
	COUNT_ENDED,		  /* answers to a request that was ended at that moment */
	COUNT_UNTRACED,		  /* answers that were translated, and may be of several requests */
	COUNT_FLOW,		  /* further datagrams of a UDP flow */
	COUNT_NOT_IP,		  /* ARP, LLDP and the like */
	COUNT_PROTOCOL,		  /* IP protocols that are not measured */
	COUNT_ICMP_OTHER,	  /* ICMP messages that are not echo */
	COUNT_FRAGMENT,		  /* IP fragments but the first */
	COUNT_TRUNCATED,	  /* headers cut short */
	COUNT_MALFORMED,	  /* headers that contradict themselves */
	COUNT_EXTENSIONS,	  /* more VLAN tags or IPv6 extension headers than are followed */
	COUNT_MULTICAST,	  /* to or from a group */
	COUNT_DNS_OTHER,	  /* on a DNS port, but neither query nor answer */
	COUNT_QUOTE,		  /* ICMP errors that quote no open request */
	COUNT_FLOWS_FORGOTTEN,	  /* UDP flows that made room for another before they were idle */
	COUNT_AWAITING_FULL,	  /* SYN/ACKs whose completing ACK cannot be looked out for */
	COUNT_PAUSED,		  /* requests while the interface's programs are being attached */
	COUNT_HANDED_OVER,	  /* requests that the programs of another layout measure */
	COUNT_SEEN_FULL,	  /* requests of programs of another layout that cannot be noted */
	COUNT_WRONG_QUESTION,	  /* DNS answers to another question than the one asked */
	COUNT_ATTEMPTS_FORGOTTEN, /* answered TCP attempts that made room for newer ones early */

	COUNTERS_END,
};

/* The map of counters has room: a new counter is not a new layout. */
#define COUNTERS_MAX 128
