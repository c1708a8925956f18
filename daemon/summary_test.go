package daemon

import (
	"fmt"
	"net/http"
	"slices"
	"syscall"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
)

// summed is what the tests look at of a summary in JSON.
type summed struct {
	Interval, Count, Failed, Refused, Timeouts, NXDomain uint64
	Kind, Side                                           string
	P50, P90, P99, Max                                   int64
	TooFast                                              uint64 `json:"too_fast"`
	ResultOut                                            uint64 `json:"result_out"`
}

// sums are what exchanges come to, by kind and side, or by kind and destination.
type sums map[string]summed

// addEvent counts an exchange, as the summary ought to.
func (s sums) addEvent(key string, e event) {
	sum := s[key]
	sum.Count++
	sum.Max = max(sum.Max, e.Event.Duration)
	if e.Event.Outcome == "failure" {
		sum.Failed++
	}
	switch e.Flatd.Result {
	case "refused":
		sum.Refused++
	case "timeout":
		sum.Timeouts++
	case "nxdomain":
		sum.NXDomain++
	}
	s[key] = sum
}

// addSummary adds up what was told; a test may see more than one interval.
func (s sums) addSummary(t *testing.T, key string, told summed) {
	if told.P50 > told.P90 || told.P90 > told.P99 || told.P99 > told.Max || told.Max > 0 && told.P50 == 0 || told.Interval == 0 {
		t.Errorf("%s: impossible quantiles or interval: %+v", key, told)
	}
	sum := s[key]
	sum.Count += told.Count
	sum.Failed += told.Failed
	sum.Refused += told.Refused
	sum.Timeouts += told.Timeouts
	sum.NXDomain += told.NXDomain
	sum.Max = max(sum.Max, told.Max)
	s[key] = sum
}

func kindOf(e event) string { return e.Event.Dataset[len("flatd."):] }

// TestSummaryEqualsTheEvents lets a host live through everything, has the
// interval end by choosing another, and compares what the summaries tell with
// the events themselves.
func TestSummaryEqualsTheEvents(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"1s\"\nsummary = {interval = \"30m\"}\n")
	p := s.start(t)
	newTraffic(t, client, server).everything()
	p.waitN("everything", answeredOfEverything+silentOnClient, func(e event) bool { return e.Flatd.Side == "client" })

	s.config = "measure.timeout = \"1s\"\nsummary = {interval = \"1h\"}\n"
	s.write(t)
	if response, err := p.get(http.MethodPost, "/v1/reload"); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("reload: %+v, %v", response, err)
	}
	p.wait("the summary of pings", func(e event) bool { return e.Event.Action == "exchanges" && e.Flatd.Summary.Kind == "icmp" })
	if latest := p.summary(); len(latest) == 0 || latest[0].Event.Dataset != "flatd.summary" {
		t.Errorf("/v1/summary: %+v", latest)
	}

	want, got := sums{}, sums{}
	for _, e := range p.end(syscall.SIGTERM) {
		sum := e.Flatd.Summary
		switch {
		case e.Event.Action == "exchanges":
			got.addSummary(t, sum.Kind+" "+sum.Side, sum)
		case e.Event.Action == "destination":
			got.addSummary(t, fmt.Sprint(sum.Kind, e.Destination), sum)
		case e.Flatd.Side != "":
			want.addEvent(kindOf(e)+" "+e.Flatd.Side, e)
			if e.Flatd.Side == "client" {
				want.addEvent(fmt.Sprint(kindOf(e), e.Destination), e)
			}
		}
	}
	for key, w := range want {
		if got[key] != w {
			t.Errorf("%s:\nsummary %+v\nevents  %+v", key, got[key], w)
		}
	}
	if len(got) != len(want) || len(want) < 4+8 {
		t.Errorf("%d sums of %d", len(got), len(want))
	}
}

// summary asks for the latest summary.
func (p *process) summary() (events []event) {
	p.t.Helper()
	p.ask("/v1/summary", &events)
	return events
}

// What the filter leaves out has no event, and is told in the last summary,
// which comes when flatd stops.
func TestSummaryTellsWhatWasFiltered(t *testing.T) {
	client, server := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "filter.min_duration = \"9s\"\n").start(t)
	tr := newTraffic(t, client, server)
	if events := p.summary(); len(events) != 0 {
		t.Errorf("before anything happened /v1/summary has %+v", events)
	}
	const fast, refused = 7, 2
	for range fast {
		tr.connect(server.V4)
	}
	for range refused {
		tr.connectRefused(server.V4)
	}
	var tooFast, failed uint64
	for _, e := range p.end(syscall.SIGTERM) {
		tooFast += e.Flatd.Summary.TooFast
		if e.Event.Action == "exchanges" {
			failed += e.Flatd.Summary.Failed
		}
	}
	if tooFast != fast || failed != refused {
		t.Errorf("%d too fast and %d failed, want %d and %d", tooFast, failed, fast, refused)
	}
}

// Whether the kernel or the sweep finds a result, only those asked for are told.
func TestResultsNotAskedForAreLeftOut(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"200ms\"\nfilter.results = [\"refused\"]\n")
	p := s.start(t)
	tr := newTraffic(t, client, server)
	tr.connect(server.V4)
	tr.connectRefused(server.V4)
	conn, err := dial(client, "udp", fmt.Sprintf("%s:%d", server.V4, silentPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if b := booksBalance(t, p).Books; b.Finished != 2 || b.ResultOut != 2 || b.TimedOut != 1 {
		t.Errorf("books %+v", b)
	}
	var results []string
	var leftOut uint64
	for _, e := range p.end(syscall.SIGTERM) {
		leftOut += e.Flatd.Summary.ResultOut
		if e.Event.Action != "books" && e.Flatd.Result != "" {
			results = append(results, e.Flatd.Result)
		}
	}
	if !slices.Equal(results, []string{"refused"}) || leftOut != 2 {
		t.Errorf("results %q, and %d left out, want 2", results, leftOut)
	}
}
