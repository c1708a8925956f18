package daemon

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// takeover is the time in which programs of an older layout are still at work.
// The new ones are attached beside them, asleep, and woken all at once; a
// request is theirs if it was sent after that moment, else the older programs'.
// Those stay until all that they follow has been answered or has timed out.
type takeover struct {
	older    *bpf.Older
	reader   *bpf.Reader
	since    atomic.Uint64 // when the new programs were woken; 0: not yet
	losing   uint64        // how many lost events are being told
	detached bool
}

// takeOver prepares for it if there is an older state. It is called before the
// interfaces are attached.
func (p *pipeline) takeOver() error {
	older, err := p.state.Older()
	if err != nil || older == nil {
		return err
	}
	t := &takeover{older: older}
	t.since.Store(p.state.TakenOver())
	if t.since.Load() == 0 {
		if err := p.state.Sleep(); err != nil {
			return errors.Join(err, older.Close())
		}
		p.state.Start = bpf.StartBeside
	}
	if t.reader, err = older.Reader(); err != nil {
		return errors.Join(err, older.Close())
	}
	if !older.CanSweep() {
		p.log.Warn("the older programs' requests cannot be read: those that are never answered will not be reported", "layout", older.ABI)
	}
	if !older.CanCount() {
		p.log.Warn("the older programs' counters cannot be read: what their ring had no room for will not be told", "layout", older.ABI)
	}
	p.older = t
	p.takingOver.Store(true)
	return p.tellOlderLoss()
}

// wake begins to measure, now that the interfaces are attached.
func (p *pipeline) wake(keep time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.waking() {
		return nil
	}
	since, err := p.state.TakeOver(p.older.older, leaseEnd(keep))
	p.older.since.Store(since)
	return err
}

// waking reports whether wake is still to come; until then there is no lease
// to renew.
func (p *pipeline) waking() bool { return p.older != nil && p.older.since.Load() == 0 }

// olders reports whether a request that was sent at that time is the older
// programs' to report.
func (t *takeover) olders(sent uint64) bool {
	since := t.since.Load()
	return since == 0 || sent < since
}

// readOlder takes what is in the older ring.
func (p *pipeline) readOlder() {
	for n := 1; ; n++ {
		if n%replayStep == 0 {
			p.awaitRoom()
		}
		record, _, ok := p.older.reader.Next()
		if !ok {
			return
		}
		item := p.pool.Get()
		if err := flows.Decode(record, &item.Event); err != nil {
			p.takenOver.Add(1)
			p.decodeErrors.Add(1)
			item.Release()
			continue
		}
		p.publishOlder(item, item.Event.End-uint64(item.Event.Duration))
	}
}

// publishOlder hands on what is the older programs' to report: a request that
// was sent at that time.
func (p *pipeline) publishOlder(item *outputs.Item, sent uint64) {
	if !p.older.olders(sent) {
		item.Release()
		return
	}
	p.takenOver.Add(1)
	item.Position = p.custody.take(charge{older: true})
	p.publish(item)
}

// sweepOlder reports the older programs' timeouts.
func (p *pipeline) sweepOlder(limit time.Duration) error {
	if !p.older.older.CanSweep() {
		return nil
	}
	_, err := p.older.older.Sweep(bpf.BootTime(), limit, func(side uint8, key, pending, question []byte) {
		p.olderTimeout(bpf.Timeout{LimitNs: uint64(limit), Side: side, Key: key, Pending: pending, Question: question})
	})
	return err
}

func (p *pipeline) olderTimeout(t bpf.Timeout) {
	p.awaitRoom()
	item := p.decodeTimeout(t)
	if item == nil {
		p.takenOver.Add(1)
		return
	}
	sent := item.Event.End - t.LimitNs
	if p.older.olders(sent) && !p.wantsTimeouts() {
		p.timeoutsOut.Add(1)
		item.Release()
		return
	}
	p.publishOlder(item, sent)
}

// tellOlderLoss reports once what the older ring had no room for.
func (p *pipeline) tellOlderLoss() error {
	t := p.older
	if !t.older.CanCount() {
		return nil
	}
	untold, err := t.older.UntoldLoss()
	if err != nil || untold == t.losing {
		return err
	}
	lost := untold - t.losing
	t.losing = untold
	p.olderLost.Add(lost)
	p.log.Warn("the older programs' ring was full; these exchanges are not reported", "lost", lost, "layout", t.older.ABI)
	message := fmt.Sprintf("%d events lost: the ring of the older programs was full", lost)
	if t.since.Load() != 0 { // some of these may be the new programs' to report
		message = "up to " + message
	}
	p.emitIn(p.lossEvent(lost, message), p.custody.take(charge{older: true}))
	return nil
}

// commitOlder lets the older state forget what every output has disposed of.
func (p *pipeline) commitOlder() error {
	if p.older == nil || p.custody.older > 0 {
		return nil
	}
	t := p.older
	t.reader.Commit()
	if t.older.CanSweep() {
		t.older.ConfirmTimeouts(t.older.LastTimeout())
	}
	if t.losing == 0 {
		return nil
	}
	told := t.losing
	t.losing = 0
	return t.older.TellLoss(told)
}

// endTakeover removes the older state once nothing is left to come of it.
func (p *pipeline) endTakeover(limit time.Duration) error {
	t := p.older
	// Every request from before has had its time, and two sweeps.
	if since := t.since.Load(); since == 0 || bpf.BootTime() < since+uint64(limit+2*sweepEvery) {
		return nil
	}
	if !t.detached {
		if err := t.older.Detach(); err != nil {
			return err
		}
		t.detached = true
	}
	p.readOlder()
	if err := p.tellOlderLoss(); err != nil {
		return err
	}
	if t.reader.Backlog() > 0 || p.custody.older > 0 {
		return nil // the outputs do not have all of it yet
	}
	p.older = nil
	p.takingOver.Store(false)
	p.log.Info("the programs of another layout have been taken over from", "layout", t.older.ABI, "events", p.takenOver.Load())
	p.status(flows.ActionConfig, flows.Interface{}, fmt.Sprintf("took over from the programs of layout %d", t.older.ABI))
	return errors.Join(t.reader.Close(), t.older.Remove())
}

func leaseEnd(keep time.Duration) uint64 {
	if keep == 0 {
		return 0 // for ever
	}
	return bpf.BootTime() + uint64(keep)
}
