package main

// What feeds top: the events of a source, counted, and what the counts do not have.

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

// feed puts the events of a source on a board, and learns what they lack.
type feed struct {
	source source.Source
	fleet  source.Fleet
	window time.Duration

	mu       sync.Mutex // guards the rest
	board    *board.Board
	known    feedStatus
	filtered bool
	first    map[string]api.Books // of each host, when it was first asked
	away     time.Time            // when the source last said something; zero: it is at work
	stop     context.CancelFunc
	stopped  chan struct{}
}

// feedStatus is what to know beside the counts.
type feedStatus struct {
	notes []note // the latest, oldest first
	// Events that flatd says are lost, and its words for the latest of them.
	lost uint64
	why  string
	// What the kernel counted since the feed began, and no event reports: left out
	// on purpose, and because there was no room.
	leftOut, full uint64
	hosts         []source.HostStatus
	unanswered    bool // no host answered
}

// note is something that happened to the source.
type note struct {
	at   time.Time
	text string
}

// notesMax is how many are kept.
const notesMax = 3

// say takes what the source reports beside the events: that flatd has gone.
func (f *feed) say(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = time.Now()
	f.noteLocked(fmt.Sprintf(format, args...))
}

func (f *feed) noteLocked(text string) {
	f.known.notes = append(f.known.notes, note{time.Now(), string(flows.AppendPrintable(nil, text))})
	f.known.notes = f.known.notes[max(len(f.known.notes)-notesMax, 0):]
}

// live is called when everything new comes from now on.
func (f *feed) live() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.board == nil {
		f.board = board.New(f.window, time.Now())
	}
	if f.away.IsZero() {
		return
	}
	f.noteLocked(fmt.Sprintf("back, and going on, after %v", time.Since(f.away).Round(time.Second)))
	f.away = time.Time{}
}

// follow begins to count the events that meet the conditions, and nothing from
// before. It returns when it does, or why it cannot; failed is called if it ends
// later, but not for end.
func (f *feed) follow(ctx context.Context, conditions url.Values, failed func(error)) error {
	f.end()
	ctx, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	f.mu.Lock()
	f.board, f.known, f.first, f.away = nil, feedStatus{}, make(map[string]api.Books), time.Time{}
	f.filtered, f.stop, f.stopped = len(conditions) > 0, stop, stopped
	f.mu.Unlock()
	ended, err := source.Follow(ctx, f.source, source.Request{Conditions: conditions, Live: f.live}, f.take)
	go func() {
		defer close(stopped)
		if why := <-ended; err == nil && ctx.Err() == nil {
			failed(why)
		}
	}()
	return err
}

// end ends what follow has begun.
func (f *feed) end() {
	f.mu.Lock()
	stop, stopped := f.stop, f.stopped
	f.mu.Unlock()
	if stop != nil {
		stop()
		<-stopped
	}
}

func (f *feed) take(one *source.Report) error {
	f.board.Add(time.Now(), &one.Host, &one.Event)
	if s := one.Event.Status; s != nil && s.Action == flows.ActionLoss {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.known.lost += s.Lost
		f.known.why = string(flows.AppendPrintable(nil, s.Message))
	}
	return nil
}

// ask asks the hosts how they are, and so learns what no event reports.
func (f *feed) ask(ctx context.Context) error {
	hosts, err := f.fleet.Statuses(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known.unanswered = err != nil || len(hosts) == 0; f.known.unanswered {
		return err
	}
	f.known.hosts, f.known.leftOut, f.known.full = hosts, 0, 0
	for i := range hosts {
		now := &hosts[i].Status.Books
		first, known := f.first[hosts[i].Host]
		switch {
		case hosts[i].Err != nil:
			continue
		case !known || now.Requests < first.Requests: // or the pins are new
			f.first[hosts[i].Host] = *now
			continue
		}
		f.known.leftOut += now.ResultOut + now.TooFast + now.SampledOut - first.ResultOut - first.TooFast - first.SampledOut
		f.known.full += now.RingFull + now.PendingFull - first.RingFull - first.PendingFull
	}
	if !f.filtered {
		f.known.full = 0 // there are events of it
	}
	return nil
}

// read takes a snapshot of what has been counted.
func (f *feed) read(s *board.Snapshot, g board.Group) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.board != nil {
		f.board.Read(s, g, time.Now())
	}
}

// status returns what is known beside the counts.
func (f *feed) status() feedStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.known
	s.notes = slices.Clone(s.notes)
	return s
}

// lacks says, a line each, what the counts do not have.
func (f *feedStatus) lacks(s *board.Snapshot) (lines []string) {
	if f.lost > 0 {
		lines = append(lines, fmt.Sprintf("lost %d events; the latest: %s", f.lost, f.why))
	}
	if f.full > 0 {
		lines = append(lines, fmt.Sprintf("lost %d exchanges in the kernel, for want of room: see flatctl status", f.full))
	}
	if f.leftOut > 0 {
		lines = append(lines, fmt.Sprintf("not in here: %d exchanges that the configuration leaves out (sample, results, min_duration)", f.leftOut))
	}
	if f.unanswered {
		lines = append(lines, "no flatd answers how it is, so what is left out is not known")
	}
	if s.Others.Count > 0 {
		lines = append(lines, fmt.Sprintf("%d exchanges with others than the %d destinations that are told apart", s.Others.Count, board.RowsMax))
	}
	if s.Cut {
		lines = append(lines, fmt.Sprintf("only the last %v: there are too many for %v", s.Covered.Round(time.Second), s.Window))
	}
	return lines
}
