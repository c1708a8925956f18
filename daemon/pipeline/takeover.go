package pipeline

import (
	"errors"
	"fmt"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

// takeover is the time in which programs of another layout are still at work, which
// package bpf calls the previous ones. Ours are attached in front of them and begin
// nothing at first. Wake has ours begin what is new, and the previous ones nothing; these
// stay until all that they follow has been answered or has timed out. What says nothing
// else is for the goroutine of Run.
type takeover struct {
	state     *bpf.Previous
	marks     bpf.Marks // of that state, as they were found
	read      uint64    // records
	leftOut   [3]uint64 // by the settings, as counted last
	since     uint64    // when ours were set to begin, 0: not yet; under Pipeline.mu
	confirmed uint64    // timeouts that the state need not remember
	both      uint64    // records left out, as reported
	detached  bool
}

// TakeOver prepares for it if there is a previous state. It is called before the
// interfaces are attached.
func (p *Pipeline) TakeOver() error {
	previous, err := p.state.Previous()
	if err != nil || previous == nil {
		return err
	}
	t := &takeover{state: previous}
	if t.marks, err = previous.Marks(); err != nil {
		return errors.Join(err, previous.Close())
	}
	p.inFlight.pass(previousRecords, t.readUpTo())
	p.inFlight.pass(previousFull, mark{number: t.marks.RingFull})
	if !previous.TakingOver() {
		t.since = bpf.BootTime() // by a daemon before this one, some time ago
	}
	if !previous.CanSweep() {
		p.log.Warn("the open requests of the previous programs cannot be read: those that are never answered will not be reported", "layout", previous.Name())
	}
	if !previous.CanCount() {
		p.log.Warn("the counters of the previous programs cannot be read: what their ring had no room for will not be reported", "layout", previous.Name())
	}
	p.previous = t
	p.takingOver.Store(true)
	if n := t.marks.Unreported; n > 0 {
		p.lostBefore += n
		p.reportLoss(previousLost, n, n, LostBefore(n))
	}
	if previous.CanCount() {
		if t.leftOut, err = previous.LeftOut(); err != nil {
			return err
		}
	}
	return p.countPrevious()
}

// readUpTo is the mark of the records of the previous ring that have been read.
func (t *takeover) readUpTo() mark {
	return mark{number: t.marks.Records + t.read, position: t.state.Position()}
}

// Wake has our programs begin, now that the interfaces are attached.
func (p *Pipeline) Wake(keep time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.previous == nil || p.previous.since != 0 {
		return nil
	}
	if err := p.previous.state.TakeOver(); err != nil {
		return err
	}
	p.previous.since = bpf.BootTime()
	p.state.RenewLease(leaseEnd(keep))
	return nil
}

// readPrevious takes what is in the previous ring, but for what ours report too.
func (p *Pipeline) readPrevious() {
	for n := 1; ; n++ {
		if n%replayStep == 0 {
			p.awaitRoom()
		}
		record, _, ok := p.previous.state.Next()
		if !ok {
			p.inFlight.pass(previousRecords, p.previous.readUpTo())
			return
		}
		p.previous.read++
		p.publishPrevious(record, previousRecords, p.previous.readUpTo())
	}
}

// publishPrevious hands on a record of the previous programs. The event takes a thing up
// to a mark.
func (p *Pipeline) publishPrevious(record []byte, t thing, to mark) {
	p.takenOver.Add(1)
	item := p.pool.Get()
	if err := flows.Decode(record, &item.Event); err != nil {
		p.decodeErrors.Add(1)
		item.Release()
		return
	}
	if p.previous.state.IsOurs(record) {
		p.both.Add(1)
		item.Release()
		return
	}
	p.inFlight.add(t, item, to)
	p.publish(item)
}

// sweepPrevious has the timeouts of the previous programs reported. It is over once every
// request from before has had its time, then two sweeps, and the last one left none for lack
// of room.
func (p *Pipeline) sweepPrevious(limit time.Duration) (over bool, err error) {
	t, began := p.previous, bpf.BootTime()
	swept, err := t.state.Sweep(began, limit, func(record []byte) {
		p.awaitRoom()
		p.publishPrevious(record, previousTimeouts, mark{number: t.state.LastTimeout()})
	})
	p.inFlight.pass(previousTimeouts, mark{number: t.state.LastTimeout()})            // also of those without an event
	over = t.since != 0 && began >= t.since+uint64(limit+2*sweepEvery) && !swept.Full // model: DRAIN
	return over, errors.Join(err, p.countPrevious())
}

// countPrevious reports once what the previous ring had no room for, and counts what the
// settings left out.
func (p *Pipeline) countPrevious() error {
	t := p.previous
	if !t.state.CanCount() {
		return nil
	}
	leftOut, err := t.state.LeftOut()
	if err != nil {
		return err
	}
	for i, n := range leftOut {
		p.previousOut[i].Add(n - t.leftOut[i])
	}
	t.leftOut = leftOut
	full, err := t.state.RingFull()
	if err != nil {
		return err
	}
	lost := p.inFlight.unreported(previousFull, full)
	if lost == 0 {
		return nil
	}
	p.previousLost.Add(lost)
	p.log.Warn("the previous programs' ring was full; these exchanges are not reported", "lost", lost, "layout", t.state.Name())
	p.reportLoss(previousFull, full, lost, fmt.Sprintf("%d events lost: the previous programs' ring was full", lost))
	return nil
}

// commitPrevious lets the previous state forget what every output has disposed of.
func (p *Pipeline) commitPrevious() error {
	if p.previous == nil {
		return nil
	}
	t, f := p.previous, &p.inFlight
	if n := f.mark(previousTimeouts).number; n > t.confirmed {
		t.confirmed = n
		t.state.ConfirmTimeouts(n)
	}
	records := f.mark(previousRecords)
	return t.state.SetMarks(bpf.Marks{
		Records: records.number, Position: records.position,
		Unreported: t.marks.Unreported - f.mark(previousLost).number,
		RingFull:   f.mark(previousFull).number, TableFull: t.marks.TableFull,
	})
}

// previousLeftOut is what the settings left out of the previous programs' exchanges.
func (p *Pipeline) previousLeftOut() (sum uint64) {
	for i := range p.previousOut {
		sum += p.previousOut[i].Load()
	}
	return sum
}

// reportBoth says of how many exchanges, begun by the programs of both states, one record
// was left out: its sequence number is missing, and nothing else.
func (p *Pipeline) reportBoth() {
	n := p.both.Load() - p.previous.both
	if n == 0 {
		return
	}
	p.previous.both += n
	p.Status(flows.ActionConfig, flows.Interface{}, fmt.Sprintf("%d exchanges were begun by the programs of both layouts and are reported once; %d sequence numbers are unused", n, n))
}

// endTakeover removes the previous state once nothing is left to come of it.
func (p *Pipeline) endTakeover() error {
	t := p.previous
	if !t.detached {
		if err := t.state.Detach(); err != nil {
			return err
		}
		t.detached = true
	}
	// Our ring too: which of its records are the previous programs' to report, their state says.
	if _, err := p.readAll(); err != nil {
		return err
	}
	p.readPrevious()
	if err := p.countPrevious(); err != nil {
		return err
	}
	if t.state.Backlog() > 0 || p.inFlight.any(previousRecords, previousFull, previousLost, previousTimeouts) {
		return nil // the outputs do not have all of it yet
	}
	p.reportBoth()
	p.previous = nil
	p.takingOver.Store(false)
	p.log.Info("took over from the programs of another layout", "layout", t.state.Name(), "events", p.takenOver.Load())
	p.Status(flows.ActionConfig, flows.Interface{}, "took over from the programs of layout "+t.state.Name())
	return t.state.End()
}

func leaseEnd(keep time.Duration) uint64 {
	if keep == 0 {
		return 0 // for ever
	}
	return bpf.BootTime() + uint64(keep)
}
