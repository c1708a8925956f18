package flows

import (
	"slices"
	"strconv"
	"time"
)

// Column is one that a table of events can have.
type Column struct {
	Name  string
	Width int  // in characters, of what it has as a rule
	Right bool // flush right

	append func(dst []byte, h *Host, e *Event) []byte
}

// Append appends what the column says of an event: printable text, nothing if it
// is unknown.
func (c *Column) Append(dst []byte, h *Host, e *Event) []byte { return c.append(dst, h, e) }

// Columns returns those for people. Any field is one, too: see ColumnOf.
func Columns() []Column { return slices.Clone(columns) }

// DefaultColumns are the names of those that a table has unless others are asked
// for.
func DefaultColumns() []string {
	return []string{"time", "kind", "result", "duration", "source", "destination", "interface", "about"}
}

// ColumnOf returns the column of a name, or one of the values of the field that
// has this path, such as flatd.rtt, as they are.
func ColumnOf(name string) (Column, bool) {
	for _, c := range columns {
		if c.Name == name {
			return c, true
		}
	}
	for _, f := range fields {
		if f.Path == name {
			return fieldColumn(f), true
		}
	}
	return Column{}, false
}

func fieldColumn(f Field) Column {
	return Column{Name: f.Path, Width: len(f.Path), Right: f.Type == TypeLong,
		append: func(dst []byte, h *Host, e *Event) []byte {
			if f.list == nil {
				return appendPrintable(dst, string(f.value(nil, h, e)))
			}
			for i, word := range f.list(e) {
				if i > 0 {
					dst = append(dst, ',')
				}
				dst = append(dst, word...)
			}
			return dst
		}}
}

const endWidth = len("255.255.255.255:65535")

var columns = []Column{
	{Name: "time", Width: len("15:04:05.000"), append: local("15:04:05.000")},
	{Name: "date", Width: len("2006-01-02 15:04:05.000"), append: local("2006-01-02 15:04:05.000")},
	{Name: "host", Width: 8, append: func(dst []byte, h *Host, _ *Event) []byte { return appendPrintable(dst, h.Name) }},
	{Name: "kind", Width: len("quic"), append: word((*Event).label)},
	{Name: "side", Width: len("client"), append: exchange(func(e *Event) string { return e.Side.String() })},
	{Name: "result", Width: resultWidth, append: word((*Event).shownResult)},
	{Name: "duration", Width: len("duration"), Right: true, append: interval((*Event).shown)},
	{Name: "rtt", Width: durationWidth, Right: true, append: interval(func(e *Event) time.Duration { return e.RTT })},
	{Name: "source", Width: endWidth, append: func(dst []byte, _ *Host, e *Event) []byte {
		if !e.Source.IsValid() {
			return dst
		}
		return appendEnd(dst, e.Source, e.Kind)
	}},
	{Name: "destination", Width: endWidth, append: func(dst []byte, _ *Host, e *Event) []byte {
		if !e.Destination.IsValid() {
			return dst
		}
		return appendEnd(dst, e.Destination, e.exchangeKind())
	}},
	{Name: "interface", Width: len("interface"), append: word(func(e *Event) string { return e.Interface.Name })},
	{Name: "unit", Width: len("nginx.service"), append: word(func(e *Event) string { return e.Owner.Service() })},
	{Name: "process", Width: 15, append: func(dst []byte, _ *Host, e *Event) []byte {
		return appendPrintable(dst, string(e.Process.AppendName(nil)))
	}},
	{Name: "question", Width: 20, append: func(dst []byte, _ *Host, e *Event) []byte {
		if !e.DNS.HasQuestion() {
			return dst
		}
		return e.appendQuestion(dst)
	}},
	{Name: "retransmits", Width: len("retransmits"), Right: true, append: func(dst []byte, _ *Host, e *Event) []byte {
		if !e.Exchange() {
			return dst
		}
		return strconv.AppendUint(dst, uint64(e.Retransmits), 10)
	}},
	{Name: "about", append: func(dst []byte, _ *Host, e *Event) []byte { return e.appendAbout(dst) }},
}

func local(layout string) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte { return e.Time.Local().AppendFormat(dst, layout) }
}

// word is text that may come from elsewhere.
func word(of func(*Event) string) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte { return appendPrintable(dst, of(e)) }
}

func interval(of func(*Event) time.Duration) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte {
		if d := of(e); d > 0 {
			return AppendDuration(dst, d)
		}
		return dst
	}
}

// appendAbout appends what the other columns do not say: of flatd's own events
// the sentence.
func (e *Event) appendAbout(dst []byte) []byte {
	if !e.Exchange() {
		return AppendText(dst, e)
	}
	start := len(dst)
	if e.DNS.HasQuestion() {
		dst = e.appendQuestion(append(dst, ' '))
	}
	if e.Result == ResultUnreachable {
		dst = append(append(dst, ' '), e.icmpErrorName()...)
	}
	dst = e.appendNotes(dst, e.Late)
	if len(dst) > start {
		dst = slices.Delete(dst, start, start+1) // the space before the first of them
	}
	return dst
}

// AppendDuration appends a duration rounded to three significant digits in its
// natural unit: 1.23 ms, 81 µs.
func AppendDuration(dst []byte, d time.Duration) []byte { return appendDuration(dst, d, " ") }

// AppendPrintable appends text as one line of printable characters: whatever is
// not printable as \u and hex digits, so that JSON on one line stays what it is.
func AppendPrintable(dst []byte, text string) []byte { return appendPrintable(dst, text) }

// ColorReset ends a Color.
const ColorReset = colorReset

// Color begins, on a terminal, the color of the event's result: green, yellow or
// red, as its priority.
func (e *Event) Color() string { return priorityColor(e.Priority()) }
