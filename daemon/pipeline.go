package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/cgroups"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// pipeline is the way of an event through the daemon:
//
//	reader.Next       the kernel's record, still in the ring
//	flows.Decode      bytes -> event, or a counted error
//	enrich            wall clock, interface name, whose it was, slow, replayed
//	summary.add       counted, for the end of the interval
//	fanout.Publish    to one bounded queue per output; never blocks
//	commit            the ring moves on past what every output has disposed of (inflight.go)
//
// Requests that nobody answered take the same way: a sweep of the table of open
// requests has the kernel's half put a record of each into the ring.
type pipeline struct {
	state  *bpf.State
	reader *bpf.Reader
	fanout *outputs.Fanout
	recent *recent
	clock  *flows.Clock
	log    *slog.Logger
	pool   outputs.Pool
	began  uint64 // boot time at the start; what ended before is a replay

	summary *summarizer

	names  atomic.Pointer[map[int]string] // of interfaces, by index
	owners *cgroups.Tree

	mu      sync.Mutex // held by who works with the state: sweep, configure, renewLease
	measure atomic.Pointer[config.Measure]
	filter  atomic.Pointer[config.Filter]

	inFlight inFlight      // for the goroutine of run alone, as are the next three
	pause    time.Duration // how long records gather
	cpus     processors
	losses   lossReports

	previous *takeover // nil but for the time after an upgrade to another layout; changed under mu

	beat         atomic.Int64 // unix seconds of the last round
	readBefore   uint64       // records read and released by daemons before this one
	lostBefore   uint64       // events that those have left unreported
	read         atomic.Uint64
	decodeErrors atomic.Uint64
	timedOut     atomic.Uint64 // of the records, those of timeouts
	takingOver   atomic.Bool
	takenOver    atomic.Uint64    // records of an older state
	previousLost atomic.Uint64    // those that its ring had no room for
	previousOut  [3]atomic.Uint64 // those that the settings left out: by result, as too fast, by sampling
	both         atomic.Uint64    // records of exchanges that the programs of both states have begun
	own          atomic.Uint64    // events about flatd itself, and summaries
	open         [2]atomic.Int64  // ours, theirs, as of the last sweep
	overdue      atomic.Int64     // of these, those that wait for room in the ring
	backlog      atomic.Int64     // bytes of the ring not read yet
	outstanding  atomic.Int64     // bytes read and held back
	atRisk       atomic.Int64     // events that only the queues have
}

const (
	sweepEvery = time.Second
	// A sweep for which the ring had too little room continues after this.
	sweepAgain = 20 * time.Millisecond
	// While records wait for their outputs the kernel does not wake the
	// reader (see bpf.Reader), which then looks by itself this often.
	pollEvery = 50 * time.Millisecond
	// After records have come, more are let gather for so long: under load a
	// wake-up then serves many events and not one. The kernel, for its part,
	// wakes nobody meanwhile. It is the less at first, and where many come, for
	// the ring has to hold them.
	gatherLeast = 10 * time.Millisecond
	gatherMost  = 50 * time.Millisecond
	gatherMany  = 2048 // records; the ring holds 14 times as many
	// How many records are read before the outputs' progress is looked at.
	commitEvery = 1024
	// What happened while no daemon was there may wait so long for room in the
	// queues, which are smaller than the ring.
	replayPatience = 5 * time.Second
	replayStep     = 64
	roomEvery      = time.Millisecond
)

func newPipeline(state *bpf.State, reader *bpf.Reader, fanout *outputs.Fanout, recent *recent, owners *cgroups.Tree, c config.Config, log *slog.Logger) *pipeline {
	marks := state.Marks()
	p := &pipeline{
		state: state, reader: reader, fanout: fanout, recent: recent, owners: owners,
		clock: flows.NewClock(), log: log, began: bpf.BootTime(), summary: newSummarizer(c.Summary),
		readBefore: marks.Records, lostBefore: marks.Unreported, pause: gatherLeast, losses: newLossReports(time.Now()),
	}
	p.inFlight.resume(marks)
	p.measure.Store(&c.Measure)
	p.filter.Store(&c.Filter)
	p.names.Store(&map[int]string{})
	return p
}

