package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Counter is an index into the kernel's counters (counters.h).
type Counter uint32

// The counters that code outside the kernel needs by name. All others are
// read through Counters.Each.
const (
	Requests    = Counter(kernelFlatCounterCOUNT_REQUESTS)
	Finished    = Counter(kernelFlatCounterCOUNT_FINISHED)
	TimedOut    = Counter(kernelFlatCounterCOUNT_TIMED_OUT)
	HalfOpen    = Counter(kernelFlatCounterCOUNT_HALF_OPEN)
	Replaced    = Counter(kernelFlatCounterCOUNT_REPLACED)
	PendingFull = Counter(kernelFlatCounterCOUNT_PENDING_FULL)
	ResultOut   = Counter(kernelFlatCounterCOUNT_RESULT_OUT)
	TooFast     = Counter(kernelFlatCounterCOUNT_TOO_FAST)
	SampledOut  = Counter(kernelFlatCounterCOUNT_SAMPLED_OUT)
	RingFull    = Counter(kernelFlatCounterCOUNT_RING_FULL)
	Rescued     = Counter(kernelFlatCounterCOUNT_RESCUED)
	Late        = Counter(kernelFlatCounterCOUNT_LATE)
	Translated  = Counter(kernelFlatCounterCOUNT_TRANSLATED)
	NotLooking  = Counter(kernelFlatCounterCOUNT_NOT_LOOKING)
	Paused      = Counter(kernelFlatCounterCOUNT_PAUSED)

	countersMax = Counter(kernelFlatCounterCOUNTERS_END)
)

var counterNames = [countersMax]string{
	kernelFlatCounterCOUNT_REQUESTS:           "requests",
	kernelFlatCounterCOUNT_FINISHED:           "finished",
	kernelFlatCounterCOUNT_TIMED_OUT:          "timed_out",
	kernelFlatCounterCOUNT_HALF_OPEN:          "half_open",
	kernelFlatCounterCOUNT_REPLACED:           "replaced",
	kernelFlatCounterCOUNT_PENDING_FULL:       "pending_full",
	kernelFlatCounterCOUNT_RESULT_OUT:         "result_out",
	kernelFlatCounterCOUNT_TOO_FAST:           "too_fast",
	kernelFlatCounterCOUNT_SAMPLED_OUT:        "sampled_out",
	kernelFlatCounterCOUNT_RING_FULL:          "ring_full",
	kernelFlatCounterCOUNT_HISTOGRAM_FULL:     "histogram_full",
	kernelFlatCounterCOUNT_REPEATS:            "repeats",
	kernelFlatCounterCOUNT_RESCUED:            "rescued",
	kernelFlatCounterCOUNT_TRANSLATED:         "translated",
	kernelFlatCounterCOUNT_NOT_LOOKING:        "not_looking",
	kernelFlatCounterCOUNT_ASLEEP:             "asleep",
	kernelFlatCounterCOUNT_FILTERED:           "filtered",
	kernelFlatCounterCOUNT_UNMATCHED:          "unmatched",
	kernelFlatCounterCOUNT_WRONG_ACK:          "wrong_ack",
	kernelFlatCounterCOUNT_LATE:               "late",
	kernelFlatCounterCOUNT_ENDED:              "ended",
	kernelFlatCounterCOUNT_UNTRACED:           "untraced",
	kernelFlatCounterCOUNT_FLOW:               "flow",
	kernelFlatCounterCOUNT_NOT_IP:             "not_ip",
	kernelFlatCounterCOUNT_PROTOCOL:           "protocol",
	kernelFlatCounterCOUNT_ICMP_OTHER:         "icmp_other",
	kernelFlatCounterCOUNT_FRAGMENT:           "fragment",
	kernelFlatCounterCOUNT_TRUNCATED:          "truncated",
	kernelFlatCounterCOUNT_MALFORMED:          "malformed",
	kernelFlatCounterCOUNT_EXTENSIONS:         "extensions",
	kernelFlatCounterCOUNT_MULTICAST:          "multicast",
	kernelFlatCounterCOUNT_DNS_OTHER:          "dns_other",
	kernelFlatCounterCOUNT_QUOTE:              "quote",
	kernelFlatCounterCOUNT_FLOWS_FORGOTTEN:    "flows_forgotten",
	kernelFlatCounterCOUNT_AWAITING_FULL:      "awaiting_full",
	kernelFlatCounterCOUNT_PAUSED:             "paused",
	kernelFlatCounterCOUNT_HANDED_OVER:        "handed_over",
	kernelFlatCounterCOUNT_SEEN_FULL:          "seen_full",
	kernelFlatCounterCOUNT_WRONG_QUESTION:     "wrong_question",
	kernelFlatCounterCOUNT_ATTEMPTS_FORGOTTEN: "attempts_forgotten",
}

// String is the counter's name in status, metrics and documents.
func (c Counter) String() string {
	if c >= countersMax {
		return fmt.Sprintf("counter%d", uint32(c))
	}
	return counterNames[c]
}

// Counters are the kernel's counters at one moment, summed over its CPUs.
type Counters [countersMax]uint64

// Map returns the counters by name.
func (c *Counters) Map() map[string]uint64 {
	m := make(map[string]uint64, len(c))
	for i, v := range c {
		m[Counter(i).String()] = v
	}
	return m
}

// Counters reads all counters. They only ever grow while the pins live.
func (s *State) Counters() (Counters, error) {
	var sums Counters
	for i := range sums {
		var err error
		if sums[i], err = s.Count(Counter(i)); err != nil {
			return sums, err
		}
	}
	return sums, nil
}

// Count reads one counter.
func (s *State) Count(c Counter) (uint64, error) { return sumOf(s.maps.FlatCounters, c) }

// sumOf is what all CPUs have counted.
func sumOf(counters *ebpf.Map, c Counter) (sum uint64, err error) {
	var perCPU []uint64
	if err := counters.Lookup(uint32(c), &perCPU); err != nil {
		return 0, fmt.Errorf("read counter %s: %w", c, err)
	}
	for _, v := range perCPU {
		sum += v
	}
	return sum, nil
}
