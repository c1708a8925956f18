package flows

import (
	"strconv"
	"time"
)

// appendSummary appends a summary as a sentence:
//
//	tcp client: 1,234 exchanges in 60s, 3 refused, 1 timed out; p50 1.2 ms, p90 2.1 ms, p99 9 ms, max 12 ms; 5 retransmits
func appendSummary(dst []byte, e *Event) []byte {
	switch {
	case e.Summary == nil:
		return dst
	case e.Summary.Scope == ScopeBooks:
		return e.Summary.appendBooks(dst)
	}
	s := e.Summary
	dst = append(dst, s.Kind.String()...)
	if s.Scope == ScopeDestination {
		dst = appendEnd(append(dst, " to "...), e.Destination, s.Kind)
	} else {
		dst = append(append(dst, ' '), e.Side.String()...)
	}
	dst = appendPlural(append(dst, ": "...), s.Count, " exchange")
	dst = appendDuration(append(dst, " in "...), s.Interval, "")
	dst = s.appendFailures(dst)
	dst = s.appendQuantiles(dst)
	if s.Retransmits > 0 {
		dst = appendPlural(append(dst, "; "...), s.Retransmits, " retransmit")
	}
	return dst
}

// summaryLabel stands where a line has the kind of an exchange.
func (e *Event) summaryLabel() string {
	if e.Summary.counts() {
		return e.Summary.Kind.String()
	}
	return "flatd"
}

func (s *Summary) appendFailures(dst []byte) []byte {
	dst = appendSome(dst, ", ", s.Refused, " refused")
	dst = appendSome(dst, ", ", s.Unreachable, " unreachable")
	dst = appendSome(dst, ", ", s.Timeouts, " timed out")
	dst = appendSome(dst, ", ", s.NXDomain, " nxdomain")
	dst = appendSome(dst, ", ", s.ServFail, " servfail")
	dst = appendSome(dst, ", ", s.OtherFailures, " failed otherwise")
	return appendSome(dst, ", ", s.Slow, " slow")
}

func (s *Summary) appendQuantiles(dst []byte) []byte {
	if s.Max <= 0 {
		return dst
	}
	quantiles := [...]struct {
		name  string
		value time.Duration
	}{{"; p50 ", s.P50}, {", p90 ", s.P90}, {", p99 ", s.P99}, {", max ", s.Max}}
	for _, q := range quantiles {
		dst = appendDuration(append(dst, q.name...), q.value, " ")
	}
	return dst
}

// appendBooks says what there are no events of.
func (s *Summary) appendBooks(dst []byte) []byte {
	dst = appendDuration(append(dst, "left out in "...), s.Interval, "")
	start := len(dst)
	dst = appendSome(dst, ", ", s.Withheld, " withheld by outputs")
	dst = appendSome(dst, ", ", s.Dropped, " lost by outputs")
	dst = appendSome(dst, ", ", s.ResultOut, " of results not asked for")
	dst = appendSome(dst, ", ", s.TooFast, " too fast to report")
	dst = appendSome(dst, ", ", s.SampledOut, " sampled out")
	dst = appendSome(dst, ", ", s.RingFull, " lost to a full ring")
	dst = appendSome(dst, ", ", s.HalfOpen, " attempts from outside half open")
	dst = appendSome(dst, ", ", s.Others, " to destinations beyond the table")
	if len(dst) > start {
		dst[start] = ':'
	}
	return dst
}

// appendSome appends how many there are, nothing if there are none.
func appendSome(dst []byte, separator string, n uint64, of string) []byte {
	if n == 0 {
		return dst
	}
	return append(appendGrouped(append(dst, separator...), n), of...)
}

func appendPlural(dst []byte, n uint64, of string) []byte {
	dst = append(appendGrouped(dst, n), of...)
	if n != 1 {
		dst = append(dst, 's')
	}
	return dst
}

// appendGrouped appends a number with a comma before every third digit from
// the end: 1,234,567.
func appendGrouped(dst []byte, n uint64) []byte {
	var space [20]byte
	digits := strconv.AppendUint(space[:0], n, 10)
	for i, digit := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, digit)
	}
	return dst
}
