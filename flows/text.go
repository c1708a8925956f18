package flows

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// AppendText appends the event as a plain sentence, without a full stop:
//
//	tcp 192.0.2.10:43210 -> 198.51.100.20:443 established in 1.23 ms (nginx.service)
//
// It is one line of printable characters, whatever was on the wire. Within the
// capacity of dst it allocates nothing.
func AppendText(dst []byte, e *Event) []byte {
	switch e.Kind {
	case KindStatus:
		return appendStatus(dst, e)
	case KindSummary:
		return appendSummary(dst, e)
	}
	dst = append(dst, e.label()...)
	dst = e.appendEndpoints(append(dst, ' '))
	if e.DNS.HasQuestion() {
		dst = e.appendQuestion(append(dst, ' '))
	}
	dst = e.appendEnding(append(dst, ' '))
	return e.appendNotes(dst, false)
}

// label is how people call the kind of exchange.
func (e *Event) label() string {
	if e.Kind == KindSummary {
		return e.summaryLabel()
	}
	if e.QUIC {
		return "quic"
	}
	return e.Kind.String()
}

func appendStatus(dst []byte, e *Event) []byte {
	if e.Status == nil {
		return dst
	}
	return appendPrintable(dst, e.Status.Message)
}

func (e *Event) appendEndpoints(dst []byte) []byte {
	dst = appendEnd(dst, e.Source, e.Kind)
	dst = append(dst, " -> "...)
	return appendEnd(dst, e.Destination, e.Kind)
}

func appendEnd(dst []byte, end netip.AddrPort, kind Kind) []byte {
	if kind == KindICMP {
		return end.Addr().AppendTo(dst)
	}
	return end.AppendTo(dst)
}

func (e *Event) appendQuestion(dst []byte) []byte {
	dst = e.DNS.AppendType(dst)
	return e.DNS.AppendName(append(dst, ' '))
}

// appendEnding appends how the exchange ended.
func (e *Event) appendEnding(dst []byte) []byte {
	if e.Result == ResultTimeout {
		dst = append(dst, "timed out"...)
		if e.Limit > 0 {
			dst = appendDuration(append(dst, ": no answer within "...), e.Limit, "")
		}
		return dst
	}
	dst = append(dst, e.ResultName()...)
	if e.Result == ResultUnreachable {
		dst = append(append(append(dst, " ("...), e.icmpErrorName()...), ')')
	}
	if e.Duration > 0 {
		dst = appendDuration(append(dst, " in "...), e.Duration, " ")
	}
	if e.Late {
		dst = append(dst, ", after its timeout was reported"...)
	}
	return dst
}

// icmpErrorName says what an ICMP error means (RFC 792, RFC 4443).
func (e *Event) icmpErrorName() string {
	names := icmpv6Errors
	if e.Source.Addr().Is4() {
		names = icmpErrors
	}
	if name, ok := names[[2]uint8{e.ICMPType, e.ICMPCode}]; ok {
		return name
	}
	return "ICMP error"
}

// By type and code.
var (
	icmpErrors = map[[2]uint8]string{
		{3, 0}: "no route to the network", {3, 1}: "no route to the host", {3, 2}: "no such protocol",
		{3, 3}: "port closed", {3, 9}: "network prohibited", {3, 10}: "host prohibited",
		{3, 13}: "prohibited by a filter", {11, 0}: "time to live exceeded", {12, 0}: "bad header",
	}
	icmpv6Errors = map[[2]uint8]string{
		{1, 0}: "no route", {1, 1}: "prohibited by a filter", {1, 3}: "no route to the host",
		{1, 4}: "port closed", {1, 5}: "prohibited by a filter", {1, 6}: "route rejected",
		{3, 0}: "hop limit exceeded", {4, 0}: "bad header",
	}
)

// appendNotes appends in brackets what is out of the ordinary, then the unit.
// late says whether the notes have to say that the answer was.
func (e *Event) appendNotes(dst []byte, late bool) []byte {
	start := len(dst)
	if late {
		dst = append(beginNote(dst, start), "late"...)
	}
	if e.Retransmits > 0 {
		dst = strconv.AppendUint(beginNote(dst, start), uint64(e.Retransmits), 10)
		dst = append(dst, " retransmit"...)
		if e.Retransmits > 1 {
			dst = append(dst, 's')
		}
	}
	if e.DNS.Truncated {
		dst = append(beginNote(dst, start), "truncated"...)
	}
	if e.NATSource.IsValid() {
		dst = appendEnd(append(beginNote(dst, start), "source translated to "...), e.NATSource, e.Kind)
	}
	if e.NATDestination.IsValid() {
		dst = appendEnd(append(beginNote(dst, start), "destination translated to "...), e.NATDestination, e.Kind)
	}
	if e.Side == SideServer {
		dst = append(beginNote(dst, start), "server side"...)
	}
	if service := e.Owner.Service(); service != "" {
		dst = append(beginNote(dst, start), service...)
	}
	if len(dst) == start {
		return dst
	}
	return append(dst, ')')
}

// beginNote appends what stands before a note of those that begin at start.
func beginNote(dst []byte, start int) []byte {
	if len(dst) == start {
		return append(dst, " ("...)
	}
	return append(dst, ", "...)
}

// appendDuration appends a duration rounded to three significant digits in its
// natural unit, with space between the two: 1.23 ms, 81 µs.
func appendDuration(dst []byte, d time.Duration, space string) []byte {
	step := time.Duration(1)
	for d/step >= 1000 {
		step *= 10
	}
	d = d.Round(step)
	unit, name := durationUnit(d)
	dst = strconv.AppendInt(dst, int64(d/unit), 10)
	dst = appendThousandths(dst, int64(d%unit*1000/unit))
	return append(append(dst, space...), name...)
}

func durationUnit(d time.Duration) (time.Duration, string) {
	switch {
	case d >= time.Second:
		return time.Second, "s"
	case d >= time.Millisecond:
		return time.Millisecond, "ms"
	case d >= time.Microsecond:
		return time.Microsecond, "µs"
	}
	return time.Nanosecond, "ns"
}

// appendThousandths appends a fraction as .DDD without the zeros at its end.
func appendThousandths(dst []byte, n int64) []byte {
	if n <= 0 {
		return dst
	}
	dst = append(dst, '.', '0'+byte(n/100), '0'+byte(n/10%10), '0'+byte(n%10))
	for dst[len(dst)-1] == '0' {
		dst = dst[:len(dst)-1]
	}
	return dst
}

// appendPrintable appends s as one printable line: what is not printable as
// \u and hex digits, so that it can neither move a cursor nor forge a line.
func appendPrintable(dst []byte, s string) []byte {
	for _, r := range s {
		if printable(r) {
			dst = utf8.AppendRune(dst, r)
		} else {
			dst = appendUnicode(dst, r)
		}
	}
	return dst
}
