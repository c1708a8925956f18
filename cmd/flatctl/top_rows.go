package main

// The rows of top, for the screen and for --once: columns, widths, sparklines.

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/flows"
)

// topColumn is a column of figures, flush right.
type topColumn struct {
	title string
	width int
	need  int // the lower, the longer it stays when there is little room
	cell  func(t terminal, r *board.Ranked) string
	red   bool // where it is not 0
}

var topColumns = []topColumn{
	{title: "KIND", width: len("icmp in"), need: 3, cell: func(_ terminal, r *board.Ranked) string { return kindOf(&r.Key) }},
	{title: "RATE", width: len("12.3k"), need: 0, cell: func(_ terminal, r *board.Ranked) string { return short(r.Rate) }},
	{title: "COUNT", width: len("999999"), need: 4, cell: func(_ terminal, r *board.Ranked) string { return whole(r.Count, 6) }},
	{title: "P50", width: durationCell, need: 5, cell: func(t terminal, r *board.Ranked) string { return t.percentile(r.P50) }},
	{title: "P99", width: durationCell, need: 1, cell: func(t terminal, r *board.Ranked) string { return t.percentile(r.P99) }},
	{title: "FAIL", width: len("99999"), need: 2, cell: func(_ terminal, r *board.Ranked) string { return whole(r.Failed(), 5) }, red: true},
	{title: "T/O", width: len("99999"), need: 6, cell: func(_ terminal, r *board.Ranked) string { return whole(r.Timeouts(), 5) }, red: true},
}

const durationCell = len("1.02 ms")

// kindOf is the kind, and "in" where this host was asked.
func kindOf(k *board.Key) string {
	switch {
	case k.Kind == 0:
		return ""
	case k.Side == flows.SideServer:
		return k.Kind.String() + " in"
	}
	return k.Kind.String()
}

// nameOfKey is what a row is of.
func nameOfKey(g board.Group, k *board.Key) string {
	switch {
	case g != board.ByDestination && k.Name == "":
		return "(unknown)"
	case g != board.ByDestination:
		return string(flows.AppendPrintable(nil, k.Name))
	case k.End.Port() == 0:
		return k.End.Addr().String()
	}
	return k.End.String()
}

// whole is a number as it is, if there is room for so many digits.
func whole(n uint64, digits int) string {
	if text := strconv.FormatUint(n, 10); len(text) <= digits {
		return text
	}
	return short(float64(n))
}

func (t terminal) percentile(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return t.duration(d)
}

// topLayout is which columns there are room for, and how wide the others are.
type topLayout struct {
	columns     []topColumn
	name, spark int
}

const (
	markWidth  = 1
	nameLeast  = 15
	sparkLeast = 8
)

// layOut divides the width. The name gets what the longest one wants, at the cost
// of columns only up to nameLeast.
func layOut(width, longest int) topLayout {
	l := topLayout{columns: slices.Clone(topColumns)}
	rest := func() int {
		rest := width - markWidth
		for _, c := range l.columns {
			rest -= 1 + c.width
		}
		return rest
	}
	for rest() < min(longest, nameLeast) && len(l.columns) > 1 {
		last := slices.MaxFunc(l.columns, func(a, b topColumn) int { return a.need - b.need })
		l.columns = slices.DeleteFunc(l.columns, func(c topColumn) bool { return c.need == last.need })
	}
	l.name = max(min(longest, rest()), 1)
	if spark := rest() - l.name - 1; spark >= sparkLeast {
		l.spark = min(spark, board.Slots)
	}
	return l
}

// titles is the line above the rows.
func (l *topLayout) titles(g board.Group) string {
	var text strings.Builder
	text.WriteString(" " + fit(strings.ToUpper(g.String()), l.name))
	for _, c := range l.columns {
		fmt.Fprintf(&text, " %*s", c.width, c.title)
	}
	return text.String()
}

// fit makes text so wide, and no wider.
func fit(text string, width int) string {
	text = ansi.Truncate(text, width, "~")
	return text + strings.Repeat(" ", max(width-ansi.StringWidth(text), 0))
}

func (t terminal) row(l *topLayout, mark, name string, r *board.Ranked) string {
	var text strings.Builder
	text.WriteString(mark + fit(t.text(name), l.name))
	for _, c := range l.columns {
		cell := fmt.Sprintf("%*s", c.width, c.cell(t, r))
		if c.red && t.color && !strings.HasSuffix(cell, " 0") {
			cell = colorBad + cell + flows.ColorReset
		}
		text.WriteString(" " + cell)
	}
	if l.spark > 0 {
		text.WriteString(" " + t.sparkline(r.Slots[:], l.spark))
	}
	return text.String()
}

const (
	sparkUTF8  = " ▁▂▃▄▅▆▇█"
	sparkASCII = " .:-=+*#@"
)

// sparkline draws counts in so many characters, relative to the greatest.
func (t terminal) sparkline(counts []uint32, width int) string {
	levels := []rune(sparkASCII)
	if t.utf8 {
		levels = []rune(sparkUTF8)
	}
	sums := make([]uint64, width)
	for i, n := range counts {
		sums[i*width/len(counts)] += uint64(n)
	}
	most := max(slices.Max(sums), 1)
	line := make([]rune, width)
	for i, n := range sums {
		level := n * uint64(len(levels)-1) / most
		if n > 0 {
			level = max(level, 1)
		}
		line[i] = levels[level]
	}
	return string(line)
}

const othersName = "(others)"

// plainTable is the table for a script or a file: no sparkline, names whole.
func (t terminal) plainTable(s *board.Snapshot, limit int) string {
	longest := len("destination")
	shown := s.Rows
	if limit > 0 {
		shown = shown[:min(limit, len(shown))]
	}
	for _, r := range shown {
		longest = max(longest, ansi.StringWidth(nameOfKey(s.Group, &r.Key)))
	}
	l := topLayout{columns: topColumns, name: longest}
	lines := []string{l.titles(s.Group)}
	for _, r := range shown {
		lines = append(lines, t.row(&l, " ", nameOfKey(s.Group, &r.Key), r))
	}
	if s.Others.Count > 0 {
		lines = append(lines, t.row(&l, " ", othersName, &s.Others))
	}
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i][markWidth:], " ") + "\n"
	}
	return strings.Join(lines, "")
}
