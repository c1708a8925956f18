// Package outputs delivers events: to journald, to NATS, to standard output.
//
// Each output runs behind a bounded queue of its own (queue.go), so that one
// that is slow, stuck or gone holds up neither the others nor the reader.
package outputs

import (
	"context"

	"github.com/flatd/flatd/flows"
)

// Output delivers events to one place. Its methods are called from one
// goroutine, that of its queue.
type Output interface {
	// Name is short and stable: "journald", "nats", "stdout".
	Name() string

	// Write disposes of events in order, waiting as long as ctx allows, and
	// returns how many it delivered or withheld by its policy. When it stops
	// short, err says why and the queue offers the rest again after a
	// pause, so what Write counted must not come twice. It does not keep
	// the events.
	Write(ctx context.Context, events []*flows.Event) (Tally, error)

	// Close gives up what the output holds. Everything Write counted as
	// delivered has left flatd by then.
	Close() error
}

// Tally counts the events that a Write disposed of.
type Tally struct {
	Delivered int   // handed over: the receiver has them
	Withheld  int   // left out on purpose: budget, profile
	Failed    int   // can never be delivered: too large, refused
	Why       error // the latest of them failed; nil if none did
}

// Total is the number of events disposed of.
func (t Tally) Total() int { return t.Delivered + t.Withheld + t.Failed }

// add counts what comes after.
func (t *Tally) add(next Tally) {
	t.Delivered += next.Delivered
	t.Withheld += next.Withheld
	t.Failed += next.Failed
	if next.Why != nil {
		t.Why = next.Why
	}
}

// settle moves what another tally has into this one.
func (t *Tally) settle(from *Tally) {
	t.add(*from)
	*from = Tally{}
}
