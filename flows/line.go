package flows

import (
	"time"
	"unicode/utf8"
)

// Columns of AppendLine, in characters. The widest IPv4 endpoints fit; IPv6
// ones may push the interface out of its column.
const (
	kindWidth     = len("status")
	resultWidth   = len("established")
	durationWidth = len("1.23 ms")
	endsWidth     = len("255.255.255.255:65535 -> 255.255.255.255:65535")
)

// SGR sequences (ECMA-48, 8.3.117).
const (
	colorReset  = "\x1b[0m"
	colorRed    = "\x1b[31m"
	colorYellow = "\x1b[33m"
	colorGreen  = "\x1b[32m"
)

// AppendLine appends the event for people at a terminal, in columns and without
// a newline: local time, kind, result, duration, endpoints, interface, and what
// else there is to say. With color the result is green, yellow or red, as its
// priority. There are no other control characters. Within the capacity of dst
// it allocates nothing.
func (h *Host) AppendLine(dst []byte, e *Event, color bool) []byte {
	dst = e.Time.Local().AppendFormat(dst, "15:04:05.000")
	dst = appendColumn(dst, e.label(), kindWidth)
	dst = e.appendResultColumn(dst, color)
	dst = e.appendDurationColumn(dst)
	if !e.Exchange() {
		return AppendText(append(dst, "  "...), e)
	}

	start := len(dst)
	dst = e.appendEndpoints(append(dst, "  "...))
	if e.Interface.Name != "" {
		dst = pad(dst, start, endsWidth+2)
		dst = appendPrintable(append(dst, "  "...), e.Interface.Name)
	}
	if e.DNS.HasQuestion() {
		dst = e.appendQuestion(append(dst, "  "...))
	}
	return e.appendNotes(dst, e.Late)
}

func (e *Event) appendResultColumn(dst []byte, color bool) []byte {
	result := e.shownResult()
	if !color {
		return appendColumn(dst, result, resultWidth)
	}
	dst = append(dst, priorityColor(e.Priority())...)
	dst = appendColumn(dst, result, resultWidth)
	return append(dst, colorReset...)
}

// shownResult stands where an exchange has its result.
func (e *Event) shownResult() string {
	switch e.Kind {
	case KindStatus:
		return e.action()
	case KindSummary:
		return e.Kind.String()
	}
	return e.ResultName()
}

func priorityColor(priority int) string {
	switch priority {
	case PriorityWarning:
		return colorRed
	case PriorityNotice:
		return colorYellow
	}
	return colorGreen
}

// appendDurationColumn appends the duration, of a timeout the limit, flush right.
func (e *Event) appendDurationColumn(dst []byte) []byte {
	var space [32]byte
	d, digits := e.shown(), space[:0]
	if d > 0 {
		digits = appendDuration(digits, d, " ")
	}
	start := len(dst)
	dst = pad(dst, start, 2+durationWidth-utf8.RuneCount(digits))
	return append(dst, digits...)
}

func (e *Event) shown() time.Duration {
	if e.Result == ResultTimeout {
		return e.Limit
	}
	return e.Duration
}

// appendColumn appends two spaces and s, flush left.
func appendColumn(dst []byte, s string, width int) []byte {
	dst = append(dst, "  "...)
	start := len(dst)
	return pad(append(dst, s...), start, width)
}

// pad fills what stands in dst from start on up to width ASCII characters.
func pad(dst []byte, start, width int) []byte {
	for len(dst) < start+width {
		dst = append(dst, ' ')
	}
	return dst
}