// run reads until ctx ends. It is the only one to use the reader.
func (p *pipeline) run(ctx context.Context) error {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { p.reader.Wake(); close(woken) })
	defer func() {
		if !stop() {
			<-woken // before anybody closes the reader
		}
	}()
	p.cpus.spare()
	p.reportLostBefore()
	nextSweep := time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		p.beat.Store(now.Unix())
		if p.summary.due(now) {
			if err := p.tellSummary(now); err != nil {
				return err
			}
		}
		if err := p.gather(); err != nil {
			return err
		}
		if p.previous != nil {
			p.readPrevious()
		}
		if err := p.commit(); err != nil {
			return err
		}
		if now := time.Now(); now.After(nextSweep) {
			nextSweep = now.Add(sweepEvery)
			full, err := p.sweep()
			if err != nil {
				return err
			}
			if full {
				nextSweep = now.Add(sweepAgain) // once the ring has been read
			}
		}
		timeout := time.Until(nextSweep)
		if p.reader.Outstanding() > 0 || !p.inFlight.empty() {
			timeout = min(timeout, pollEvery)
		}
		if err := p.reader.Wait(max(timeout, time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// gather reads what there is and, if there was anything, what comes shortly
// after it.
func (p *pipeline) gather() error {
	n, err := p.readAll()
	if err != nil || n == 0 {
		p.pause = gatherLeast
	} else {
		time.Sleep(p.pause)
		n, err = p.readAll()
		p.pause = nextPause(p.pause, n)
	}
	p.cpus.adjust(time.Now(), n > gatherMany)
	return err
}

// nextPause is how long to let records gather if n came in the last pause.
func nextPause(last time.Duration, n int) time.Duration {
	if n > gatherMany {
		return max(last/2, time.Millisecond)
	}
	return min(2*last, gatherMost)
}

// readAll takes what is in the ring and returns how many records that was.
func (p *pipeline) readAll() (n int, err error) {
	for ; ; n++ {
		record, _, ok := p.reader.Next()
		if !ok {
			p.inFlight.pass(ringRecords, p.readUpTo())
			return n, nil
		}
		p.read.Add(1)
		item := p.pool.Get()
		if err := flows.Decode(record, &item.Event); err != nil {
			p.decodeErrors.Add(1)
			item.Release()
			continue
		}
		if p.previous != nil && p.state.IsTheirs(p.previous.state, record) {
			p.both.Add(1)
			item.Release()
			continue
		}
		if item.Event.Result == flows.ResultTimeout {
			p.timedOut.Add(1)
		}
		p.inFlight.add(ringRecords, item, p.readUpTo())
		replayed := item.Event.End < p.began
		p.publish(item)
		if replayed && n%replayStep == 0 {
			p.awaitRoom()
		}
		if n%commitEvery == commitEvery-1 {
			if err := p.commit(); err != nil {
				return n, err
			}
		}
	}
}

// readUpTo is the mark of the records that have been read.
func (p *pipeline) readUpTo() mark {
	return mark{number: p.readBefore + p.read.Load(), position: p.reader.Position()}
}

// awaitRoom waits for the outputs, if they are behind and it may.
func (p *pipeline) awaitRoom() {
	for p.fanout.Crowded() && bpf.BootTime()-p.began < uint64(replayPatience) {
		time.Sleep(roomEvery)
	}
}

// publish completes an event and hands it to everybody who wants it.
func (p *pipeline) publish(item *outputs.Item) {
	p.enrich(&item.Event)
	p.recent.add(&item.Event)
	p.summary.add(&item.Event)
	p.fanout.Publish(item)
}

func (p *pipeline) enrich(e *flows.Event) {
	e.Time = p.clock.Wall(e.End)
	e.Interface.Name = (*p.names.Load())[e.Interface.Index]
	e.Owner = p.owners.Lookup(e.Cgroup)
	measure := p.measure.Load()
	e.Slow = e.Duration >= measure.Slow
	e.Replayed = e.End < p.began
	e.DNS.HashNames = measure.DNSNames == "hash"
	if measure.DNSNames == "off" {
		e.DNS.SetQuestion(nil)
	}
}

// commit has the kernel's half forget what every output has disposed of. An
// output that is away may hold back half of the ring; beyond that its queue
// alone has the oldest events, and if flatd ended now they would be lost.
// model: DELIVER_FIRST
func (p *pipeline) commit() error {
	p.inFlight.settle()
	p.inFlight.letGo(uint64(p.reader.Size() / 2))
	p.state.SetMarks(p.reader, p.inFlight.marks())
	p.backlog.Store(int64(p.reader.Backlog()))
	p.outstanding.Store(int64(p.reader.Outstanding()))
	p.atRisk.Store(int64(p.inFlight.atRisk()))
	return p.commitPrevious()
}

// sweep has the requests reported that got no answer in time, and reports what was lost.
// full says that more are overdue than the ring has room for.
func (p *pipeline) sweep() (full bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock.Refresh()
	limit := p.measure.Load().Timeout
	swept, err := p.state.Sweep(bpf.BootTime(), limit)
	if err != nil {
		return false, err
	}
	p.open[0].Store(int64(swept.OpenOurs))
	p.open[1].Store(int64(swept.OpenTheirs))
	p.overdue.Store(int64(swept.Overdue))
	if err := p.reportLosses(); err != nil || p.previous == nil {
		return swept.Full, err
	}
	p.reportBoth()
	over, err := p.sweepPrevious(limit)
	if err == nil && over {
		err = p.endTakeover()
	}
	return swept.Full, err
}

// tellSummary reports what the interval that has ended came to.
func (p *pipeline) tellSummary(now time.Time) error {
	counters, err := p.state.Counters()
	if err != nil {
		return err
	}
	a := accounts{
		resultOut:  counters[bpf.ResultOut] + p.previousOut[0].Load(),
		tooFast:    counters[bpf.TooFast] + p.previousOut[1].Load(),
		sampledOut: counters[bpf.SampledOut] + p.previousOut[2].Load(),
		ringFull:   counters[bpf.RingFull] + p.previousLost.Load(),
		halfOpen:   counters[bpf.HalfOpen],
	}
	for _, s := range p.fanout.Stats() {
		a.withheld += s.Withheld
		a.dropped += s.Dropped + s.Failed
	}
	end := bpf.BootTime()
	events := p.summary.finish(now, a)
	for i := range events {
		events[i].End, events[i].Time = end, p.clock.Wall(end)
	}
	p.summary.latest.Store(&events)
	for i := range events {
		p.emit(events[i])
	}
	return nil
}

// Status reports an event in flatd's own life, of an interface or of none.
func (p *pipeline) Status(action flows.Action, iface flows.Interface, message string) {
	p.emit(p.statusEvent(&flows.Status{Action: action, Message: message}, iface))
}

func (p *pipeline) statusEvent(s *flows.Status, iface flows.Interface) flows.Event {
	now := bpf.BootTime()
	return flows.Event{Kind: flows.KindStatus, Status: s, Interface: iface, End: now, Time: p.clock.Wall(now)}
}

// emit publishes an event about flatd itself.
func (p *pipeline) emit(e flows.Event) { p.publishOwn(p.ownItem(e)) }

func (p *pipeline) ownItem(e flows.Event) *outputs.Item {
	item := p.pool.Get()
	item.Event = e
	return item
}

func (p *pipeline) publishOwn(item *outputs.Item) {
	p.own.Add(1)
	p.recent.add(&item.Event)
	p.fanout.Publish(item)
}

// drain reads what is in the ring, and waits until the outputs have it or ctx
// ends; for an output that is down it waits only a little. What has not been
// delivered by then is dropped here, but stays in the ring for the next start,
// which other outputs then see again with the same event.id. The pipeline must
// not be running.
func (p *pipeline) drain(ctx context.Context) error {
	_, err := p.readAll()
	if p.previous != nil {
		p.readPrevious()
		p.reportBoth()
	}
	err = errors.Join(err, p.tellSummary(time.Now()))
	patient, impatient := context.WithTimeout(ctx, time.Second)
	defer impatient()
	for ctx.Err() == nil && p.fanout.Busy() && (patient.Err() == nil || !p.fanout.Down()) {
		time.Sleep(pollEvery)
	}
	err = errors.Join(err, p.commit())
	p.inFlight.ending = true
	now, cancel := context.WithTimeout(ctx, pollEvery)
	defer cancel()
	return errors.Join(err, p.fanout.Drain(now), p.commit())
}

func (p *pipeline) configure(c config.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.state.Apply(settings(c)); err != nil {
		return err
	}
	p.measure.Store(&c.Measure)
	p.filter.Store(&c.Filter)
	p.summary.configure(c.Summary)
	return nil
}

// renewLease lets the programs work for another while; 0 is for ever.
func (p *pipeline) renewLease(keep time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.RenewLease(leaseEnd(keep))
	return nil
}

// setNames takes the names of the interfaces by index. Names of those that
// have gone are kept by the caller for as long as events of theirs may come.
func (p *pipeline) SetNames(names map[int]string) { p.names.Store(&names) }
