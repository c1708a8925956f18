package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/flatd/flatd/flows"
)

type percentile struct {
	name    string
	percent float64
	color   string // SGR
}

// percentiles are those that are marked.
var percentiles = []percentile{
	{"p50", 50, "\x1b[32m"},
	{"p90", 90, "\x1b[33m"},
	{"p99", 99, "\x1b[31m"},
}

// rowsMax is how many rows a drawing has at most.
const rowsMax = 24

// drawing is a row for each range of durations. Ranges are of one to four of the
// histogram's buckets, or of whole octaves, so that each is longer than the one
// before by about the same factor.
type drawing struct {
	terminal terminal
	rows     []span
}

// span is the buckets from one to another, without that.
type span struct{ from, to int }

// newDrawing has the rows from the first to the last that any of the histograms
// has something in.
func newDrawing(t terminal, histograms ...*flows.Histogram) drawing {
	first, last := flows.HistogramBuckets, -1
	for _, h := range histograms {
		for i, n := range h.Buckets {
			if n > 0 {
				first, last = min(first, i), max(last, i)
			}
		}
	}
	step := 1
	for (last-first)/step >= rowsMax {
		step *= 2
	}
	d := drawing{terminal: t}
	for i := first; i <= last; {
		row := rowOf(i, step)
		d.rows = append(d.rows, row)
		i = row.to
	}
	return d
}

// within joins rows until there are no more than that.
func (d drawing) within(rows int) drawing {
	for len(d.rows) > max(rows, 1) {
		var joined []span
		for pair := range slices.Chunk(d.rows, 2) {
			joined = append(joined, span{pair[0].from, pair[len(pair)-1].to})
		}
		d.rows = joined
	}
	return d
}

// rowOf is the row that a bucket is in, if each has so many buckets. They begin
// with bucket 1, the first of an octave; bucket 0 has all that is below.
func rowOf(bucket, step int) span {
	if bucket == 0 {
		return span{0, 1}
	}
	from := (bucket-1)/step*step + 1
	return span{from, min(from+step, flows.HistogramBuckets)}
}

// count is how many a histogram has in a row.
func (s span) count(h *flows.Histogram) (n uint64) {
	for _, b := range h.Buckets[s.from:s.to] {
		n += b
	}
	return n
}

// marks are the names of the percentiles that are in a row.
func (s span) marks(t terminal, h *flows.Histogram) (text string, width int) {
	for _, p := range percentiles {
		if i := h.PercentileBucket(p.percent); i < s.from || i >= s.to {
			continue
		}
		mark := " " + p.name
		width += len(mark)
		if t.color {
			mark = p.color + mark + flows.ColorReset
		}
		text += mark
	}
	return text, width
}

const (
	labelWidth = len("1.02 ms")
	marksWidth = len(" p50 p90 p99")
)

// bar draws a share of width columns, to an eighth of one where there are the
// characters for that. What is not nothing can be seen.
func (t terminal) bar(share float64, width int) string {
	if share <= 0 {
		return strings.Repeat(" ", width)
	}
	if !t.utf8 {
		n := max(int(share*float64(width)+0.5), 1)
		return strings.Repeat("#", n) + strings.Repeat(" ", width-n)
	}
	eighths := max(int(share*float64(8*width)+0.5), 1)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return text + strings.Repeat(" ", width-utf8.RuneCountInString(text))
}

func (t terminal) axis() string {
	if t.utf8 {
		return "│"
	}
	return "|"
}

// label is the lower bound of a row.
func (t terminal) label(s span) string {
	lower, _ := flows.BucketBounds(s.from)
	text := "0"
	if lower > 0 {
		text = t.duration(lower)
	}
	return fmt.Sprintf("%*s", labelWidth, text)
}

// bound is a percentile as a bound of what the answer took.
func (t terminal) bound(h *flows.Histogram, percent float64) string {
	switch h.PercentileBucket(percent) {
	case -1:
		return "-"
	case flows.HistogramBuckets - 1:
		return ">= " + t.duration(h.Percentile(percent))
	}
	return "< " + t.duration(h.Percentile(percent))
}

