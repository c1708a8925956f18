package main

// How the screen of top is drawn: header, rows, the row looked into, help, footer.

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/flows"
)

// SGR sequences (ECMA-48, 8.3.117).
const (
	colorBad   = "\x1b[31m"
	colorTitle = "\x1b[7m"
)

// View implements tea.Model.
func (s *screen) View() tea.View {
	head := s.head()
	body := s.body(max(s.height-len(head)-1, 0))
	lines := append(head, body...)
	for len(lines) < s.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines[:max(s.height-1, 0)], s.foot())
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], s.terminal.width, "")
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	return v
}

// enough is how many lines a screen has that can spare some.
const enough = 14

// noteStays is how long a note is shown.
const noteStays = 5 * time.Minute

// head says how it is in all, and what the counts lack.
func (s *screen) head() []string {
	lines := []string{s.terminal.text(s.overall())}
	if s.height >= enough {
		lines = append(lines, s.terminal.text(s.mode()))
	}
	notes := slices.DeleteFunc(s.status.notes, func(n note) bool { return time.Since(n.at) > noteStays })
	if s.height < enough {
		notes = notes[max(len(notes)-1, 0):]
	}
	for _, n := range notes {
		lines = append(lines, s.warning(n.at.Format(time.TimeOnly)+" "+n.text))
	}
	for _, text := range s.status.lacks(&s.snapshot) {
		lines = append(lines, s.warning(text))
	}
	return lines
}

func (s *screen) warning(text string) string {
	text = s.terminal.text("! " + text)
	if s.terminal.color {
		return colorBad + text + flows.ColorReset
	}
	return text
}

// overall is one line for all hosts and all rows.
func (s *screen) overall() string {
	total := &s.snapshot.Total
	return fmt.Sprintf("%s  %s/s  %d in %v, %d failed  p50 %s  p99 %s",
		s.whom(), short(total.Rate), total.Count, s.snapshot.Covered.Round(time.Second), total.Failed(),
		s.terminal.percentile(total.P50), s.terminal.percentile(total.P99))
}

// whom says who is heard, and whether that can be believed.
func (s *screen) whom() string {
	var idle, silent []string
	for i := range s.status.hosts {
		switch h := &s.status.hosts[i]; {
		case h.Err != nil:
			silent = append(silent, h.Host)
		case !h.Status.Measuring:
			idle = append(idle, h.Host)
		}
	}
	var text string
	switch len(s.status.hosts) {
	case 0:
		text = "flatd"
	case 1:
		text = s.status.hosts[0].Host
	default:
		text = fmt.Sprintf("%d hosts", len(s.status.hosts))
	}
	if len(idle) > 0 {
		text += ", NOT MEASURING: " + strings.Join(idle, ", ")
	}
	if len(silent) > 0 {
		text += ", no answer: " + strings.Join(silent, ", ")
	}
	return string(flows.AppendPrintable(nil, text))
}

// mode says what is shown, and how.
func (s *screen) mode() string {
	text := fmt.Sprintf("by %s, sorted by %s", s.arranged.group, s.arranged.order)
	if len(s.given) > 0 {
		text += ", only " + string(flows.AppendPrintable(nil, conditionsText(s.given)))
	}
	if s.paused {
		text = "PAUSED  " + text
	}
	return text
}

// foot is the last line: what is typed, or which keys there are.
func (s *screen) foot() string {
	switch {
	case s.wrong != "":
		return s.warning(string(flows.AppendPrintable(nil, s.wrong)))
	case s.typing:
		prompt := "filter: " + string(flows.AppendPrintable(nil, s.typed)) + "_"
		return ansi.TruncateLeft(prompt, max(ansi.StringWidth(prompt)-s.terminal.width, 0), "")
	case s.page != pageRows:
		return "Esc back  p pause  q end"
	}
	return "? help  q end  s sort  g group  / filter  p pause  Enter look into"
}

func (s *screen) body(room int) []string {
	switch s.page {
	case pageHelp:
		return s.help(room)
	case pageRow:
		return s.detail(room)
	}
	return s.rows(room)
}

