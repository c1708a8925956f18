package pipeline

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/flows"
)

// noon is the middle of the tests' time.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// newRunning returns a summarizer whose interval of a minute began at noon.
func newRunning(named int) *summarizer {
	s := newSummarizer(config.Summary{Interval: time.Minute, Destinations: named})
	s.finish(noon, flows.Summary{})
	return s
}

func exchangeWith(kind flows.Kind, side flows.Side, result flows.Result, destination string, duration time.Duration) *flows.Event {
	return &flows.Event{Kind: kind, Side: side, Result: result, Duration: duration,
		Source: netip.MustParseAddrPort("192.0.2.1:40000"), Destination: netip.MustParseAddrPort(destination)}
}

func handshake(destination string, duration time.Duration) *flows.Event {
	return exchangeWith(flows.KindTCP, flows.SideClient, flows.ResultEstablished, destination, duration)
}

// Handshakes of 1 to 100 ms: the quantiles are the 50th, 90th and 99th.
func TestSummaryNumbers(t *testing.T) {
	s := newRunning(0)
	for i := range 100 {
		s.add(handshake("192.0.2.2:443", time.Duration(i+1)*time.Millisecond))
	}
	refusal := exchangeWith(flows.KindTCP, flows.SideClient, flows.ResultRefused, "192.0.2.2:444", 100*time.Microsecond)
	refusal.Retransmits = 2
	s.add(refusal)
	s.add(exchangeWith(flows.KindTCP, flows.SideClient, flows.ResultTimeout, "192.0.2.3:443", 0))
	s.add(exchangeWith(flows.KindICMP, flows.SideServer, flows.ResultAnswered, "192.0.2.1:0", 20*time.Microsecond))
	s.add(&flows.Event{Kind: flows.KindStatus, Status: &flows.Status{Action: flows.ActionLoss}})

	events := s.finish(noon.Add(61*time.Second), flows.Summary{Withheld: 3})
	if len(events) != 3 {
		t.Fatalf("%d events, want tcp, icmp and the books: %+v", len(events), events)
	}
	tcp, icmp, books := events[0], events[1], events[2]
	got := *tcp.Summary
	// 101 durations: 0.1 ms and 1 to 100 ms; so 50 % are within 50 ms.
	for name, q := range map[string]struct{ got, want time.Duration }{
		"p50": {got.P50, 50 * time.Millisecond}, "p90": {got.P90, 90 * time.Millisecond}, "p99": {got.P99, 99 * time.Millisecond},
	} {
		if q.got < q.want || q.got > q.want+q.want/64 { // upper bound of a bucket; 128 to a power of two
			t.Errorf("%s is %v, want %v or a bucket's width more", name, q.got, q.want)
		}
	}
	got.P50, got.P90, got.P99 = 0, 0, 0
	if want := (flows.Summary{Scope: flows.ScopeExchanges, Interval: 61 * time.Second, Kind: flows.KindTCP, Count: 102, Failed: 2,
		Refused: 1, Timeouts: 1, Retransmits: 2, Max: 100 * time.Millisecond}); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if tcp.Kind != flows.KindSummary || tcp.Side != flows.SideClient || tcp.Destination.IsValid() {
		t.Errorf("%+v", tcp)
	}
	// One value: every quantile is that, and not its bucket's bound.
	if s := icmp.Summary; icmp.Side != flows.SideServer || s.Count != 1 || s.P50 != 20*time.Microsecond || s.P99 != 20*time.Microsecond {
		t.Errorf("icmp server: %+v", s)
	}
	if want := (flows.Summary{Scope: flows.ScopeBooks, Interval: 61 * time.Second, Withheld: 3}); *books.Summary != want {
		t.Errorf("books: %+v", books.Summary)
	}
}

// Nothing of an interval is left in the next, nor anything of a quiet one told.
func TestSummaryBeginsAnew(t *testing.T) {
	s := newRunning(5)
	s.add(handshake("192.0.2.2:443", time.Millisecond))
	a := flows.Summary{Withheld: 1, Dropped: 2, ResultOut: 6, TooFast: 3, SampledOut: 4, RingFull: 5, HalfOpen: 7}
	if events := s.finish(noon.Add(time.Minute), a); len(events) != 3 {
		t.Fatalf("%+v", events)
	}
	if events := s.finish(noon.Add(2*time.Minute), a); len(events) != 0 {
		t.Errorf("a quiet interval has %+v", events)
	}
	s.add(handshake("192.0.2.9:443", time.Second))
	events := s.finish(noon.Add(3*time.Minute), flows.Summary{Withheld: 2, Dropped: 4, ResultOut: 12, TooFast: 6, SampledOut: 8, RingFull: 10, HalfOpen: 14})
	if len(events) != 3 {
		t.Fatalf("%+v", events)
	}
	for _, e := range events[:2] {
		if e.Summary.Count != 1 || e.Summary.Max != time.Second || e.Summary.P50 != time.Second {
			t.Errorf("%+v", e.Summary)
		}
	}
	want := flows.Summary{Scope: flows.ScopeBooks, Interval: time.Minute, Withheld: 1, Dropped: 2, ResultOut: 6, TooFast: 3, SampledOut: 4, RingFull: 5, HalfOpen: 7}
	if *events[2].Summary != want {
		t.Errorf("got  %+v\nwant %+v", events[2].Summary, want)
	}
}

