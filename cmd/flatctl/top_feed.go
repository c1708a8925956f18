package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

// feed counts what a source tells, on a board, and keeps account of what it does
// not tell.
type feed struct {
	source source
	fleet  fleet
	window time.Duration

	mu       sync.Mutex // guards the rest
	board    *board.Board
	account  account
	filtered bool
	first    map[string]api.Books // of each host, when it was first asked
	away     time.Time            // when the source last said something; zero: it is at work
	stop     context.CancelFunc
	stopped  chan struct{}
}

// account is what stands beside the counts.
type account struct {
	notes []note // the latest, oldest first
	// Events that flatd says are lost, and its words for the latest of them.
	told uint64
	why  string
	// What the kernel counted since the view began, and no event tells of: left
	// out on purpose, and for want of room.
	leftOut, full uint64
	hosts         []hostStatus
	unanswered    bool // nobody was there to tell
}

// note is something that happened to the source.
type note struct {
	at   time.Time
	text string
}

// notesMax is how many are kept.
const notesMax = 3

// say takes what the source tells on the side: that flatd has gone.
func (f *feed) say(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = time.Now()
	f.noteLocked(fmt.Sprintf(format, args...))
}

func (f *feed) noteLocked(text string) {
	f.account.notes = append(f.account.notes, note{time.Now(), string(flows.AppendPrintable(nil, text))})
	f.account.notes = f.account.notes[max(len(f.account.notes)-notesMax, 0):]
}

// live is told that everything new comes from now on.
func (f *feed) live() {
	f.mu.Lock()
	defer f.mu.Unlock()
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
	live, stopped := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	f.mu.Lock()
	f.board, f.account, f.first, f.away = nil, account{}, make(map[string]api.Books), time.Time{}
	f.filtered, f.stop, f.stopped = len(conditions) > 0, stop, stopped
	f.mu.Unlock()
	began := sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.board = board.New(f.window, time.Now())
		close(live)
	})
	go func() {
		defer close(stopped)
		err := f.source.events(ctx, request{conditions: conditions, follow: true, live: func() { began(); f.live() }}, f.take)
		ended <- err
		select {
		case <-live:
			if ctx.Err() == nil {
				failed(err)
			}
		default:
		}
	}()
	select {
	case <-live:
		return nil
	case err := <-ended:
		return err
	}
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

func (f *feed) take(one *report) error {
	f.board.Add(time.Now(), &one.host, &one.event)
	if s := one.event.Status; s != nil && s.Action == flows.ActionLoss {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.account.told += s.Lost
		f.account.why = string(flows.AppendPrintable(nil, s.Message))
	}
	return nil
}

// ask asks the hosts how they are, and so learns what no event tells of.
func (f *feed) ask(ctx context.Context) error {
	hosts, err := f.fleet.statuses(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.account.unanswered = err != nil || len(hosts) == 0; f.account.unanswered {
		return err
	}
	f.account.hosts, f.account.leftOut, f.account.full = hosts, 0, 0
	for i := range hosts {
		now := &hosts[i].status.Books
		first, known := f.first[hosts[i].host]
		switch {
		case hosts[i].err != nil:
			continue
		case !known || now.Requests < first.Requests: // or the pins are new
			f.first[hosts[i].host] = *now
			continue
		}
		f.account.leftOut += now.ResultOut + now.TooFast + now.SampledOut - first.ResultOut - first.TooFast - first.SampledOut
		f.account.full += now.RingFull + now.PendingFull - first.RingFull - first.PendingFull
	}
	if !f.filtered {
		f.account.full = 0 // there are events of it
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

// beside returns what stands beside the counts.
func (f *feed) beside() account {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.account
	a.notes = slices.Clone(a.notes)
	return a
}
