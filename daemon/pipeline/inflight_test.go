package pipeline

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// away is an output that takes events only up to a number that the test sets.
type away struct {
	takes  chan int
	writes atomic.Int32
}

func (*away) Name() string { return "away" }
func (*away) Close() error { return nil }
func (a *away) Write(ctx context.Context, events []*flows.Event) (outputs.Tally, error) {
	a.writes.Add(1)
	select {
	case n := <-a.takes:
		return outputs.Tally{Delivered: min(n, len(events))}, errors.New("gone again")
	case <-ctx.Done():
		return outputs.Tally{}, ctx.Err()
	}
}

const recordBytes = 100 // each record in the ring

// rig has events in flight to an output that is away.
type rig struct {
	t        *testing.T
	inFlight inFlight
	out      *away
	fanout   *outputs.Fanout
	pool     outputs.Pool
	read     mark
}

// newRig continues from marks, with a queue for so many events.
func newRig(t *testing.T, m bpf.Marks, queue int) *rig {
	a := &rig{t: t, out: &away{takes: make(chan int)}, read: mark{m.Records, m.Position}}
	a.inFlight.resume(m)
	a.fanout = outputs.NewFanout(time.Second, outputs.NewQueue(a.out, queue, nil))
	t.Cleanup(a.end)
	return a
}

func (a *rig) end() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	_ = a.fanout.Drain(now)
}

func (a *rig) publish(about thing, to mark, e flows.Event) {
	item := a.pool.Get()
	item.Event = e
	a.inFlight.add(about, item, to)
	a.fanout.Publish(item)
}

func (a *rig) records(n int) {
	for range n {
		a.read = mark{a.read.number + 1, a.read.position + recordBytes}
		a.publish(ringRecords, a.read, flows.Event{Sequence: a.read.number})
	}
}

func (a *rig) report(about thing, to, lost uint64) {
	a.publish(about, mark{number: to}, flows.Event{Kind: flows.KindStatus, Status: &flows.Status{Action: flows.ActionLoss, Lost: lost}})
}

// hang publishes a record that is being written from then on.
func (a *rig) hang() {
	before := a.out.writes.Load()
	a.records(1)
	for a.out.writes.Load() == before {
		time.Sleep(time.Millisecond)
	}
}

// take has the output take n events.
func (a *rig) take(n int) {
	a.t.Helper()
	before := a.fanout.Stats()[0].Delivered
	for left := n; left > 0; {
		a.out.takes <- left
		for a.fanout.Stats()[0].Delivered == before {
			time.Sleep(time.Millisecond)
		}
		now := a.fanout.Stats()[0].Delivered
		left -= int(now - before)
		before = now
	}
}

// check commits, with room for so many records in the ring.
func (a *rig) check(what string, most int, want bpf.Marks, atRisk int) {
	a.t.Helper()
	a.inFlight.settle()
	a.inFlight.letGo(uint64(most) * recordBytes)
	want.Position = want.Records * recordBytes
	if got := a.inFlight.marks(); got != want || a.inFlight.atRisk() != atRisk {
		a.t.Errorf("%s: %+v and %d at risk, want %+v and %d", what, got, a.inFlight.atRisk(), want, atRisk)
	}
}

func TestTheOldestIsLetGo(t *testing.T) {
	a := newRig(t, bpf.Marks{}, 100)
	a.records(10)
	a.check("all have room", 10, bpf.Marks{}, 0)
	a.records(3)
	a.check("three have not", 10, bpf.Marks{Records: 3, Unreported: 3}, 3)
	a.check("nothing new", 10, bpf.Marks{Records: 3, Unreported: 3}, 3)
	a.take(2)
	a.check("two of them are delivered", 10, bpf.Marks{Records: 3, Unreported: 1}, 1)
	a.take(2)
	a.check("one of the ring, too", 10, bpf.Marks{Records: 4}, 0)
	a.records(1)
	a.inFlight.pass(ringRecords, mark{15, 15 * recordBytes}) // which could not be decoded
	a.check("behind those in flight", 10, bpf.Marks{Records: 5, Unreported: 1}, 1)
	if a.inFlight.empty() || !a.inFlight.any(ringFull, ringRecords) || a.inFlight.any(ringFull, previousTimeouts) {
		t.Error("what is in flight is not known")
	}
	a.take(10)
	a.check("all is delivered", 10, bpf.Marks{Records: 15}, 0)
	if !a.inFlight.empty() {
		t.Error("events are in flight, though all are delivered")
	}
}

