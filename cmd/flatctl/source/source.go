// Package source is where a command of flatctl gets its data from: the control socket of
// one flatd, or a NATS server to which many publish.
package source

import (
	"context"
	"net/url"
	"sync"

	"github.com/flatd/flatd/flows"
)

// Source is flatd's control socket, see NewSocket, or a NATS server, see NewNATS.
type Source interface {
	// Events hands over the events that r asks for, one after the other, in the order
	// in which they were published, each once. It returns nil when there are no more or
	// ctx has ended, and an error of take.
	//
	// It fails if there is no flatd or server to begin with. When one goes away while it
	// is followed, Events says so once, waits for it, and continues.
	Events(ctx context.Context, r Request, take func(*Report) error) error

	// Fleet connects to the flatds that the events come from.
	Fleet() (Fleet, error)

	// Remote is true of a NATS server, which has no past events unless a stream keeps them.
	Remote() bool
}

// Say takes what a source reports beside the events: that flatd has gone away, that it
// does not remember as far back.
type Say func(format string, args ...any)

// Request says which events are wanted.
type Request struct {
	Conditions url.Values // of api.EventFilter; since is a time
	Limit      int        // past events, the newest; or Unlimited
	Follow     bool       // continue with new ones
	// Live, if not nil, is called when everything new from now on will be handed over, and
	// again after each time that flatd or the server was away.
	Live func()
}

// Unlimited is the Limit that has all past events.
const Unlimited = -1

// Report is one event. It is the source's again once take has returned.
type Report struct {
	Host  flows.Host
	Event flows.Event
	JSON  []byte // as it came; not to be shown as it is
}

// parse takes the JSON of an event.
func (r *Report) parse(text []byte) (err error) {
	r.JSON = text
	r.Host, err = flows.ParseJSON(text, &r.Event)
	return err
}

// Follow hands over new events from another goroutine. It returns when everything new from
// now on will be handed over, or the error for which it cannot be. Ended then gets what
// Events returns.
func Follow(ctx context.Context, s Source, r Request, take func(*Report) error) (ended <-chan error, err error) {
	live, done := make(chan struct{}), make(chan error, 1)
	began := sync.OnceFunc(func() { close(live) })
	callerLive := r.Live
	r.Follow, r.Live = true, func() {
		if callerLive != nil {
			callerLive()
		}
		began()
	}
	go func() { done <- s.Events(ctx, r, take) }()
	select {
	case <-live:
	case err = <-done:
		done <- err
	}
	return done, err
}

// UnlessEnded is err, or nil if ctx has ended: who interrupts a command needs no reason.
func UnlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// seen remembers so many ids, the latest.
type seen struct {
	ids  map[string]bool
	ring []string
	next int
}

func newSeen(room int) *seen {
	return &seen{ids: make(map[string]bool, room), ring: make([]string, room)}
}

// add reports whether the id is new.
func (s *seen) add(id string) bool {
	if s.ids[id] {
		return false
	}
	delete(s.ids, s.ring[s.next])
	s.ids[id], s.ring[s.next] = true, id
	s.next = (s.next + 1) % len(s.ring)
	return true
}
