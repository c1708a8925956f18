package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/flows"
)

// summarizer counts what the pipeline publishes and sums it up at the end of
// each interval. Only the goroutine of the pipeline may use it, but for
// configure and finished: so counting an event takes no lock, and once the
// tables have grown no memory either.
//
// It holds 26 kB for each kind and side, and the table of destinations.
type summarizer struct {
	wanted atomic.Pointer[config.Summary]
	latest atomic.Pointer[[]flows.Event]

	interval     time.Duration // 0: does not count
	began, ends  time.Time
	atBegin      flows.Summary       // what finish was given then
	exchanges    [][sidesMax]*counts // by kind; made when first needed
	destinations destinations
}

// Kinds and sides are numbered from 1.
const sidesMax = flows.SideServer + 1

func newSummarizer(c config.Summary) *summarizer {
	s := &summarizer{
		exchanges:    make([][sidesMax]*counts, 1+len(flows.ExchangeKinds())),
		destinations: destinations{places: make(map[destination]int)},
	}
	s.configure(c)
	s.latest.Store(new([]flows.Event))
	return s
}

// configure takes another configuration. A change of the interval ends the one
// that is running. It may be called from any goroutine.
func (s *summarizer) configure(c config.Summary) { s.wanted.Store(&c) }

// finished is what the latest interval that is over came to, nothing if none
// is. It may be called from any goroutine; nobody changes the events.
func (s *summarizer) finished() []flows.Event { return *s.latest.Load() }

// add counts an exchange.
func (s *summarizer) add(e *flows.Event) {
	if s.interval == 0 || e.Kind == 0 || int(e.Kind) >= len(s.exchanges) || e.Side == 0 || e.Side >= sidesMax {
		return
	}
	t := s.exchanges[e.Kind][e.Side]
	if t == nil {
		t = newCounts(hdrhistogram.New(durationLeast, durationMost, 2))
		s.exchanges[e.Kind][e.Side] = t
	}
	t.add(e)
	if e.Side == flows.SideClient {
		s.destinations.add(e)
	}
}

// due reports whether the interval is over, or is to be another.
func (s *summarizer) due(now time.Time) bool {
	return s.interval != s.wanted.Load().Interval || s.interval > 0 && !now.Before(s.ends)
}

// finish ends the interval, begins the next, and returns what the one that has
// ended came to: events that lack only their time. unreported has the totals so
// far of what no event reports: by the outputs Withheld and Dropped, by the kernel
// the others, of which ResultOut counts timeouts, too.
func (s *summarizer) finish(now time.Time, unreported flows.Summary) []flows.Event {
	wanted := s.wanted.Load()
	var events []flows.Event
	if s.interval > 0 {
		events = s.sumUp(now.Sub(s.began), wanted.Destinations, unreported)
	}
	for _, sides := range s.exchanges {
		for _, t := range sides {
			t.reset()
		}
	}
	s.destinations.reset()
	s.interval, s.began, s.ends, s.atBegin = wanted.Interval, now, nextEnd(now, wanted.Interval), unreported
	return events
}

// nextEnd is the end of the interval that now is in: a multiple of it on the
// wall clock, but found again by the monotonic one, so that a wall clock that
// is set back does not make an interval of hours.
func nextEnd(now time.Time, interval time.Duration) time.Time {
	return now.Add(interval - now.Sub(now.Truncate(interval)))
}

func (s *summarizer) sumUp(took time.Duration, named int, unreported flows.Summary) []flows.Event {
	var events []flows.Event
	add := func(scope flows.Scope, t *counts) {
		e := t.event(scope)
		e.Summary.Interval = took
		events = append(events, e)
	}
	for _, sides := range s.exchanges {
		for _, t := range sides {
			if t != nil && t.sum.Count > 0 {
				add(flows.ScopeExchanges, t)
			}
		}
	}
	for _, t := range s.destinations.outstanding(named) {
		add(flows.ScopeDestination, t)
	}
	if left := s.leftOut(unreported); left != (flows.Summary{}) {
		left.Scope, left.Interval = flows.ScopeBooks, took
		events = append(events, flows.Event{Kind: flows.KindSummary, Summary: &left})
	}
	return events
}

// leftOut is what no event has reported since the interval began.
func (s *summarizer) leftOut(now flows.Summary) flows.Summary {
	return flows.Summary{
		Withheld:   now.Withheld - s.atBegin.Withheld,
		Dropped:    now.Dropped - s.atBegin.Dropped,
		ResultOut:  now.ResultOut - s.atBegin.ResultOut,
		TooFast:    now.TooFast - s.atBegin.TooFast,
		SampledOut: now.SampledOut - s.atBegin.SampledOut,
		RingFull:   now.RingFull - s.atBegin.RingFull,
		HalfOpen:   now.HalfOpen - s.atBegin.HalfOpen,
		Others:     s.destinations.others,
	}
}
