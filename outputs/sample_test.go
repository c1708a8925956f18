package outputs

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
)

var testHost = &flows.Host{Name: "web1.example.com", BootID: "6f1c0d2e"}

func thisHost() *flows.Host { return testHost }

// sample is exchange n: a TCP handshake that went well.
func sample(n uint64) *flows.Event {
	return &flows.Event{
		Kind: flows.KindTCP, Side: flows.SideClient, Result: flows.ResultEstablished,
		Time: time.Date(2026, 11, 22, 13, 0, 0, int(n), time.UTC), End: n,
		Duration: 1234567, RTT: 1234567, HasRTT: true,
		Source:      netip.MustParseAddrPort("192.0.2.10:43210"),
		Destination: netip.MustParseAddrPort("198.51.100.20:443"),
		Interface:   flows.Interface{Index: 2, Name: "eth0"}, Facts: flows.Facts{TTL: 57},
		Sequence: n,
	}
}

func samples(first, last uint64) (events []*flows.Event) {
	for n := first; n <= last; n++ {
		events = append(events, sample(n))
	}
	return events
}

func refused(n uint64) *flows.Event {
	e := sample(n)
	e.Result, e.RTT, e.HasRTT = flows.ResultRefused, 0, false
	return e
}

func slow(n uint64) *flows.Event {
	e := sample(n)
	e.Slow = true
	return e
}

func status(message string) *flows.Event {
	return &flows.Event{
		Kind: flows.KindStatus, Time: time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC), End: 99,
		Status: &flows.Status{Action: flows.ActionStart, Message: message},
	}
}

func summary() *flows.Event {
	return &flows.Event{
		Kind: flows.KindSummary, Side: flows.SideClient, Time: time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC), End: 99,
		Summary: &flows.Summary{Scope: flows.ScopeExchanges, Kind: flows.KindTCP, Interval: time.Minute, Count: 7},
	}
}

// missing skips a test for want of something, except where all of it ought to
// be there.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
