// Package pipeline takes the records of the programs to the outputs, and reports what was lost.
package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/cgroups"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// Pipeline is the way of an event through the daemon:
//
//	reader.Next       the kernel's record, still in the ring
//	flows.Decode      bytes -> event, or a counted error
//	enrich            wall clock, interface name, unit or container, slow, replayed
//	summary.add       counted, for the end of the interval
//	fanout.Publish    to one bounded queue per output; never blocks
//	commit            the ring moves on past what every output has disposed of (inflight.go)
//
// Requests that nobody answered take the same way: a sweep of the table of open
// requests has the kernel's half put a record of each into the ring.
type Pipeline struct {
	// Set by New and TakeOver, and not changed once Run has begun. The reader is for
	// the goroutine of Run alone, the others are safe for any.
	state      *bpf.State
	reader     *bpf.Reader
	fanout     *outputs.Fanout
	recent     *Recent
	owners     *cgroups.Tree
	clock      *flows.Clock
	log        *slog.Logger
	pool       outputs.Pool
	began      uint64 // boot time at the start; what ended before is a replay
	readBefore uint64 // records read and released by daemons before this one
	lostBefore uint64 // events that those have left unreported; known once TakeOver has returned

	// For the goroutine of Run alone, and for Drain after it.
	summary  *summarizer // but for configure and finished
	inFlight inFlight
	pause    time.Duration // how long records gather
	cpus     processors
	losses   lossReports

	refused map[string]*drops // for the goroutine of ReportRefused alone

	// Set by any goroutine, read by any.
	names   atomic.Pointer[map[int]string] // of interfaces, by index
	measure atomic.Pointer[config.Measure]

	// Held by sweep, Configure, RenewLease and Wake, which have the programs do something else.
	mu sync.Mutex
	// nil but for the time after an upgrade to another layout. Run changes it under mu and
	// reads it without; others read it under mu.
	previous *takeover

	progress
}

