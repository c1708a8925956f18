package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/cgroups"
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
//	commit            the ring moves on past what every output has disposed of
//
// Requests that nobody answered are found by a sweep of the tables of open
// requests and take the same way from enrich on.
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
	measure atomic.Pointer[Measure]
	filter  atomic.Pointer[Filter]

	custody custody       // for the goroutine of run alone, as are the next four
	pause   time.Duration // how long records gather
	cpus    processors
	losing  uint64 // how many lost events are being told
	// What is lost before that is told together.
	tellLossAgain time.Time
	notFollowed   drops // requests that found no room in the tables

	older *takeover // nil but for the time after an upgrade to another layout; changed under mu

	beat         atomic.Int64 // unix seconds of the last round
	readBefore   uint64       // records read and released by daemons before this one
	read         atomic.Uint64
	decodeErrors atomic.Uint64
	timedOut     atomic.Uint64
	timeoutsOut  atomic.Uint64 // timeouts that the filter leaves out
	takingOver   atomic.Bool
	takenOver    atomic.Uint64   // exchanges of an older state
	olderLost    atomic.Uint64   // those that its ring had no room for
	own          atomic.Uint64   // events about flatd itself, and summaries
	open         [2]atomic.Int64 // ours, theirs, as of the last sweep
	backlog      atomic.Int64    // bytes of the ring not read yet
	outstanding  atomic.Int64    // bytes read and held back
	forced       atomic.Uint64   // how often the half-ring bound let go
}

