package pipeline

import (
	"net/netip"
	"time"

	"github.com/flatd/flatd/flows"
)

// Durations that the histograms tell apart, in nanoseconds. No exchange takes
// longer than the largest timeout and a sweep.
const (
	durationLeast = int64(time.Microsecond)
	durationMost  = int64(10 * time.Minute)
)

// histogram is one of the two that hdrhistogram has: a table, or a sparse one
// that is small while its values are few.
type histogram interface {
	RecordValue(nanoseconds int64) error
	ValueAtPercentile(percentile float64) int64
	Reset()
}

// tally counts exchanges that have kind, side and perhaps destination in
// common. It is used anew for each interval.
type tally struct {
	side        flows.Side
	destination netip.AddrPort // none for those of all destinations
	sum         flows.Summary  // with the kind
	durations   histogram
}

func newTally(h histogram) *tally { return &tally{durations: h} }

// add counts an exchange, whose kind and side become those of the tally.
func (t *tally) add(e *flows.Event) {
	t.side, t.sum.Kind = e.Side, e.Kind
	t.sum.Add(e)
	if e.Duration > 0 {
		_ = t.durations.RecordValue(min(int64(e.Duration), durationMost)) // within the range
	}
}

func (t *tally) reset() {
	if t == nil {
		return
	}
	t.sum = flows.Summary{}
	t.durations.Reset()
}

// troubles counts what calls for attention. What failed may have been slow too.
func (t *tally) troubles() uint64 { return t.sum.Failed + t.sum.Slow }

// event makes a summary of the tally, which may be used on.
func (t *tally) event(scope flows.Scope) flows.Event {
	sum := t.sum
	sum.Scope = scope
	sum.P50, sum.P90, sum.P99 = t.quantile(50), t.quantile(90), t.quantile(99)
	return flows.Event{Kind: flows.KindSummary, Side: t.side, Destination: t.destination, Summary: &sum}
}

// quantile is the upper bound of the histogram's bucket, and no more than the
// exact maximum.
func (t *tally) quantile(percent float64) time.Duration {
	return min(time.Duration(t.durations.ValueAtPercentile(percent)), t.sum.Max)
}
