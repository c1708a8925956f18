package pipeline

import (
	"net/netip"
	"time"

	"github.com/flatd/flatd/flows"
)

// Durations that the histograms distinguish, in nanoseconds. No exchange takes
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

// counts are those of exchanges that have kind, side and perhaps destination in
// common. They are used anew for each interval.
type counts struct {
	side        flows.Side
	destination netip.AddrPort // none for those of all destinations
	sum         flows.Summary  // with the kind
	durations   histogram
}

func newCounts(h histogram) *counts { return &counts{durations: h} }

// add counts an exchange, whose kind and side become those of the counts.
func (t *counts) add(e *flows.Event) {
	t.side, t.sum.Kind = e.Side, e.Kind
	t.sum.Add(e)
	if e.Duration > 0 {
		_ = t.durations.RecordValue(min(int64(e.Duration), durationMost)) // within the range
	}
}

func (t *counts) reset() {
	if t == nil {
		return
	}
	t.sum = flows.Summary{}
	t.durations.Reset()
}

// troubles counts what calls for attention. What failed may have been slow too.
func (t *counts) troubles() uint64 { return t.sum.Failed + t.sum.Slow }

// event makes a summary of the counts, which may be used further.
func (t *counts) event(scope flows.Scope) flows.Event {
	sum := t.sum
	sum.Scope = scope
	sum.P50, sum.P90, sum.P99 = t.quantile(50), t.quantile(90), t.quantile(99)
	return flows.Event{Kind: flows.KindSummary, Side: t.side, Destination: t.destination, Summary: &sum}
}

// quantile is the upper bound of the histogram's bucket, and no more than the
// exact maximum.
func (t *counts) quantile(percent float64) time.Duration {
	return min(time.Duration(t.durations.ValueAtPercentile(percent)), t.sum.Max)
}