func TestEachThingHasItsMark(t *testing.T) {
	before := bpf.Marks{Records: 7, Position: 700, Unreported: 5, RingFull: 20, TableFull: 30}
	a := newRig(t, before, 100)
	a.check("before all", 10, before, 0)
	a.report(lostEvents, 5, 5)
	a.records(1)
	a.report(ringFull, 21, 1)
	a.records(1)
	a.report(ringFull, 24, 3)
	a.report(tableFull, 31, 1)
	a.publish(previousTimeouts, mark{number: 4}, flows.Event{})
	a.check("nothing delivered", 10, before, 0)
	a.take(1)
	a.check("the loss before", 10, bpf.Marks{Records: 7, RingFull: 20, TableFull: 30}, 0)
	a.take(2)
	a.check("a record and a loss", 10, bpf.Marks{Records: 8, RingFull: 21, TableFull: 30}, 0)
	a.check("less room", 0, bpf.Marks{Records: 9, Unreported: 1, RingFull: 21, TableFull: 30}, 1)
	if n := a.inFlight.mark(previousTimeouts).number; n != 0 {
		t.Errorf("timeouts up to %d", n)
	}
	a.take(4)
	a.check("all", 0, bpf.Marks{Records: 9, RingFull: 24, TableFull: 31}, 0)
	if n := a.inFlight.mark(previousTimeouts).number; n != 4 {
		t.Errorf("timeouts up to %d", n)
	}
}

// The kernel's counters may be made anew, and the marks are older.
func TestCountersThatAreMadeAnew(t *testing.T) {
	var f inFlight
	f.resume(bpf.Marks{RingFull: 20})
	for _, step := range []struct{ count, want uint64 }{{25, 5}, {3, 0}, {7, 4}} {
		if got := f.unreported(ringFull, step.count); got != step.want {
			t.Errorf("%d of %d are unreported, want %d", got, step.count, step.want)
		}
	}
}

// What a queue drops is lost and has to be reported, and a lost report as well.
func TestWhatQueuesDropIsUnreported(t *testing.T) {
	a := newRig(t, bpf.Marks{}, 4)
	a.hang()
	a.records(15)
	a.check("behind what is being written, in the ring", 16, bpf.Marks{}, 0)
	if a.inFlight.lost != 0 {
		t.Errorf("%d are lost, though they are in the ring", a.inFlight.lost)
	}
	a.check("let go", 3, bpf.Marks{Records: 13, Unreported: 13}, 1)
	if a.inFlight.lost != 12 {
		t.Errorf("%d are lost, want 12", a.inFlight.lost)
	}
	a.report(lostEvents, 12, 12)
	a.check("reported", 3, bpf.Marks{Records: 13, Unreported: 13}, 1)
	a.take(5) // with the report
	a.check("delivered", 3, bpf.Marks{Records: 16}, 0)

	a.hang()
	a.report(ringFull, 50, 50)
	for n := range uint64(200) { // more than a queue keeps
		a.report(tableFull, 1+n, 1)
	}
	dropped := a.fanout.Stats()[0].Dropped - 12
	a.check("reports alone", 3, bpf.Marks{Records: 16, Unreported: 50 + dropped - 1, RingFull: 50, TableFull: dropped - 1}, 0)
}

// At the end of a daemon the queues drop what the next one is to have.
func TestWhatIsLeftOverIsInFlight(t *testing.T) {
	a := newRig(t, bpf.Marks{}, 100)
	a.records(10)
	a.report(ringFull, 5, 5)
	a.check("before the end", 6, bpf.Marks{Records: 4, Unreported: 4}, 4)
	a.take(1)
	a.inFlight.ending = true
	a.end()
	a.check("after the end", 6, bpf.Marks{Records: 4, Unreported: 3}, 3)
}

// While a write hangs, what a full queue drops behind it is forgotten.
func TestAHangingWriteIsNoLeak(t *testing.T) {
	a := newRig(t, bpf.Marks{}, 10)
	const n = 100_000
	for range n / 100 {
		a.records(100)
		a.inFlight.settle()
		a.inFlight.letGo(50 * recordBytes)
	}
	if kept := len(a.inFlight.queued.events); kept > 4*sweepMin {
		t.Errorf("%d events are remembered of a queue of 10", kept)
	}
	if m := a.inFlight.marks(); m.Records < n-50 || m.Unreported < n-100 || m.Unreported > n {
		t.Errorf("of %d: %+v", n, m)
	}
}

// Room is reused: a steady stream of events makes no garbage.
func TestInFlightMakesNoGarbage(t *testing.T) {
	var f inFlight
	var pool outputs.Pool
	items := make([]*outputs.Item, 3)
	n := uint64(0)
	pass := func() {
		for i := range items {
			n++
			items[i] = pool.Get()
			f.add(ringRecords, items[i], mark{n, n * recordBytes})
		}
		f.settle()
		f.letGo(2 * recordBytes)
		for _, i := range items {
			i.Release()
		}
	}
	for range 100 {
		pass()
	}
	if n := testing.AllocsPerRun(1000, pass); n != 0 {
		t.Errorf("%v allocations for each event", n)
	}
	if m := f.marks(); m.Unreported > 3 || slices.ContainsFunc(f.queued.events[:f.queued.first], func(e inFlightEvent) bool { return e.item != nil }) {
		t.Errorf("%+v", m)
	}
}
