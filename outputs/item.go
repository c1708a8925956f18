package outputs

import (
	"sync"
	"sync/atomic"

	"github.com/flatd/flatd/flows"
)

// Item is an event on its way: one copy, shared by every output. It comes from
// a Pool, and nobody changes it once it is published.
type Item struct {
	Event flows.Event

	refs atomic.Int32
	lost atomic.Bool
	pool *Pool
}

// Hold adds a reference, which is the caller's. While the publisher has one he
// can ask what has become of the event.
func (i *Item) Hold() { i.retain(1) }

// Disposed reports whether every queue has disposed of the event, and the
// caller's reference is the only one.
func (i *Item) Disposed() bool { return i.refs.Load() == 1 }

// Lost reports whether a queue has dropped the event.
func (i *Item) Lost() bool { return i.lost.Load() }

// Losses is how many events are lost if this one is: a report of lost events
// stands for those.
func (i *Item) Losses() uint64 {
	if i.reportsLoss() {
		return i.Event.Status.Lost
	}
	return 1
}

func (i *Item) reportsLoss() bool { return i.Event.Status != nil && i.Event.Status.Lost > 0 }

// retain adds n references.
func (i *Item) retain(n int) { i.refs.Add(int32(n)) }

// Release gives up one reference. The last one returns the item to its pool:
// the caller must not touch it any more.
func (i *Item) Release() {
	if i.refs.Add(-1) > 0 {
		return
	}
	i.Event = flows.Event{}
	i.lost.Store(false)
	i.pool.items.Put(i)
}

// Pool recycles items, so that events make no garbage. The zero value is ready.
type Pool struct {
	items sync.Pool
}

// Get returns an empty item with one reference, which is the caller's.
func (p *Pool) Get() *Item {
	i, ok := p.items.Get().(*Item)
	if !ok {
		i = &Item{pool: p}
	}
	i.refs.Store(1)
	return i
}