const (
	sweepEvery = time.Second
	// A ring that stays full is told so often, not at each sweep.
	lossPause = 10 * time.Second
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

func newPipeline(state *bpf.State, reader *bpf.Reader, fanout *outputs.Fanout, recent *recent, owners *cgroups.Tree, c Config, log *slog.Logger) *pipeline {
	p := &pipeline{
		state: state, reader: reader, fanout: fanout, recent: recent, owners: owners,
		clock: flows.NewClock(), log: log, began: bpf.BootTime(), summary: newSummarizer(c.Summary),
		readBefore: state.Released(reader), pause: gatherLeast,
	}
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
	p.tellUnconfirmed()
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
		if p.older != nil {
			p.readOlder()
		}
		if err := p.commit(); err != nil {
			return err
		}
		if now := time.Now(); now.After(nextSweep) {
			nextSweep = now.Add(sweepEvery)
			if err := p.sweep(); err != nil {
				return err
			}
		}
		timeout := time.Until(nextSweep)
		if p.reader.Outstanding() > 0 || !p.custody.empty() {
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
		record, position, ok := p.reader.Next()
		if !ok {
			return n, nil
		}
		before := p.read.Add(1) - 1
		item := p.pool.Get()
		if err := flows.Decode(record, &item.Event); err != nil {
			p.decodeErrors.Add(1)
			item.Release()
			continue
		}
		item.Position = p.custody.take(charge{position: position, records: before})
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
// alone has the events, and a crash would lose them.
func (p *pipeline) commit() error {
	done := p.custody.settle(p.fanout.Held())
	p.release()
	if p.reader.Outstanding() > p.reader.Size()/2 {
		p.custody.dropRecords()
		p.release()
		p.forced.Add(1)
	}
	if err := p.commitOlder(); err != nil {
		return err
	}
	p.backlog.Store(int64(p.reader.Backlog()))
	p.outstanding.Store(int64(p.reader.Outstanding()))
	if done.timeout > 0 {
		p.state.ConfirmTimeouts(done.timeout)
	}
	if done.notFollowed > 0 {
		p.state.ConfirmNotFollowed(done.notFollowed)
	}
	if done.lost == 0 {
		return nil
	}
	p.losing -= done.lost
	return p.state.TellLoss(done.lost)
}

// release lets the ring move on to the oldest record in custody.
func (p *pipeline) release() {
	oldest, ok := p.custody.record()
	if !ok {
		oldest = charge{records: p.read.Load()}
	}
	p.state.Release(p.reader, oldest.position, p.readBefore+oldest.records)
}

// sweep reports the requests that got no answer in time, and what was lost.
func (p *pipeline) sweep() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock.Refresh()
	limit := p.measure.Load().Timeout
	swept, err := p.state.Sweep(bpf.BootTime(), limit, func(side uint8, key, pending, question []byte) {
		p.timeout(bpf.Timeout{
			Number: p.state.LastTimeout(), LimitNs: uint64(limit),
			Side: side, Key: key, Pending: pending, Question: question,
		})
	})
	if err != nil {
		return err
	}
	p.open[0].Store(int64(swept.OpenOurs))
	p.open[1].Store(int64(swept.OpenTheirs))
	if err := errors.Join(p.tellLoss(), p.tellNotFollowed()); err != nil || p.older == nil {
		return err
	}
	return errors.Join(p.sweepOlder(limit), p.endTakeover(limit))
}

// tellUnconfirmed reports the timeouts that an earlier daemon had found, and
// was killed before every output had them.
func (p *pipeline) tellUnconfirmed() {
	p.state.UnconfirmedTimeouts(p.timeout)
	if p.older != nil && p.older.older.CanSweep() {
		p.older.older.UnconfirmedTimeouts(p.olderTimeout)
	}
}

// timeout reports one request without an answer.
func (p *pipeline) timeout(t bpf.Timeout) {
	if !p.wantsTimeouts() {
		p.timeoutsOut.Add(1)
		p.custody.take(charge{timeout: t.Number}) // settled with what came before it
		return
	}
	p.awaitRoom()
	p.timedOut.Add(1)
	item := p.decodeTimeout(t)
	if item == nil {
		return
	}
	item.Position = p.custody.take(charge{timeout: t.Number})
	p.publish(item)
}

// wantsTimeouts reports whether timeouts are among the results that the
// configuration asks for. The kernel leaves out the others by itself.
func (p *pipeline) wantsTimeouts() bool {
	wanted := p.filter.Load().Results
	return len(wanted) == 0 || slices.Contains(wanted, "timeout")
}

// decodeTimeout returns the event of a timeout, or counts an error and returns nil.
func (p *pipeline) decodeTimeout(t bpf.Timeout) *outputs.Item {
	item := p.pool.Get()
	if err := flows.DecodePending(t.Key, t.Pending, time.Duration(t.LimitNs), flows.Side(t.Side), &item.Event); err != nil {
		p.decodeErrors.Add(1)
		item.Release()
		return nil
	}
	item.Event.DNS.SetQuestion(t.Question)
	return item
}

// tellLoss reports once what the ring had no room for, also while no daemon
// was there to read it.
func (p *pipeline) tellLoss() error {
	untold, err := p.state.UntoldLoss()
	if err != nil || untold == p.losing || time.Now().Before(p.tellLossAgain) {
		return err
	}
	p.tellLossAgain = time.Now().Add(lossPause)
	lost := untold - p.losing
	p.losing = untold
	p.log.Warn("the event ring was full; these exchanges are counted but not reported", "lost", lost)
	e := p.lossEvent(lost, fmt.Sprintf("%d events lost: the ring in the kernel was full", lost))
	p.emitIn(e, p.custody.take(charge{lost: lost}))
	return nil
}

// tellNotFollowed reports how many requests found no room in the tables, also
// while no daemon was there to sweep them.
func (p *pipeline) tellNotFollowed() error {
	number, reported, err := p.state.NotFollowed()
	if err != nil {
		return err
	}
	told := &p.notFollowed
	if told.again.IsZero() {
		told.told = reported // by daemons before this one
	}
	n, ok := told.due(time.Now(), number)
	told.own = 0 // no event of ours is a request
	if !ok {
		return nil
	}
	p.log.Warn("the table of open requests was full; these requests are counted but not followed", "requests", n)
	e := p.lossEvent(n, fmt.Sprintf("%d requests not followed: the table of open requests in the kernel was full", n))
	p.emitIn(e, p.custody.take(charge{notFollowed: number}))
	return nil
}

// tellSummary reports what the interval that has ended came to.
func (p *pipeline) tellSummary(now time.Time) error {
	counters, err := p.state.Counters()
	if err != nil {
		return err
	}
	a := accounts{
		resultOut: counters[bpf.ResultOut] + p.timeoutsOut.Load(), tooFast: counters[bpf.TooFast],
		sampledOut: counters[bpf.SampledOut], ringFull: counters[bpf.RingFull] + p.olderLost.Load(),
		halfOpen: counters[bpf.HalfOpen],
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

// status reports an event in flatd's own life, of an interface or of none.
func (p *pipeline) status(action flows.Action, iface flows.Interface, message string) {
	p.emit(p.statusEvent(&flows.Status{Action: action, Message: message}, iface))
}

// lossEvent says that events were lost, and how many.
func (p *pipeline) lossEvent(lost uint64, message string) flows.Event {
	return p.statusEvent(&flows.Status{Action: flows.ActionLoss, Lost: lost, Message: message}, flows.Interface{})
}

func (p *pipeline) statusEvent(s *flows.Status, iface flows.Interface) flows.Event {
	now := bpf.BootTime()
	return flows.Event{Kind: flows.KindStatus, Status: s, Interface: iface, End: now, Time: p.clock.Wall(now)}
}

func (p *pipeline) emit(e flows.Event) { p.emitIn(e, 0) }

// emitIn publishes an event that is in custody by that ticket.
func (p *pipeline) emitIn(e flows.Event, ticket uint64) {
	p.own.Add(1)
	item := p.pool.Get()
	item.Event, item.Position = e, ticket
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
	if p.older != nil {
		p.readOlder()
	}
	err = errors.Join(err, p.tellSummary(time.Now()))
	patient, impatient := context.WithTimeout(ctx, time.Second)
	defer impatient()
	for ctx.Err() == nil && p.fanout.Busy() && (patient.Err() == nil || !p.fanout.Down()) {
		time.Sleep(pollEvery)
	}
	err = errors.Join(err, p.commit())
	now, cancel := context.WithTimeout(ctx, pollEvery)
	defer cancel()
	return errors.Join(err, p.fanout.Drain(now))
}

func (p *pipeline) configure(c Config) error {
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
	if p.waking() {
		return nil
	}
	return p.state.RenewLease(leaseEnd(keep))
}

// setNames takes the names of the interfaces by index. Names of those that
// have gone are kept by the caller for as long as events of theirs may come.
func (p *pipeline) setNames(names map[int]string) { p.names.Store(&names) }
