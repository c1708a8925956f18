package pipeline

import (
	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/outputs"
)

// inFlight holds the published events that at least one output has not disposed
// of yet. For each of them the kernel's half keeps what the event is about: the
// record stays in the ring, the loss stays unreported. If flatd is killed, the next
// daemon publishes the event again.
//
// There is one mark for each thing that events are about. The mark only grows; what
// is below it need not be kept. marks returns what is pinned (bpf.Marks).
type inFlight struct {
	things [thingsMax]eventList
	queued eventList // records that the ring has let go: only the queues hold them
	// lost counts the events that at least one output will never get: a full queue
	// dropped them, or an earlier daemon ended with them. The reports of these
	// events are the thing lostEvents.
	lost   uint64
	ending bool // from now on what a queue drops stays in flight, for the next daemon
}

// thing is what an event is about.
type thing int

const (
	ringRecords thing = iota // records of the ring
	ringFull                 // exchanges that found the ring full
	tableFull                // requests that found no room in the tables
	lostEvents               // events that at least one output will never get

	// The same of the previous state, whose programs have another layout.
	previousRecords
	previousFull
	previousLost
	previousTimeouts

	thingsMax
)

// mark says how far a thing has come.
type mark struct {
	number   uint64 // how many records, losses or timeouts
	position uint64 // ring records only: where the last one ends in the ring
}

// eventList is a queue of events about one thing, oldest first.
type eventList struct {
	events    []inFlightEvent
	first     int  // index of the oldest event
	published mark // the thing's mark once every output has all of these events
	swept     int  // length after the last complete search for disposed events
}

type inFlightEvent struct {
	item   *outputs.Item
	before mark // the thing's mark until this event is disposed of
}

// sweepMin is how far a list grows before it is searched for disposed events that
// are not at its front.
const sweepMin = 1024

// resume continues from the marks of an earlier daemon.
func (f *inFlight) resume(m bpf.Marks) {
	f.pass(ringRecords, mark{m.Records, m.Position})
	f.pass(ringFull, mark{number: m.RingFull})
	f.pass(tableFull, mark{number: m.TableFull})
	f.lost = m.Unreported
}

// add puts an event in flight. It must be called before the event is published.
// Once the event and all before it are disposed of, the thing's mark is to.
func (f *inFlight) add(t thing, item *outputs.Item, to mark) {
	item.Hold()
	f.things[t].push(inFlightEvent{item, f.things[t].published})
	f.pass(t, to)
}

// pass moves a thing's mark without an event: there is none to wait for but those
// already in flight.
func (f *inFlight) pass(t thing, to mark) { f.things[t].published = to }

// published is the mark that the thing reaches once all of its events are disposed of.
func (f *inFlight) published(t thing) mark { return f.things[t].published }

// unreported is how many losses of the kernel's count are in no report yet.
func (f *inFlight) unreported(t thing, count uint64) uint64 {
	if f.published(t).number > count { // the counters were made anew
		f.pass(t, mark{number: count})
	}
	return count - f.published(t).number
}

// mark is how far every output has come with the thing.
func (f *inFlight) mark(t thing) mark { return f.things[t].mark() }

// settle removes the events that every output has disposed of.
func (f *inFlight) settle() {
	for t := range f.things {
		f.settleList(&f.things[t])
	}
	f.settleList(&f.queued)
}

func (f *inFlight) settleList(l *eventList) {
	for l.len() > 0 && f.remove(l.events[l.first]) {
		l.pop()
	}
	// While a write hangs its events stay in front, and a full queue drops the
	// events behind them. Without this search the list would grow for ever.
	if l.swept = min(l.swept, l.len()); l.len() > 2*l.swept+sweepMin {
		l.keep(func(e inFlightEvent) bool { return !f.remove(e) })
		l.swept = l.len()
	}
}

// remove releases the event if every output has disposed of it, and reports
// whether it has done so.
func (f *inFlight) remove(e inFlightEvent) bool {
	if !e.item.Disposed() {
		return false
	}
	if e.item.Lost() {
		if f.ending {
			return false
		}
		f.lost += e.item.Losses()
	}
	e.item.Release()
	return true
}

// letGo limits what the ring holds back for the outputs to most bytes. Only the
// queues hold the older records from then on.
func (f *inFlight) letGo(most uint64) {
	ring := &f.things[ringRecords]
	for ring.len() > 0 && ring.published.position-ring.mark().position > most {
		if e := ring.pop(); !f.remove(e) {
			f.queued.push(e)
		}
	}
	f.settleList(ring)
}

// atRisk is how many events are lost if flatd ends now.
func (f *inFlight) atRisk() int { return f.queued.len() }

// marks returns what the next daemon has to know if flatd ends now.
func (f *inFlight) marks() bpf.Marks {
	ring := f.mark(ringRecords)
	return bpf.Marks{
		Records: ring.number, Position: ring.position,
		Unreported: uint64(f.atRisk()) + f.lost - f.mark(lostEvents).number,
		RingFull:   f.mark(ringFull).number, TableFull: f.mark(tableFull).number,
	}
}

// any reports whether an event about one of these things is in flight.
func (f *inFlight) any(things ...thing) bool {
	for _, t := range things {
		if f.things[t].len() > 0 {
			return true
		}
	}
	return false
}

// empty reports whether no event is in flight.
func (f *inFlight) empty() bool {
	for t := range f.things {
		if f.any(thing(t)) {
			return false
		}
	}
	return f.queued.len() == 0
}

func (l *eventList) len() int { return len(l.events) - l.first }

func (l *eventList) mark() mark {
	if l.len() == 0 {
		return l.published
	}
	return l.events[l.first].before
}

func (l *eventList) push(e inFlightEvent) {
	if l.first > len(l.events)/2 {
		l.keep(func(inFlightEvent) bool { return true })
	}
	l.events = append(l.events, e)
}

func (l *eventList) pop() (e inFlightEvent) {
	e, l.events[l.first] = l.events[l.first], inFlightEvent{}
	l.first++
	return e
}

// keep removes the events that are not wanted, and moves the others to the
// beginning of the memory.
func (l *eventList) keep(wanted func(inFlightEvent) bool) {
	kept := l.events[:0]
	for _, e := range l.events[l.first:] {
		if wanted(e) {
			kept = append(kept, e)
		}
	}
	clear(l.events[len(kept):])
	l.events, l.first = kept, 0
}
