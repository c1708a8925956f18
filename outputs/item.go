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
	// Position is the publisher's number for an event that must not be
	// forgotten before every queue has disposed of it (Fanout.Held); 0 for one
	// that may. Items are published in the order of their positions.
	Position uint64

	refs atomic.Int32
	pool *Pool
}

// retain adds n references.
func (i *Item) retain(n int) { i.refs.Add(int32(n)) }

// Release gives up one reference. The last one returns the item to its pool:
// the caller must not touch it any more.
func (i *Item) Release() {
	if i.refs.Add(-1) > 0 {
		return
	}
	i.Event, i.Position = flows.Event{}, 0
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
