package flows

import (
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestText(t *testing.T) {
	dns := func(change func(*Event)) Event { return with(dnsSample(), change) }
	tests := []struct {
		event Event
		want  string
	}{
		{tcpSample(), "tcp 192.0.2.10:43210 -> 198.51.100.20:443 established in 1.23 ms"},
		{timeoutSample(), "tcp 192.0.2.10:43210 -> 198.51.100.20:443 timed out: no answer within 10s (3 retransmits)"},
		{icmpSample(), "icmp 192.0.2.1 -> 192.0.2.2 answered in 81 µs"},
		{udpSample(), "udp [2001:db8::10]:50000 -> [2001:db8:1::20]:443 answered in 20.5 ms"},
		{with(udpSample(), func(e *Event) { e.QUIC = true }), "quic [2001:db8::10]:50000 -> [2001:db8:1::20]:443 answered in 20.5 ms"},
		{dnsSample(), "dns 192.0.2.10:33333 -> 198.51.100.53:53 A example.com noerror in 12.3 ms"},
		{dns(func(e *Event) { e.DNS = dnsOf(1, 2, question(28)) }), "dns 192.0.2.10:33333 -> 198.51.100.53:53 AAAA . servfail in 12.3 ms"},
		{dns(func(e *Event) { e.DNS = DNS{RCode: 5} }), "dns 192.0.2.10:33333 -> 198.51.100.53:53 refused in 12.3 ms"},
		{with(tcpSample(), func(e *Event) { e.Side, e.Retransmits = SideServer, 1 }),
			"tcp 192.0.2.10:43210 -> 198.51.100.20:443 established in 1.23 ms (1 retransmit, server side)"},
		{with(tcpSample(), func(e *Event) { e.Side, e.Result, e.Duration = SideServer, ResultRefused, 0 }),
			"tcp 192.0.2.10:43210 -> 198.51.100.20:443 refused (server side)"},
		{with(tcpSample(), func(e *Event) { e.Late, e.Duration, e.Retransmits = true, 12_300_000_000, 4 }),
			"tcp 192.0.2.10:43210 -> 198.51.100.20:443 established in 12.3 s, after its timeout was reported (4 retransmits)"},
		{with(tcpSample(), func(e *Event) {
			e.NATSource, e.NATDestination = netip.MustParseAddrPort("172.30.0.2:39106"), netip.MustParseAddrPort("[::1]:80")
		}), "tcp 192.0.2.10:43210 -> 198.51.100.20:443 established in 1.23 ms (source translated to 172.30.0.2:39106, destination translated to [::1]:80)"},
		{with(icmpSample(), func(e *Event) { e.NATSource = netip.MustParseAddrPort("172.30.0.2:0") }),
			"icmp 192.0.2.1 -> 192.0.2.2 answered in 81 µs (source translated to 172.30.0.2)"},
		{statusSample(ActionStart, "measuring", 0), "measuring"},
		{summarySample(), "tcp client: 1,234 exchanges in 60s, 3 refused, 1 timed out; p50 1.2 ms, p90 2.13 ms, p99 9 ms, max 12.3 ms; 5 retransmits"},
		{summaryOf(Summary{Scope: ScopeExchanges, Interval: 59_960_000_000, Kind: KindUDP, Count: 1, Slow: 1, Retransmits: 1}),
			"udp client: 1 exchange in 60s, 1 slow; 1 retransmit"},
		{with(summaryOf(Summary{Scope: ScopeDestination, Interval: 10 * time.Second, Kind: KindDNS, Count: 4, NXDomain: 2, ServFail: 1, OtherFailures: 1}),
			func(e *Event) { e.Destination = netip.MustParseAddrPort("[2001:db8::53]:53") }),
			"dns to [2001:db8::53]:53: 4 exchanges in 10s, 2 nxdomain, 1 servfail, 1 failed otherwise"},
		{with(summaryOf(Summary{Scope: ScopeDestination, Interval: time.Hour, Kind: KindICMP, Count: 9, Unreachable: 9}),
			func(e *Event) { e.Destination = netip.MustParseAddrPort("192.0.2.1:0") }),
			"icmp to 192.0.2.1: 9 exchanges in 3600s, 9 unreachable"},
		{summaryOf(Summary{Scope: ScopeBooks, Interval: time.Minute, Withheld: 1_000_000, Dropped: 2, ResultOut: 7, TooFast: 3, SampledOut: 4, RingFull: 5, HalfOpen: 8, Others: 6}),
			"left out in 60s: 1,000,000 withheld by outputs, 2 lost by outputs, 7 of results not asked for, 3 too fast to report, 4 sampled out, 5 lost to a full ring, 8 attempts from outside half open, 6 to destinations beyond the table"},
		{summaryOf(Summary{Scope: ScopeBooks, Interval: time.Minute}), "left out in 60s"},
	}
	for _, test := range tests {
		if got := string(AppendText(nil, &test.event)); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

func TestDuration(t *testing.T) {
	tests := map[time.Duration]string{
		1:                      "1 ns",
		999:                    "999 ns",
		1000:                   "1 µs",
		1234:                   "1.23 µs",
		81_000:                 "81 µs",
		81_450:                 "81.5 µs",
		999_499:                "999 µs",
		999_500:                "1 ms",
		1_005_000:              "1.01 ms",
		12_345_678:             "12.3 ms",
		999_999_999:            "1 s",
		1_500 * 1e6:            "1.5 s",
		90 * time.Second:       "90 s",
		2 * time.Hour:          "7200 s",
		math.MaxInt64:          "9220000000 s",
		-time.Second:           "-1000000000 ns",
		100_100 * 1e3:          "100 ms",
		101 * time.Millisecond: "101 ms",
	}
	for d, want := range tests {
		if got := string(appendDuration(nil, d, " ")); got != want {
			t.Errorf("%d ns: got %q, want %q", int64(d), got, want)
		}
	}
}

func TestLine(t *testing.T) {
	tests := []struct {
		event Event
		want  string
	}{
		{tcpSample(), "14:00:00.123  tcp     established  1.23 ms  192.0.2.10:43210 -> 198.51.100.20:443           eth0"},
		{icmpSample(), "14:00:00.123  icmp    answered       81 µs  192.0.2.1 -> 192.0.2.2                          eth0"},
		{timeoutSample(), "14:00:00.123  tcp     timeout         10 s  192.0.2.10:43210 -> 198.51.100.20:443           eth0 (3 retransmits)"},
		{with(icmpSample(), func(e *Event) { e.Late = true }),
			"14:00:00.123  icmp    answered       81 µs  192.0.2.1 -> 192.0.2.2                          eth0 (late)"},
		{dnsSample(), "14:00:00.123  dns     noerror      12.3 ms  192.0.2.10:33333 -> 198.51.100.53:53            eth0  A example.com"},
		{statusSample(ActionStart, "measuring", 0), "14:00:00.123  status  start                 measuring"},
		{summaryOf(Summary{Scope: ScopeExchanges, Interval: time.Minute, Kind: KindTCP, Count: 2}),
			"14:00:00.123  tcp     summary               tcp client: 2 exchanges in 60s"},
		{summaryOf(Summary{Scope: ScopeBooks, Interval: time.Minute, Withheld: 2}),
			"14:00:00.123  flatd   summary               left out in 60s: 2 withheld by outputs"},
	}
	for _, test := range tests {
		if got := string(testHost.AppendLine(nil, &test.event, false)); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// Whatever the kind of an IPv4 exchange, its columns begin at the same place.
func TestLineColumns(t *testing.T) {
	tcp, icmp, status := tcpSample(), icmpSample(), statusSample(ActionLoss, "192", 1)
	column := func(e *Event, text string) int {
		line := string(testHost.AppendLine(nil, e, false))
		return strings.Index(strings.ReplaceAll(line, "µ", "u"), text)
	}
	if a, b, c := column(&tcp, "192"), column(&icmp, "192"), column(&status, "192"); a != b || b != c {
		t.Errorf("endpoints at %d, %d, %d", a, b, c)
	}
	if a, b := column(&tcp, "eth0"), column(&icmp, "eth0"); a != b {
		t.Errorf("interface at %d, %d", a, b)
	}
}

func TestLineColor(t *testing.T) {
	refused := with(tcpSample(), func(e *Event) { e.Result = ResultRefused })
	tcp, timeout := tcpSample(), timeoutSample()
	for e, color := range map[*Event]string{&tcp: colorGreen, &refused: colorYellow, &timeout: colorRed} {
		line := string(testHost.AppendLine(nil, e, true))
		if !strings.Contains(line, color) {
			t.Errorf("no %q in %q", color, line)
		}
		plain := strings.NewReplacer(color, "", colorReset, "").Replace(line)
		if want := string(testHost.AppendLine(nil, e, false)); plain != want {
			t.Errorf("color changes more than the color: %q, %q", plain, want)
		}
	}
}

// An event that nobody has filled must not bring anything down.
func TestZeroEvent(t *testing.T) {
	for _, e := range []Event{{}, {Kind: KindStatus}, {Kind: KindSummary}, {Kind: KindTCP}, {Kind: KindICMP, Source: netip.AddrPort{}}} {
		parseJSON(t, testHost.AppendJSON(nil, &e))
		checkJournal(t, testHost.AppendJournal(nil, &e))
		checkPrintable(t, AppendText(nil, &e))
		checkPrintable(t, testHost.AppendLine(nil, &e, false))
	}
}
