package main

// How `flatctl events` shows events: as a table, a line each, or JSON.

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/flows"
)

// A form shows events one after the other.
type form interface {
	show(*source.Report) error
	// end shows what has been held back.
	end() error
}

// jsonForm has a line for each event, all that came of it.
type jsonForm struct{ to io.Writer }

func (f jsonForm) show(r *source.Report) error {
	_, err := f.to.Write(append(flows.AppendPrintable(nil, strings.TrimSpace(string(r.JSON))), '\n'))
	return err
}

func (f jsonForm) end() error { return nil }

// lineForm has a line for each event that stands by itself, as flatd's own
// standard output. Once there is more than one host, lines begin with theirs.
type lineForm struct {
	to       io.Writer
	terminal terminal
	hosts    hosts
}

func (f *lineForm) show(r *source.Report) error {
	line := f.terminal.text(string(r.Host.AppendLine(nil, &r.Event, f.terminal.color)))
	if f.hosts.several(r.Host.Name) {
		line = fmt.Sprintf("%-*s  %s", f.hosts.width, f.terminal.text(string(flows.AppendPrintable(nil, r.Host.Name))), line)
	}
	_, err := fmt.Fprintln(f.to, line)
	return err
}

func (f *lineForm) end() error { return nil }

// hosts notices when there is more than one.
type hosts struct {
	first string
	many  bool
	width int
}

func (h *hosts) several(name string) bool {
	h.width = max(h.width, utf8.RuneCountInString(name))
	if h.first == "" {
		h.first = name
	}
	h.many = h.many || name != h.first
	return h.many
}

// tableForm has a column for each thing asked for. Live, a column gets wider with
// what comes; else the rows wait for the end, or until there are too many, to be
// aligned.
type tableForm struct {
	to       io.Writer
	terminal terminal
	columns  []flows.Column
	live     bool
	chosen   bool // the columns are as asked for: none is added

	hosts  hosts
	widths []int
	held   []row
	headed bool
}

// row is one event: its cells, and the colour of its result.
type row struct {
	cells []string
	color string
}

// heldMax bounds the rows that wait.
const heldMax = 1024

const resultColumn = "result"

func (f *tableForm) show(r *source.Report) error {
	if f.hosts.several(r.Host.Name) && !f.chosen {
		f.addHost()
	}
	line := row{color: r.Event.Color()}
	for i := range f.columns {
		line.cells = append(line.cells, f.terminal.text(string(f.columns[i].Append(nil, &r.Host, &r.Event))))
	}
	if f.live || len(f.held) == heldMax {
		if err := f.end(); err != nil {
			return err
		}
		f.live = true
		f.widen(line)
		return f.print(line)
	}
	f.held = append(f.held, line)
	return nil
}

// addHost puts the host first, from now on and in the rows that wait, which are
// all of the one host before.
func (f *tableForm) addHost() {
	host, _ := flows.ColumnOf("host")
	f.columns = slices.Insert(f.columns, 0, host)
	f.chosen = true
	for i := range f.held {
		f.held[i].cells = slices.Insert(f.held[i].cells, 0, f.terminal.text(string(flows.AppendPrintable(nil, f.hosts.first))))
	}
	f.widths, f.headed = nil, false
}

func (f *tableForm) end() error {
	for _, line := range f.held {
		f.widen(line)
	}
	for _, line := range f.held {
		if err := f.print(line); err != nil {
			return err
		}
	}
	f.held = nil
	return nil
}

// widen makes room for a row. To begin with columns have room for their title
// and, live, for what they have as a rule.
func (f *tableForm) widen(line row) {
	if f.widths == nil {
		for _, c := range f.columns {
			width := len(c.Name)
			if f.live {
				width = max(width, c.Width)
			}
			f.widths = append(f.widths, width)
		}
	}
	for i, cell := range line.cells {
		f.widths[i] = max(f.widths[i], utf8.RuneCountInString(cell))
	}
}

func (f *tableForm) print(line row) error {
	var text strings.Builder
	if !f.headed {
		f.headed = true
		var titles row
		for _, c := range f.columns {
			titles.cells = append(titles.cells, strings.ToUpper(c.Name))
		}
		f.format(&text, titles)
	}
	f.format(&text, line)
	_, err := io.WriteString(f.to, text.String())
	return err
}

func (f *tableForm) format(to *strings.Builder, line row) {
	var text strings.Builder
	for i, cell := range line.cells {
		space := strings.Repeat(" ", max(f.widths[i]-utf8.RuneCountInString(cell), 0))
		if i > 0 {
			text.WriteString("  ")
		}
		if f.columns[i].Right {
			text.WriteString(space)
			space = ""
		}
		if f.columns[i].Name == resultColumn && f.terminal.color && line.color != "" {
			cell = line.color + cell + flows.ColorReset
		}
		text.WriteString(cell + space)
	}
	to.WriteString(strings.TrimRight(text.String(), " ") + "\n")
}
