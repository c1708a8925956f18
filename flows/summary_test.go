package flows

import (
	"net/netip"
	"testing"
	"time"
)

// One exchange of each result, and what the summary of them all has to say.
func TestSummaryAdd(t *testing.T) {
	dns := func(rcode uint16) Event { return with(dnsSample(), func(e *Event) { e.DNS.RCode = rcode }) }
	var got Summary
	for _, e := range []Event{
		tcpSample(), udpSample(), icmpSample(), dnsSample(),
		with(tcpSample(), func(e *Event) { e.Result = ResultRefused }),
		with(tcpSample(), func(e *Event) { e.Slow, e.Duration, e.Retransmits = true, 7*time.Second, 2 }),
		timeoutSample(), // with 3 retransmits
		dns(1), dns(2), dns(3), dns(3), dns(5), dns(9),
	} {
		got.Add(&e)
	}
	want := Summary{
		Count: 13, Failed: 8, Refused: 2, Timeouts: 1, NXDomain: 2, ServFail: 1, OtherFailures: 2,
		Slow: 1, Retransmits: 5, Max: 7 * time.Second,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Receivers drop what has an id that they have seen.
func TestSummaryIDs(t *testing.T) {
	base := summarySample()
	seen := map[string]string{}
	for name, e := range map[string]Event{
		"tcp client":  base,
		"tcp server":  with(base, func(e *Event) { e.Side = SideServer }),
		"udp client":  summaryOf(Summary{Scope: ScopeExchanges, Kind: KindUDP}),
		"books":       with(summaryOf(Summary{Scope: ScopeBooks}), func(e *Event) { e.Side = 0 }),
		"later":       with(base, func(e *Event) { e.End++ }),
		"destination": with(base, func(e *Event) { e.Destination = netip.MustParseAddrPort("192.0.2.1:80") }),
		"other port":  with(base, func(e *Event) { e.Destination = netip.MustParseAddrPort("192.0.2.1:81") }),
	} {
		id := string(testHost.AppendID(nil, &e))
		if other, taken := seen[id]; taken {
			t.Errorf("%s and %s have the same id, %s", name, other, id)
		}
		seen[id] = name
	}
	again := summarySample()
	if seen[string(testHost.AppendID(nil, &again))] != "tcp client" {
		t.Error("the same summary has another id")
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "1,000", 12_345: "12,345", 123_456: "123,456", 1_234_567: "1,234,567",
		1<<64 - 1: "18,446,744,073,709,551,615",
	} {
		if got := string(appendGrouped(nil, n)); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