// progress is how far Run has come. Run alone counts, and any goroutine may read.
type progress struct {
	own          atomic.Uint64 // events about flatd itself, and summaries; whoever reports one counts it
	beat         atomic.Int64  // unix seconds of the last round
	read         atomic.Uint64
	decodeErrors atomic.Uint64
	timedOut     atomic.Uint64 // of the records, those of timeouts
	takingOver   atomic.Bool
	takenOver    atomic.Uint64    // records of the previous state
	previousLost atomic.Uint64    // those that its ring had no room for
	previousOut  [3]atomic.Uint64 // those that the settings left out: by result, as too fast, by sampling
	both         atomic.Uint64    // records of exchanges that the programs of both states have begun
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
	// PollEvery: while records wait for their outputs the kernel does not wake the
	// reader (see bpf.Reader), which then looks by itself this often.
	PollEvery = 50 * time.Millisecond
	// After records have come, Run lets more gather for so long: under load a
	// wake-up then serves many events and not one. The kernel wakes nobody
	// meanwhile. The pause is short at first, and where many come, because the
	// ring has to hold them.
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

// New makes one. Run is to follow, and before it TakeOver.
func New(state *bpf.State, reader *bpf.Reader, fanout *outputs.Fanout, recent *Recent, owners *cgroups.Tree, c config.Config, log *slog.Logger) *Pipeline {
	marks := reader.Marks()
	p := &Pipeline{
		state: state, reader: reader, fanout: fanout, recent: recent, owners: owners,
		clock: flows.NewClock(), log: log, began: bpf.BootTime(), summary: newSummarizer(c.Summary),
		readBefore: marks.Records, lostBefore: marks.Unreported, pause: gatherLeast, losses: newLossReports(time.Now()),
		refused: make(map[string]*drops),
	}
	p.inFlight.resume(marks)
	p.measure.Store(&c.Measure)
	p.names.Store(&map[int]string{})
	return p
}

// Run reads until ctx ends. It is the only one to use the reader.
func (p *Pipeline) Run(ctx context.Context) error {
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
			if err := p.reportSummary(now); err != nil {
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
			p.cpus.adjust(now, p.read.Load())
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
			timeout = min(timeout, PollEvery)
		}
		if err := p.reader.Wait(max(timeout, time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// gather reads what there is and, if there was anything, what comes shortly
// after it.
func (p *Pipeline) gather() error {
	n, err := p.readAll()
	if err != nil || n == 0 {
		p.pause = gatherLeast
	} else {
		time.Sleep(p.pause)
		n, err = p.readAll()
		p.pause = nextPause(p.pause, n)
	}
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
func (p *Pipeline) readAll() (n int, err error) {
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
		if p.previous != nil && p.previous.state.IsTheirs(record) {
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
func (p *Pipeline) readUpTo() mark {
	return mark{number: p.readBefore + p.read.Load(), position: p.reader.Position()}
}

// awaitRoom waits for the outputs, if they are behind and it may.
func (p *Pipeline) awaitRoom() {
	for p.fanout.Crowded() && bpf.BootTime()-p.began < uint64(replayPatience) {
		time.Sleep(roomEvery)
	}
}

// publish completes an event and hands it to everybody who wants it.
func (p *Pipeline) publish(item *outputs.Item) {
	p.enrich(&item.Event)
	p.recent.Add(&item.Event)
	p.summary.add(&item.Event)
	p.fanout.Publish(item)
}

func (p *Pipeline) enrich(e *flows.Event) {
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
func (p *Pipeline) commit() error {
	p.inFlight.settle()
	p.inFlight.letGo(uint64(p.reader.Size() / 2))
	p.reader.SetMarks(p.inFlight.marks())
	p.backlog.Store(int64(p.reader.Backlog()))
	p.outstanding.Store(int64(p.reader.Outstanding()))
	p.atRisk.Store(int64(p.inFlight.atRisk()))
	return p.commitPrevious()
}

// sweep has the requests reported that got no answer in time, and reports what was lost.
// full says that more are overdue than the ring has room for.
func (p *Pipeline) sweep() (full bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock.Refresh()
	limit := p.measure.Load().Timeout
	swept, err := p.state.Requests.Sweep(bpf.BootTime(), limit)
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

// reportSummary reports what the interval that has ended came to.
func (p *Pipeline) reportSummary(now time.Time) error {
	counters, err := p.state.Counters()
	if err != nil {
		return err
	}
	unreported := flows.Summary{
		ResultOut:  counters[bpf.ResultOut] + p.previousOut[0].Load(),
		TooFast:    counters[bpf.TooFast] + p.previousOut[1].Load(),
		SampledOut: counters[bpf.SampledOut] + p.previousOut[2].Load(),
		RingFull:   counters[bpf.RingFull] + p.previousLost.Load(),
		HalfOpen:   counters[bpf.HalfOpen],
	}
	for _, s := range p.fanout.Stats() {
		unreported.Withheld += s.Withheld
		unreported.Dropped += s.Dropped + s.Failed
	}
	end := bpf.BootTime()
	events := p.summary.finish(now, unreported)
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
func (p *Pipeline) Status(action flows.Action, iface flows.Interface, message string) {
	p.emit(p.statusEvent(&flows.Status{Action: action, Message: message}, iface))
}

func (p *Pipeline) statusEvent(s *flows.Status, iface flows.Interface) flows.Event {
	now := bpf.BootTime()
	return flows.Event{Kind: flows.KindStatus, Status: s, Interface: iface, End: now, Time: p.clock.Wall(now)}
}

// emit publishes an event about flatd itself.
func (p *Pipeline) emit(e flows.Event) { p.publishOwn(p.ownItem(e)) }

func (p *Pipeline) ownItem(e flows.Event) *outputs.Item {
	item := p.pool.Get()
	item.Event = e
	return item
}

func (p *Pipeline) publishOwn(item *outputs.Item) {
	p.own.Add(1)
	p.recent.Add(&item.Event)
	p.fanout.Publish(item)
}

// Drain reads what is in the ring, and waits until the outputs have it or ctx
// ends; for an output that is down it waits only a little. What has not been
// delivered by then is dropped here, but stays in the ring for the next start,
// which other outputs then see again with the same event.id. The pipeline must
// not be running.
func (p *Pipeline) Drain(ctx context.Context) error {
	_, err := p.readAll()
	if p.previous != nil {
		p.readPrevious()
		p.reportBoth()
	}
	err = errors.Join(err, p.reportSummary(time.Now()))
	patient, impatient := context.WithTimeout(ctx, time.Second)
	defer impatient()
	for ctx.Err() == nil && p.fanout.Busy() && (patient.Err() == nil || !p.fanout.Down()) {
		time.Sleep(PollEvery)
	}
	err = errors.Join(err, p.commit())
	p.inFlight.ending = true
	now, cancel := context.WithTimeout(ctx, PollEvery)
	defer cancel()
	return errors.Join(err, p.fanout.Drain(now), p.commit())
}

// Configure has the programs and the pipeline do as another configuration says.
func (p *Pipeline) Configure(c config.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.state.Apply(Settings(c)); err != nil {
		return err
	}
	p.measure.Store(&c.Measure)
	p.summary.configure(c.Summary)
	return nil
}

// RenewLease lets the programs work for another while; 0 is for ever.
func (p *Pipeline) RenewLease(keep time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.RenewLease(leaseEnd(keep))
	return nil
}

// SetNames takes the names of the interfaces by index. Names of those that
// have gone are kept by the caller for as long as events of theirs may come.
func (p *Pipeline) SetNames(names map[int]string) { p.names.Store(&names) }

// Names are the names of the interfaces by index.
func (p *Pipeline) Names() map[int]string { return *p.names.Load() }

// Beat is when the pipeline was last seen to work.
func (p *Pipeline) Beat() time.Time { return time.Unix(p.beat.Load(), 0) }

// Read is how many records of the ring have been read.
func (p *Pipeline) Read() uint64 { return p.read.Load() }

// Open is how many requests of this host, and to it, were open at the last sweep.
func (p *Pipeline) Open() (ours, theirs int64) { return p.open[0].Load(), p.open[1].Load() }

// Summaries are what the latest interval that is over came to, nothing if none is.
func (p *Pipeline) Summaries() []flows.Event { return p.summary.finished() }

// Account fills in the pipeline's part of the accounting, and the state of the ring.
func (p *Pipeline) Account(s *api.Status) {
	b := &s.Books
	b.Open, b.Overdue = uint64(p.open[0].Load()+p.open[1].Load()), uint64(p.overdue.Load())
	b.ReadBefore, b.Read, b.LostBefore = p.readBefore, p.read.Load(), p.lostBefore
	b.TimeoutsSeen, b.DecodeErrors, b.Own = p.timedOut.Load(), p.decodeErrors.Load(), p.own.Load()
	b.TakenOver, b.TakenOverBoth, b.TakenOverLost, b.TakenOverOut = p.takenOver.Load(), p.both.Load(), p.previousLost.Load(), p.previousLeftOut()
	s.TakingOver = p.takingOver.Load()
	s.Ring = api.RingStatus{
		Size: p.reader.Size(), Backlog: int(p.backlog.Load()),
		Outstanding: int(p.outstanding.Load()), AtRisk: int(p.atRisk.Load()),
	}
}
