package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

// meter reads what a histogram has at the moment. The difference of two readings
// is what came between them.
type meter interface {
	read(ctx context.Context) (flows.Histogram, error)
}

// Where a histogram comes from.
const (
	sourceKernel = "kernel"
	sourceEvents = "events"
)

// meter returns that of a selection, and where it is from.
func (f *histogramFlags) meter(c *source.Client, from source.Source, s url.Values, when string) (meter, string, error) {
	if !from.Remote() && kernelKeeps(s) {
		return &kernelMeter{c, s}, sourceKernel, nil
	}
	chosen, err := newEventSelection(s)
	if err != nil {
		return nil, "", err
	}
	m := &eventMeter{source: from, selection: chosen, past: f.interval == 0 || when == compareStart, future: f.interval > 0}
	if m.past && from.Remote() && !s.Has("since") {
		return nil, "", fmt.Errorf("a NATS server has nothing past: say --interval to count from now on, or --since if a stream has the subject; %w", errUsage)
	}
	return m, sourceEvents, nil
}

// kernelKeeps reports whether the kernel's histograms distinguish what the
// selection does.
func kernelKeeps(s url.Values) bool {
	var q api.HistogramQuery
	for name, values := range s {
		if !slices.Contains(api.HistogramQueryNames(), name) || q.Set(name, values) != nil { // a response code
			return false
		}
	}
	// Of DNS only the answer as such is a result there, and REFUSED is one.
	return !(slices.Contains(s["result"], "refused") && slices.Contains(s["kind"], "dns"))
}

// kernelMeter reads the kernel's histograms.
type kernelMeter struct {
	client    *source.Client
	selection url.Values
}

func (m *kernelMeter) read(ctx context.Context) (flows.Histogram, error) {
	var answer api.Histograms
	if err := m.client.Get(ctx, "/v1/histogram?"+m.selection.Encode(), &answer); err != nil {
		return flows.Histogram{}, source.UnlessEnded(ctx, err)
	}
	h, err := answer.Total.Histogram()
	if err != nil {
		return h, fmt.Errorf("flatd's answer: %w", err)
	}
	return h, nil
}

// eventSelection chooses, among events, those that go into a histogram.
type eventSelection struct {
	conditions url.Values // that the source of the events can judge
	families   []string
	results    []string
}

func newEventSelection(s url.Values) (eventSelection, error) {
	chosen := eventSelection{conditions: url.Values{}, families: s["family"], results: s["result"]}
	var filter api.EventFilter
	for name, values := range s {
		var err error
		switch name {
		case "family", "kind":
			var q api.HistogramQuery
			err = q.Set(name, values)
		case "result":
			if err = filter.Set(name, values); slices.Contains(values, "timeout") {
				err = errors.New("a timeout has no duration")
			}
		default:
			err = filter.Set(name, values)
		}
		if err != nil {
			return chosen, fmt.Errorf("%s=%s: %w", name, strings.Join(values, ","), err)
		}
		if name != "family" && name != "result" {
			chosen.conditions[name] = values
		}
	}
	return chosen, nil
}

// has reports whether an event that meets the conditions belongs in.
func (s *eventSelection) has(e *flows.Event) bool {
	family := "ipv6"
	if e.Source.Addr().Is4() {
		family = "ipv4"
	}
	return e.Exchange() && e.Result != flows.ResultTimeout &&
		(len(s.families) == 0 || slices.Contains(s.families, family)) &&
		(len(s.results) == 0 || slices.Contains(s.results, e.ResultName()) || slices.Contains(s.results, e.HistogramResult()))
}

// eventMeter makes a histogram of events: what is past at the first reading, if
// that is wanted, and what comes from then on.
type eventMeter struct {
	source       source.Source
	selection    eventSelection
	past, future bool

	following bool
	mu        sync.Mutex // guards the rest
	histogram flows.Histogram
	failed    error
}

func (m *eventMeter) read(ctx context.Context) (flows.Histogram, error) {
	if !m.following {
		m.following = true
		if err := m.begin(ctx); err != nil {
			return flows.Histogram{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.histogram, m.failed
}

// begin counts what is past, and returns when what comes is being counted.
func (m *eventMeter) begin(ctx context.Context) error {
	if m.past {
		limit := api.RecentMax
		if m.source.Remote() {
			limit = source.Unlimited
		}
		if err := m.source.Events(ctx, source.Request{Conditions: m.selection.conditions, Limit: limit}, m.add); err != nil {
			return err
		}
	}
	if !m.future {
		return nil
	}
	conditions := maps.Clone(m.selection.conditions)
	conditions.Del("since") // that is past
	ended, err := source.Follow(ctx, m.source, source.Request{Conditions: conditions}, m.add)
	go func() {
		err := <-ended
		m.mu.Lock()
		defer m.mu.Unlock()
		m.failed = err
	}()
	return err
}

func (m *eventMeter) add(one *source.Report) error {
	if !m.selection.has(&one.Event) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.histogram.Add(one.Event.Duration)
	return nil
}
