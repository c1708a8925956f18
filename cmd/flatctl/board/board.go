// Package board counts the exchanges of the last minute or so by destination, unit,
// interface and host: the figures of `flatctl top`.
//
// The package opens nothing and reads no clock: callers pass events and the time.
package board

import (
	"sync"
	"time"

	"github.com/flatd/flatd/flows"
)

// What a Board holds at most: 24 MB of history, 1.3 kB for each row, and the
// failures, which are 3 kB for a row where there are as many.
const (
	// Slots is how many parts a window has.
	Slots = 60
	// RowsMax is how many rows a group has at most. What comes when there are as
	// many is counted together, as the others. A row is free again when the window
	// has nothing of it any more, and who is often seen soon gets one.
	RowsMax = 4096
	// historyMax is how many exchanges a window has at most. When there are more
	// it is cut, and says so.
	historyMax = 1 << 20
	// failuresMax is how many failures a row remembers.
	failuresMax = 5
)

// Board counts the exchanges of a window that ends now. Its methods may be called
// from several goroutines.
//
// It remembers each exchange in a few bytes and takes it back when the window has
// passed it, so every figure is exactly that of the window.
type Board struct {
	window, slot time.Duration
	began        time.Time

	mu      sync.Mutex // guards the rest
	byGroup [groups]rowSet
	total   Row
	history history
	inSlot  [Slots]int // exchanges in the history, by slot
	oldest  int64      // number of the first slot that is in the window
	current int64      // number of the last one
	from    time.Time  // the counts have all since then
	cut     bool
}

// New counts from now on.
func New(window time.Duration, now time.Time) *Board {
	b := &Board{window: window, slot: max(window/Slots, 1), began: now, from: now}
	for g := range b.byGroup {
		b.byGroup[g] = newRowSet()
	}
	return b
}

// Add counts an event, if it is an exchange.
func (b *Board) Add(now time.Time, host *flows.Host, e *flows.Event) {
	if !e.Exchange() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	if b.history.n == historyMax {
		b.cut = true
		b.forget(now)
	}
	one := exchange{result: resultOf(e), duration: e.Duration}
	var failure *Failure
	if e.Failed() {
		failure = &Failure{*host, *e}
	}
	slot := b.current % Slots
	for g := range b.byGroup {
		one.rows[g] = b.byGroup[g].at(Group(g).keyOf(host.Name, e))
		b.byGroup[g].rows[one.rows[g]].add(&one, slot, failure)
	}
	b.total.add(&one, slot, nil)
	b.history.push(one)
	b.inSlot[slot]++
}

// advance has the window end now.
func (b *Board) advance(now time.Time) {
	for last := int64(now.Sub(b.began) / b.slot); b.current < last; b.current++ {
		if b.current+1-b.oldest == Slots {
			b.cut = false
			b.forget(now)
		}
	}
}

// forget takes back the oldest slot.
func (b *Board) forget(now time.Time) {
	slot := b.oldest % Slots
	for ; b.inSlot[slot] > 0; b.inSlot[slot]-- {
		one := b.history.pop()
		for g := range b.byGroup {
			b.byGroup[g].remove(one.rows[g], &one, slot)
		}
		b.total.remove(&one, slot)
	}
	if b.oldest < b.current {
		b.oldest++
		b.from = b.began.Add(time.Duration(b.oldest) * b.slot)
	} else {
		b.from = now // within the only slot
	}
}
