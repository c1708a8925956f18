package flows

import (
	"encoding/binary"
	"time"
)

// Summary is what an interval came to: the exchanges of one kind and side,
// those with one destination, or what was not reported one by one. The side
// and the destination are the event's.
//
// What is zero is left out of every form, but for Count, Failed and
// Retransmits of exchanges.
type Summary struct {
	Scope    Scope
	Interval time.Duration // how long it really was
	Kind     Kind          // of the exchanges; none for ScopeBooks

	Count  uint64 // exchanges that were reported
	Failed uint64 // of these; the following say how
	// By flatd.result, of whatever kind: a DNS server refuses too.
	Refused, Unreachable, Timeouts, NXDomain, ServFail uint64
	OtherFailures                                      uint64 // other DNS response codes

	Slow        uint64 // took at least the configured `slow`
	Retransmits uint64 // further request packets

	// Of the exchanges that were answered, whatever the answer. Quantiles are
	// as exact as the histogram they come from, Max is exact.
	P50, P90, P99, Max time.Duration

	// Only for ScopeBooks: what no event of its own tells of.
	Withheld   uint64 // by outputs, on purpose: budget, profile
	Dropped    uint64 // by outputs, against their will
	ResultOut  uint64 // by the kernel and the sweep: results
	TooFast    uint64 // by the kernel: under min_duration
	SampledOut uint64 // by the kernel: sample
	RingFull   uint64 // by the kernel: no room
	HalfOpen   uint64 // TCP attempts from outside that were not completed
	Others     uint64 // reported, but to destinations beyond those that are told apart
}

// Scope is what a summary is of.
type Scope string

// The scopes of dataset flatd.summary.
const (
	ScopeExchanges   Scope = "exchanges"   // all of one kind and side
	ScopeDestination Scope = "destination" // all of one kind that this host asked one destination for
	ScopeBooks       Scope = "books"       // what was left out
)

// Add counts an exchange, except for its quantiles.
func (s *Summary) Add(e *Event) {
	s.Count++
	s.Retransmits += uint64(e.Retransmits)
	s.Max = max(s.Max, e.Duration)
	if e.Slow {
		s.Slow++
	}
	if e.Failed() {
		s.Failed++
		*s.failure(e.ResultName())++
	}
}

// failure is where failures of that result are counted.
func (s *Summary) failure(result string) *uint64 {
	switch result {
	case "refused":
		return &s.Refused
	case "unreachable":
		return &s.Unreachable
	case "timeout":
		return &s.Timeouts
	case "nxdomain":
		return &s.NXDomain
	case "servfail":
		return &s.ServFail
	}
	return &s.OtherFailures
}

// summaryID tells apart the summaries that end at the same moment.
func (e *Event) summaryID() uint64 {
	if e.Request != 0 {
		return e.Request
	}
	var b [10]byte
	binary.BigEndian.PutUint64(b[:], e.End)
	b[9] = byte(e.Side)
	if e.Summary != nil {
		b[8] = byte(e.Summary.Kind)
	}
	return fnv1a(fnvBasis, b[:]) + hashEnd(e.Destination)
}