// rowsShown is how many rows there is room for.
func (s *screen) rowsShown() int { return max(s.height-len(s.head())-2, 1) }

// rows is the table, scrolled so that the chosen row is in it.
func (s *screen) rows(room int) []string {
	all := s.snapshot.Rows
	shown := max(room-1, 1)
	if s.snapshot.Others.Count > 0 {
		shown = max(shown-1, 1)
	}
	s.first = min(max(s.first, s.selected-shown+1), s.selected, max(len(all)-shown, 0))
	longest := len(s.arranged.group.String())
	for _, r := range all[s.first:min(s.first+shown, len(all))] {
		longest = max(longest, ansi.StringWidth(nameOfKey(s.arranged.group, &r.Key)))
	}
	l := layOut(s.terminal.width, longest)
	lines := []string{s.title(l.titles(s.arranged.group))}
	for i := s.first; i < min(s.first+shown, len(all)); i++ {
		mark := " "
		if i == s.selected {
			mark = ">"
		}
		lines = append(lines, s.terminal.row(&l, mark, nameOfKey(s.arranged.group, &all[i].Key), all[i]))
	}
	if len(all) == 0 {
		lines = append(lines, " nothing yet")
	}
	if s.snapshot.Others.Count > 0 {
		lines = append(lines, s.terminal.row(&l, " ", othersName, &s.snapshot.Others))
	}
	return lines
}

func (s *screen) title(text string) string {
	text = fit(text, s.terminal.width)
	if s.terminal.color {
		return colorTitle + text + flows.ColorReset
	}
	return text
}

func (s *screen) help(room int) []string {
	lines := []string{s.title(" KEYS")}
	for _, k := range topKeys {
		lines = append(lines, fmt.Sprintf(" %-14s  %s", k.keys, k.does))
	}
	lines = append(lines, "", " FAIL did not end well; T/O of these never got an answer", " \"in\": this host was asked")
	return lines[:min(len(lines), max(room, 0))]
}

// detail looks into the chosen row.
func (s *screen) detail(room int) []string {
	r := s.row()
	if r == nil || r.Key != s.chosen {
		return []string{s.title(""), "nothing in the window any more; Esc goes back"}
	}
	t := s.terminal
	name := strings.TrimSpace(kindOf(&r.Key) + " " + nameOfKey(s.arranged.group, &r.Key))
	lines := []string{s.title(t.text(name))}
	lines = append(lines, t.text(resultsText(&r.Counts)))
	failures := r.Failures()
	failures = failures[max(len(failures)-max(room/4, 1), 0):]
	lines = append(lines, s.histogram(&r.Histogram, room-len(lines)-len(failures)-1)...)
	if len(failures) > 0 {
		lines = append(lines, "latest failures:")
	}
	for _, f := range slices.Backward(failures) {
		lines = append(lines, t.text(string(f.Host.AppendLine(nil, &f.Event, t.color))))
	}
	return lines[:min(len(lines), max(room, 0))]
}

// resultsText is how many of each result, the most frequent first.
func resultsText(t *board.Counts) string {
	counts := t.ByResult()
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return int(int64(counts[b]) - int64(counts[a]))
	})
	words := []string{fmt.Sprintf("%d exchanges:", t.Count)}
	for _, name := range names {
		words = append(words, fmt.Sprintf("%d %s", counts[name], name))
	}
	return strings.Join(words, "  ")
}

// histogram draws one in at most so many lines.
func (s *screen) histogram(h *flows.Histogram, room int) []string {
	if h.Count() == 0 {
		return []string{"no answer"}
	}
	t := s.terminal
	text := &strings.Builder{}
	fmt.Fprintf(text, "p50 %s   p90 %s   p99 %s   max %s\n", t.bound(h, 50), t.bound(h, 90), t.bound(h, 99), t.bound(h, 100))
	newDrawing(t, h).within(room-2).one(text, h)
	lines := strings.Split(strings.TrimRight(text.String(), "\n"), "\n")
	return lines[:min(len(lines), max(room, 1))]
}
