package main

// The full screen of top: its state, and what changes it.

import (
	"context"
	"errors"
	"net/url"
	"os"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/cmd/flatctl/source"
)

// screen is the full screen of top. It belongs to the one goroutine of its
// program, but for failed.
type screen struct {
	terminal terminal
	height   int
	feed     *feed
	interval time.Duration
	arranged arrangement
	given    url.Values // the conditions in force
	ctx      context.Context
	failures chan error
	err      error // why it has ended

	snapshot board.Snapshot
	status   feedStatus
	paused   bool

	page     page
	chosen   board.Key // of the row that is marked; of none: the first
	selected int       // where that is
	first    int       // the row that is on top

	typing    bool // a filter
	typed     string
	filtering bool   // it is about to be in force
	wrong     string // with what was typed, or why it is not in force yet
}

// page is what the middle of the screen shows.
type page uint8

const (
	pageRows page = iota
	pageRow
	pageHelp
)

func newScreen(t terminal, f *feed, a arrangement, given url.Values, interval time.Duration) *screen {
	return &screen{terminal: t, height: 24, feed: f, arranged: a, given: given, interval: interval, failures: make(chan error, 1)}
}

// failed ends the screen with an error. It is for the feed.
func (s *screen) failed(err error) {
	select {
	case s.failures <- err:
	default: // one is enough
	}
}

// The messages that the screen gets.
type (
	tickMsg   time.Time
	askMsg    struct{} // it is time to ask again
	askedMsg  struct{} // that has been done
	endedMsg  struct{ err error }
	filterMsg struct {
		given url.Values
		err   error
	}
	againMsg struct{ given url.Values } // it is time to try again
)

// askEvery is how often hosts are asked how they are.
const askEvery = 5 * time.Second

// run shows the screen until its end.
func (s *screen) run(ctx context.Context, out *os.File) error {
	s.ctx = ctx
	profile := colorprofile.ASCII
	if s.terminal.color {
		profile = colorprofile.ANSI
	}
	// Signals are for ctx.
	program := tea.NewProgram(s, tea.WithContext(ctx), tea.WithOutput(out), tea.WithColorProfile(profile), tea.WithoutSignalHandler(), tea.WithFPS(30))
	_, err := program.Run()
	if ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		err = nil
	}
	return errors.Join(s.err, err)
}

// Init implements tea.Model.
func (s *screen) Init() tea.Cmd {
	s.refresh()
	return tea.Batch(s.tick(), s.ask(askedMsg{}), func() tea.Msg { return endedMsg{<-s.failures} })
}

func (s *screen) tick() tea.Cmd {
	return tea.Tick(s.interval, func(t time.Time) tea.Msg { return tickMsg(t) })
}

// ask asks the hosts and, when they have answered, sends a message. There is no
// answer while flatd is away; then what is known remains.
func (s *screen) ask(then tea.Msg) tea.Cmd {
	return func() tea.Msg {
		_ = s.feed.ask(s.ctx)
		return then
	}
}

// filter has the feed begin anew with other conditions.
func (s *screen) filter(given url.Values) tea.Cmd {
	s.filtering, s.paused = true, false
	s.snapshot = board.Snapshot{Group: s.arranged.group}
	return func() tea.Msg { return filterMsg{given, s.feed.follow(s.ctx, given, s.failed)} }
}

// Update implements tea.Model.
func (s *screen) Update(message tea.Msg) (tea.Model, tea.Cmd) {
	switch m := message.(type) {
	case tea.WindowSizeMsg:
		s.terminal.width, s.height = m.Width, m.Height
	case tea.KeyPressMsg:
		return s, s.press(m)
	case tea.PasteMsg:
		if s.typing {
			s.typed += m.Content
		}
	case tickMsg:
		s.refresh()
		return s, s.tick()
	case askMsg:
		return s, s.ask(askedMsg{})
	case askedMsg:
		return s, tea.Tick(askEvery, func(time.Time) tea.Msg { return askMsg{} })
	case filterMsg:
		return s, s.filtered(m)
	case againMsg:
		return s, s.filter(m.given)
	case endedMsg:
		s.err = m.err
		return s, tea.Quit
	}
	return s, nil
}

// filtered takes whether a filter is in force. While flatd is away it is not,
// and is tried again.
func (s *screen) filtered(m filterMsg) tea.Cmd {
	s.given, s.filtering, s.wrong = m.given, false, ""
	if m.err == nil {
		s.refresh()
		return s.ask(nil)
	}
	if _, refused := errors.AsType[source.Refusal](m.err); refused {
		s.err = m.err
		return tea.Quit
	}
	s.filtering, s.wrong = true, m.err.Error()
	return tea.Tick(source.RetryMax, func(time.Time) tea.Msg { return againMsg{m.given} })
}

// refresh takes what has been counted by now, unless the screen is paused.
func (s *screen) refresh() {
	s.status = s.feed.status()
	if !s.paused {
		s.feed.read(&s.snapshot, s.arranged.group)
	}
	s.sort()
}

// sort orders the rows, and finds the chosen one again.
func (s *screen) sort() {
	s.snapshot.Sort(s.arranged.order)
	at := slices.IndexFunc(s.snapshot.Rows, func(r *board.Ranked) bool { return r.Key == s.chosen })
	if at < 0 {
		at = min(s.selected, len(s.snapshot.Rows)-1)
	}
	s.selected = max(at, 0)
}

// row is the chosen one, nil if there is none.
func (s *screen) row() *board.Ranked {
	if s.selected < len(s.snapshot.Rows) {
		return s.snapshot.Rows[s.selected]
	}
	return nil
}