// Each destination is named once, the busiest first, then the worst of the
// rest; those that are neither are not.
func TestSummaryDestinations(t *testing.T) {
	s := newRunning(2)
	for i := range 10 {
		for range i + 1 {
			s.add(handshake(fmt.Sprintf("192.0.2.%d:443", 10+i), time.Millisecond))
		}
	}
	fail := func(destination string, times int) {
		for range times {
			s.add(exchangeWith(flows.KindTCP, flows.SideClient, flows.ResultRefused, destination, time.Millisecond))
		}
	}
	fail("192.0.2.19:443", 1) // the busiest, which is not named twice
	fail("192.0.2.10:443", 3)
	fail("192.0.2.11:443", 1)
	slow := handshake("192.0.2.12:443", 2*time.Second)
	slow.Slow = true
	s.add(slow) // one trouble, as .11, but it took longer
	for range 50 {
		s.add(exchangeWith(flows.KindUDP, flows.SideServer, flows.ResultAnswered, "192.0.2.1:53", time.Millisecond))
	}
	// The same end, asked for something else.
	s.add(exchangeWith(flows.KindUDP, flows.SideClient, flows.ResultAnswered, "192.0.2.19:443", time.Millisecond))

	var got []string
	for _, e := range s.finish(noon.Add(time.Minute), flows.Summary{}) {
		if e.Summary.Scope == flows.ScopeDestination {
			got = append(got, fmt.Sprint(e.Summary.Kind, e.Destination, e.Summary.Count, e.Summary.Failed))
		}
	}
	want := []string{"tcp 192.0.2.19:443 11 1", "tcp 192.0.2.18:443 9 0", "tcp 192.0.2.10:443 4 3", "tcp 192.0.2.12:443 4 0"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// A host that asks the whole network does not make flatd grow: the books have
// what the table has no room for, and the sums are whole.
func TestSummaryIsBounded(t *testing.T) {
	const asked = 100_000
	s := newRunning(destinationsMax)
	for range 2 {
		e := handshake("10.0.0.0:80", time.Millisecond)
		for i := range asked {
			e.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
			s.add(e)
		}
		events := s.finish(noon, flows.Summary{})
		if sum := events[0].Summary; sum.Count != asked {
			t.Errorf("%d exchanges, want %d", sum.Count, asked)
		}
		if n := len(events) - 2; n != destinationsMax {
			t.Errorf("%d destinations, want %d", n, destinationsMax)
		}
		if books := events[len(events)-1].Summary; books.Others != asked-destinationsMax {
			t.Errorf("%d others, want %d", books.Others, asked-destinationsMax)
		}
		if len(s.destinations.counts) != destinationsMax {
			t.Errorf("the table has %d places", len(s.destinations.counts))
		}
	}
}

func TestSummaryMakesNoGarbage(t *testing.T) {
	s := newRunning(20)
	var events []*flows.Event
	for i := range 500 {
		events = append(events,
			handshake(fmt.Sprintf("192.0.2.%d:443", i%200), time.Duration(1+i*i)*time.Microsecond),
			exchangeWith(flows.KindDNS, flows.SideServer, flows.ResultTimeout, "[2001:db8::53]:53", 0))
	}
	feed := func() {
		for _, e := range events {
			s.add(e)
		}
	}
	feed()
	s.finish(noon, flows.Summary{}) // another interval uses the memory of the first
	if n := testing.AllocsPerRun(100, feed); n != 0 {
		t.Errorf("%v allocations for %d events", n, len(events))
	}
}

func TestSummaryIntervals(t *testing.T) {
	at := func(clock string) time.Time {
		d, err := time.Parse(time.TimeOnly, clock)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, test := range []struct {
		now      string
		interval time.Duration
		want     string
	}{
		{"12:00:00", time.Minute, "12:01:00"},
		{"12:00:01", time.Minute, "12:01:00"},
		{"12:34:56", 10 * time.Second, "12:35:00"},
		{"12:34:56", time.Hour, "13:00:00"},
		{"12:34:56", 15 * time.Minute, "12:45:00"},
	} {
		if got := nextEnd(at(test.now), test.interval); !got.Equal(at(test.want)) {
			t.Errorf("at %s every %v: %v, want %s", test.now, test.interval, got, test.want)
		}
	}

	s := newRunning(0)
	for elapsed, want := range map[time.Duration]bool{0: false, 59 * time.Second: false, time.Minute: true, time.Hour: true} {
		if s.due(noon.Add(elapsed)) != want {
			t.Errorf("due after %v: %t", elapsed, !want)
		}
	}
}

// A change of the interval ends the one that runs, and none is none.
func TestSummaryConfigured(t *testing.T) {
	s := newRunning(0)
	s.configure(config.Summary{Interval: time.Minute, Destinations: 3})
	if s.due(noon) {
		t.Error("due, though the interval is the same")
	}
	s.add(handshake("192.0.2.2:443", time.Second))
	s.configure(config.Summary{})
	if !s.due(noon) {
		t.Error("not due, though there are to be no intervals")
	}
	if events := s.finish(noon, flows.Summary{}); len(events) != 1 {
		t.Errorf("the last interval has %+v", events)
	}
	s.add(handshake("192.0.2.2:443", time.Second))
	if s.due(noon.Add(time.Hour)) {
		t.Error("due without intervals")
	}
	s.configure(config.Summary{Interval: time.Hour})
	if events := s.finish(noon, flows.Summary{Withheld: 1}); len(events) != 0 {
		t.Errorf("while there were no intervals: %+v", events)
	}
	if events := s.finish(noon, flows.Summary{Withheld: 1}); len(events) != 0 {
		t.Errorf("an interval without anything: %+v", events)
	}
}