var summaryFields = []Field{
	{Path: "flatd.summary.interval", Type: TypeLong, Presence: PresenceSummary,
		Doc:    "Nanoseconds that a summary is about. It ends at `@timestamp`, and counts what flatd read in it.",
		number: summary(func(s *Summary) uint64 { return uint64(s.Interval) })},
	{Path: "flatd.summary.kind", Type: TypeKeyword, Presence: PresenceKnown, Values: ExchangeKindNames(),
		Doc:   "Kind of the exchanges.",
		value: summaryText(func(e *Event) string { return e.Summary.Kind.String() })},
	{Path: "flatd.summary.side", Type: TypeKeyword, Presence: PresenceKnown, Values: []string{"client", "server"},
		Doc:   "Whether this host asked or was asked.",
		value: summaryText(func(e *Event) string { return e.Side.String() })},
	{Path: "flatd.summary.count", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Exchanges that were reported, also those that an output then withheld.",
		number: summaryCount(func(s *Summary) uint64 { return s.Count })},
	{Path: "flatd.summary.failed", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Those of them with the outcome `failure`. How they failed follows; what did not happen is absent.",
		number: summaryCount(func(s *Summary) uint64 { return s.Failed })},
	{Path: "flatd.summary.refused", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Failures with the result `refused`, by a reset or by a DNS server.",
		number: summary(func(s *Summary) uint64 { return s.Refused })},
	{Path: "flatd.summary.unreachable", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Failures with the result `unreachable`.",
		number: summary(func(s *Summary) uint64 { return s.Unreachable })},
	{Path: "flatd.summary.timeouts", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Failures with the result `timeout`.",
		number: summary(func(s *Summary) uint64 { return s.Timeouts })},
	{Path: "flatd.summary.nxdomain", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Failures with the result `nxdomain`.",
		number: summary(func(s *Summary) uint64 { return s.NXDomain })},
	{Path: "flatd.summary.servfail", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Failures with the result `servfail`.",
		number: summary(func(s *Summary) uint64 { return s.ServFail })},
	{Path: "flatd.summary.other_failures", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Failures with any other result.",
		number: summary(func(s *Summary) uint64 { return s.OtherFailures })},
	{Path: "flatd.summary.slow", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Exchanges that took at least the configured `slow`.",
		number: summary(func(s *Summary) uint64 { return s.Slow })},
	{Path: "flatd.summary.retransmits", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Further request packets of all the exchanges.",
		number: summaryCount(func(s *Summary) uint64 { return s.Retransmits })},
	{Path: "flatd.summary.p50", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds within which half of those that got an answer got it, refusals too.",
		number: summary(func(s *Summary) uint64 { return uint64(s.P50) })},
	{Path: "flatd.summary.p90", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds within which 90 % got it.",
		number: summary(func(s *Summary) uint64 { return uint64(s.P90) })},
	{Path: "flatd.summary.p99", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds within which 99 % got it.",
		number: summary(func(s *Summary) uint64 { return uint64(s.P99) })},
	{Path: "flatd.summary.max", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds that the slowest answer took.",
		number: summary(func(s *Summary) uint64 { return uint64(s.Max) })},
	{Path: "flatd.summary.withheld", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Events that outputs left out on purpose, as the journal does beyond its budgets.",
		number: summary(func(s *Summary) uint64 { return s.Withheld })},
	{Path: "flatd.summary.dropped", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Events that outputs lost: the queue was full, or they were refused.",
		number: summary(func(s *Summary) uint64 { return s.Dropped })},
	{Path: "flatd.summary.result_out", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Exchanges that `results` left out.",
		number: summary(func(s *Summary) uint64 { return s.ResultOut })},
	{Path: "flatd.summary.too_fast", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Exchanges that `min_duration` left out.",
		number: summary(func(s *Summary) uint64 { return s.TooFast })},
	{Path: "flatd.summary.sampled_out", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Exchanges that `sample` left out.",
		number: summary(func(s *Summary) uint64 { return s.SampledOut })},
	{Path: "flatd.summary.ring_full", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Exchanges that are lost because the ring was full.",
		number: summary(func(s *Summary) uint64 { return s.RingFull })},
	{Path: "flatd.summary.half_open", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "TCP attempts from outside that came to nothing after this host's SYN/ACK, or without one: scans, forged SYNs, clients that went away.",
		number: summary(func(s *Summary) uint64 { return s.HalfOpen })},
	{Path: "flatd.summary.others", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Exchanges with destinations that came when the table of destinations was full. Their kind's summary has them.",
		number: summary(func(s *Summary) uint64 { return s.Others })},
}

// counts reports whether s is a summary that counts exchanges.
func (s *Summary) counts() bool { return s != nil && s.Scope != ScopeBooks }

// summary is a number of a summary whose zero goes without saying.
func summary(of func(*Summary) uint64) numberFunc {
	return positive(func(e *Event) uint64 {
		if e.Summary == nil {
			return 0
		}
		return of(e.Summary)
	})
}

// summaryText is text that every summary has that counts exchanges.
func summaryText(of func(*Event) string) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte {
		if !e.Summary.counts() {
			return dst
		}
		return append(dst, of(e)...)
	}
}

// summaryCount is a number of every summary that counts exchanges.
func summaryCount(of func(*Summary) uint64) numberFunc {
	return func(e *Event) (uint64, bool) {
		if !e.Summary.counts() {
			return 0, false
		}
		return of(e.Summary), true
	}
}