func drawOne(to io.Writer, t terminal, m *measured) error {
	h := &m.histogram
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %d answers\n", t.title(m), m.Count)
	if m.Count > 0 {
		mean := m.Sum / time.Duration(m.Count)
		fmt.Fprintf(&text, "p50 %s   p90 %s   p99 %s   max %s   mean %s\n\n",
			t.bound(h, 50), t.bound(h, 90), t.bound(h, 99), t.bound(h, 100), t.duration(mean))
		newDrawing(t, h).one(&text, h)
	}
	_, err := io.WriteString(to, text.String())
	return err
}

// title says what the histogram is of.
func (t terminal) title(m *measured) string {
	title := t.text(string(flows.AppendPrintable(nil, m.Name)))
	if m.Source == sourceEvents {
		title += ", of events"
	}
	return title
}

func (d drawing) one(to *strings.Builder, h *flows.Histogram) {
	t := d.terminal
	var most uint64
	countWidth := len("answers")
	for _, row := range d.rows {
		n := row.count(h)
		most = max(most, n)
		countWidth = max(countWidth, len(fmt.Sprint(n)))
	}
	width := max(t.width-labelWidth-2-1-countWidth-marksWidth-1, 10)
	fmt.Fprintf(to, "%*s %s%*s\n", labelWidth, "from", t.axis(), width+1+countWidth, "answers")
	for _, row := range d.rows {
		n := row.count(h)
		marks, _ := row.marks(t, h)
		fmt.Fprintf(to, "%s %s%s %*d%s\n", t.label(row), t.axis(), t.bar(float64(n)/float64(most), width), countWidth, n, marks)
	}
}

func drawTwo(to io.Writer, t terminal, a, b *measured) error {
	var text strings.Builder
	fmt.Fprintf(&text, "A: %s\nB: %s\n\n", t.title(a), t.title(b))
	fmt.Fprintf(&text, "%7s  %12s  %12s  %8s\n", "", "A", "B", "B/A")
	fmt.Fprintf(&text, "%7s  %12d  %12d\n", "answers", a.Count, b.Count)
	for _, p := range append(percentiles, percentile{name: "max", percent: 100}) {
		fmt.Fprintf(&text, "%7s  %12s  %12s  %8s\n", p.name, t.bound(&a.histogram, p.percent), t.bound(&b.histogram, p.percent),
			ratio(a.histogram.Percentile(p.percent), b.histogram.Percentile(p.percent)))
	}
	if a.Count+b.Count > 0 {
		text.WriteByte('\n')
		newDrawing(t, &a.histogram, &b.histogram).two(&text, a, b)
	}
	_, err := io.WriteString(to, text.String())
	return err
}

func ratio(a, b time.Duration) string {
	if a == 0 || b == 0 {
		return "-"
	}
	return fmt.Sprintf("x %.2f", float64(b)/float64(a))
}

// two draws shares, not counts: there may be many more of the one.
func (d drawing) two(to *strings.Builder, a, b *measured) {
	t := d.terminal
	var most float64
	for _, row := range d.rows {
		most = max(most, row.share(a), row.share(b))
	}
	const shareWidth = len(" 100.0 %")
	width := max((t.width-labelWidth-1-2*(1+shareWidth+marksWidth))/2, 5)
	fmt.Fprintf(to, "%*s %s%-*s%s%s\n", labelWidth, "from", t.axis(), width+shareWidth+marksWidth, "A", t.axis(), "B")
	for _, row := range d.rows {
		fmt.Fprintf(to, "%s %s%s%s\n", t.label(row), t.axis(), d.panel(row, a, most, width, true), t.axis()+strings.TrimRight(d.panel(row, b, most, width, false), " "))
	}
}

func (s span) share(m *measured) float64 {
	if m.Count == 0 {
		return 0
	}
	return float64(s.count(&m.histogram)) / float64(m.Count)
}

// panel is the bar of one of two, its share, and its marks.
func (d drawing) panel(row span, m *measured, most float64, width int, fill bool) string {
	share := row.share(m)
	marks, marksLength := row.marks(d.terminal, &m.histogram)
	number := fmt.Sprintf(" %5.1f %%", 100*share)
	if share == 0 {
		number = strings.Repeat(" ", len(number))
	}
	if fill {
		marks += strings.Repeat(" ", marksWidth-marksLength)
	}
	return d.terminal.bar(share/most, width) + number + marks
}
