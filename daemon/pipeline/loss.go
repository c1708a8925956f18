package pipeline

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

// lossReports is what has been reported about lost events, and when the next
// reports are due.
type lossReports struct {
	ringFull  time.Time // no report before this time
	tableFull drops
	outputs   drops
	dropped   map[string]uint64 // by output, how many events when the last report was made
	latest    string            // the outputs that it was about
}

const (
	// How often a ring that stays full is reported.
	lossPause = 10 * time.Second
	// While events continue to be lost, the reports become less frequent.
	dropsPauseMin = 10 * time.Second
	dropsPauseMax = time.Hour
)

func newLossReports(now time.Time) lossReports {
	return lossReports{outputs: drops{again: now.Add(dropsPauseMin)}, dropped: make(map[string]uint64)}
}

// drops is a count of losses that are reported now and then.
type drops struct {
	reported uint64
	again    time.Time     // no report before this time
	pause    time.Duration // between the last report and again
	own      uint64        // reports since then that may be among the losses
}

// due returns how many losses are not reported yet, and whether to report them now.
func (d *drops) due(now time.Time, lost uint64) (n uint64, ok bool) {
	n = lost - d.reported
	if now.Before(d.again) {
		return n, false
	}
	if n <= d.own {
		d.pause = 0 // it was quiet
		return n, false
	}
	d.pause = min(max(2*d.pause, dropsPauseMin), dropsPauseMax)
	d.reported, d.again, d.own = lost, now.Add(d.pause), 0
	return n, true
}

// reportLosses reports what is lost and why, each loss once. The report is in
// flight like any event: if flatd ends before every output has it, the next daemon
// reports the loss again.
func (p *Pipeline) reportLosses() error {
	if err := p.reportRingFull(); err != nil {
		return err
	}
	if err := p.reportTableFull(); err != nil {
		return err
	}
	p.reportDropped()
	return nil
}

// reportLoss publishes a report of lost events. The thing's mark is to once every
// output has the report.
func (p *Pipeline) reportLoss(t thing, to, lost uint64, message string) {
	item := p.ownItem(p.LossEvent(lost, message))
	p.inFlight.add(t, item, mark{number: to})
	p.publishOwn(item)
}

// LossEvent is a report of lost events.
func (p *Pipeline) LossEvent(lost uint64, message string) flows.Event {
	return p.statusEvent(&flows.Status{Action: flows.ActionLoss, Lost: lost, Message: message}, flows.Interface{})
}

// reportLostBefore reports what earlier daemons have lost and not reported to every
// output.
func (p *Pipeline) reportLostBefore() {
	if p.lostBefore > 0 {
		p.log.Warn("events were lost before this start: flatd ended while an output was away, and they were no longer in the ring", "lost", p.lostBefore)
	}
	if n := p.inFlight.lost; n > 0 {
		p.losses.outputs.reported = n
		p.reportLoss(lostEvents, n, n, LostBefore(n))
	}
}

// LostBefore is the message about n events that earlier daemons have lost.
func LostBefore(n uint64) string {
	return fmt.Sprintf("%d events lost before this start: flatd ended while an output was away, and they were no longer in the ring", n)
}

// reportRingFull reports what the ring had no room for, also while no daemon was
// there to read it.
func (p *Pipeline) reportRingFull() error {
	full, err := p.state.Count(bpf.RingFull)
	if err != nil {
		return err
	}
	lost := p.inFlight.unreported(ringFull, full)
	if lost == 0 || time.Now().Before(p.losses.ringFull) {
		return nil
	}
	p.losses.ringFull = time.Now().Add(lossPause)
	p.log.Warn("the event ring was full; these exchanges are counted but not reported", "lost", lost)
	p.reportLoss(ringFull, full, lost, fmt.Sprintf("%d events lost: the ring in the kernel was full", lost))
	return nil
}

// reportTableFull reports how many requests found no room in the tables, also
// while no daemon was there to sweep them.
func (p *Pipeline) reportTableFull() error {
	full, err := p.state.Count(bpf.PendingFull)
	if err != nil {
		return err
	}
	d := &p.losses.tableFull
	d.reported = full - p.inFlight.unreported(tableFull, full)
	n, ok := d.due(time.Now(), full)
	if !ok {
		return nil
	}
	p.log.Warn("the table of open requests was full; these requests are counted but not followed", "requests", n)
	p.reportLoss(tableFull, full, n, fmt.Sprintf("%d requests not followed: the table of open requests in the kernel was full", n))
	return nil
}

// reportDropped reports what full queues have dropped.
func (p *Pipeline) reportDropped() {
	n, ok := p.losses.outputs.due(time.Now(), p.inFlight.lost)
	if !ok {
		return
	}
	var names []string
	for _, s := range p.fanout.Stats() {
		if s.Dropped > p.losses.dropped[s.Name] {
			p.losses.dropped[s.Name] = s.Dropped
			names = append(names, s.Name)
		}
	}
	which := cmp.Or(strings.Join(names, " or "), p.losses.latest) // drops are known before they count as lost
	p.losses.latest = which
	p.log.Warn("output lost events", "output", which, "lost", n)
	p.reportLoss(lostEvents, p.inFlight.lost, n, fmt.Sprintf("output %s lost %d events: its queue was full", which, n))
}

// ReportRefused reports the events that the outputs' receivers have refused since
// the last report. It is for one goroutine.
func (p *Pipeline) ReportRefused() {
	now, stats := time.Now(), p.fanout.Stats()
	for _, s := range stats {
		if p.refused[s.Name] == nil {
			p.refused[s.Name] = new(drops)
		}
	}
	for _, s := range stats {
		n, ok := p.refused[s.Name].due(now, s.Failed)
		if !ok {
			continue
		}
		p.log.Warn("output lost events", "output", s.Name, "lost", n, "failed", s.Failed, "error", s.LastError)
		p.emit(p.LossEvent(n, fmt.Sprintf("output %s lost %d events: they were refused: %s", s.Name, n, s.LastError)))
		for _, other := range p.refused {
			other.own++ // it may be refused, too
		}
	}
}
