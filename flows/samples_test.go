package flows

import (
	"net/netip"
	"os"
	"testing"
	"time"
)

// AppendLine shows local time; let that be one that is neither the host's nor UTC.
func TestMain(m *testing.M) {
	time.Local = time.FixedZone("test", 3600)
	os.Exit(m.Run())
}

var testHost = Host{Name: "web1", BootID: "6f1c0d2e"}

var (
	testTime = time.Date(2026, 11, 22, 13, 0, 0, 123456789, time.UTC)
	eth0     = Interface{Index: 2, Name: "eth0"}
)

type sample struct {
	name  string
	event Event
}

// question returns the question section for labels, as a resolver sends it.
func question(qtype uint16, labels ...string) []byte {
	var b []byte
	for _, label := range labels {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, byte(qtype>>8), byte(qtype), 0, 1)
}

func dnsOf(id, rcode uint16, section []byte) DNS {
	d := DNS{ID: id, RCode: rcode}
	d.SetQuestion(section)
	return d
}

// tcpSample is the example of the event's description, whose flow hash and
// Community ID are known.
func tcpSample() Event {
	return Event{
		Kind: KindTCP, Side: SideClient, Result: ResultEstablished,
		Time: testTime, End: 7_000_000_000, Duration: 1234567, RTT: 1234567, HasRTT: true,
		Source:      netip.MustParseAddrPort("192.0.2.10:43210"),
		Destination: netip.MustParseAddrPort("198.51.100.20:443"),
		Interface:   eth0, VLAN: 7, Facts: Facts{TTL: 57}, Sequence: 107187,
	}
}

// unreachableSample is a connection that a router refuses to forward.
func unreachableSample() Event {
	e := tcpSample()
	e.Result, e.TTL, e.ICMPType, e.ICMPCode = ResultUnreachable, 0, 3, 1
	return e
}

// completedSample is a connection from outside.
func completedSample() Event {
	e := tcpSample()
	e.Side, e.RTT, e.HasRTT, e.ClientRTT = SideServer, 0, false, 21_000_000
	return e
}

func udpSample() Event {
	return Event{
		Kind: KindUDP, Side: SideClient, Result: ResultAnswered,
		Time: testTime, End: 7_000_000_000, Duration: 20_500_000, RTT: 20_500_000, HasRTT: true,
		Source:      netip.MustParseAddrPort("[2001:db8::10]:50000"),
		Destination: netip.MustParseAddrPort("[2001:db8:1::20]:443"),
		Interface:   eth0, Facts: Facts{TTL: 60}, Sequence: 107188,
	}
}

func dnsSample() Event {
	return Event{
		Kind: KindDNS, Side: SideClient, Result: ResultAnswered,
		Time: testTime, End: 7_000_000_000, Duration: 12_345_678, RTT: 12_345_678, HasRTT: true,
		Source:      netip.MustParseAddrPort("192.0.2.10:33333"),
		Destination: netip.MustParseAddrPort("198.51.100.53:53"),
		Interface:   eth0, Facts: Facts{TTL: 64}, Sequence: 107189,
		DNS: dnsOf(4660, 0, question(1, "example", "com")),
	}
}

func icmpSample() Event {
	return Event{
		Kind: KindICMP, Side: SideClient, Result: ResultAnswered,
		Time: testTime, End: 7_000_000_000, Duration: 81_000, RTT: 81_000, HasRTT: true,
		Source:      netip.MustParseAddrPort("192.0.2.1:0"),
		Destination: netip.MustParseAddrPort("192.0.2.2:0"),
		Interface:   eth0, Facts: Facts{TTL: 64}, Sequence: 107190,
	}
}

func timeoutSample() Event {
	e := tcpSample()
	e.Result, e.Limit, e.Retransmits = ResultTimeout, 10*time.Second, 3
	e.Sequence = 107191
	e.Duration, e.RTT, e.HasRTT, e.TTL = 0, 0, false, 0
	return e
}

func statusSample(action Action, message string, lost uint64) Event {
	return Event{
		Kind: KindStatus, Time: testTime, End: 0xbeef,
		Status: &Status{Action: action, Message: message, Lost: lost},
	}
}

func summarySample() Event {
	return Event{
		Kind: KindSummary, Side: SideClient, Time: testTime, End: 0xbeef,
		Summary: &Summary{Scope: ScopeExchanges, Interval: time.Minute, Kind: KindTCP,
			Count: 1234, Failed: 4, Refused: 3, Timeouts: 1, Slow: 0, Retransmits: 5,
			P50: 1_200_000, P90: 2_130_000, P99: 9_000_000, Max: 12_345_678},
	}
}

func summaryOf(s Summary) Event {
	return with(summarySample(), func(e *Event) { e.Summary = &s })
}

// with returns a copy that change has changed.
func with(e Event, change func(*Event)) Event {
	change(&e)
	return e
}

// ownedBy has the local socket made in a cgroup by a user.
func ownedBy(cgroup string, uid uint32) func(*Event) {
	return func(e *Event) { e.Cgroup, e.UID, e.Owner = 4711, uid, OwnerOf(cgroup) }
}

// samples has every kind, result and status, and what the wire and other
// programs may do to them.
func samples() []sample {
	return []sample{
		{"tcp", tcpSample()},
		{"tcp unreachable", unreachableSample()},
		{"tcp of a known process", with(tcpSample(), func(e *Event) {
			e.Process = Process{PID: 4321, comm: [16]byte{'c', 'u', 0x1b, 'r', 'l', '\n'}}
		})},
		{"tcp completed from outside", completedSample()},
		{"tcp refused, slow, replayed", with(tcpSample(), func(e *Event) {
			e.Result, e.Slow, e.Replayed, e.VLAN = ResultRefused, true, true, 0
		})},
		{"tcp server side, ambiguous", with(tcpSample(), func(e *Event) {
			e.Side, e.Ambiguous, e.HasRTT, e.RTT, e.Retransmits = SideServer, true, false, 0, 1
		})},
		{"tcp slow", with(tcpSample(), func(e *Event) { e.Slow, e.Duration = true, 2_500_000_000 })},
		{"tcp without durations or interface", with(tcpSample(), func(e *Event) {
			e.Duration, e.RTT, e.HasRTT, e.Interface, e.TTL = 0, 0, false, Interface{}, 0
		})},
		{"tcp timeout", timeoutSample()},
		{"tcp timeout of an earlier version", with(timeoutSample(), func(e *Event) { e.Request, e.Sequence = 0xa17, 0 })},
		{"tcp late, slow", with(tcpSample(), func(e *Event) {
			e.Late, e.Slow, e.Ambiguous, e.Duration, e.RTT, e.HasRTT, e.Retransmits = true, true, true, 12_345_678_901, 0, false, 3
		})},
		{"tcp with the source translated", with(tcpSample(), func(e *Event) {
			e.NATSource = netip.MustParseAddrPort("172.30.0.2:39106")
		})},
		{"udp with the destination translated, late", with(udpSample(), func(e *Event) {
			ownedBy("/system.slice/chronyd.service", 33)(e)
			e.Destination, e.NATDestination = netip.MustParseAddrPort("[::1]:123"), netip.MustParseAddrPort("[2001:db8::10]:1123")
			e.Late = true
		})},
		{"icmp with both ends translated", with(icmpSample(), func(e *Event) {
			e.NATSource, e.NATDestination = netip.MustParseAddrPort("172.30.0.2:0"), netip.MustParseAddrPort("172.30.0.3:0")
		})},
		{"udp", with(udpSample(), func(e *Event) { e.Destination = netip.MustParseAddrPort("[2001:db8:1::20]:123") })},
		{"quic", with(udpSample(), func(e *Event) { e.QUIC = true })},
		{"icmp", icmpSample()},
		{"icmpv6", with(icmpSample(), func(e *Event) {
			e.Source = netip.MustParseAddrPort("[2001:db8::1]:0")
			e.Destination = netip.MustParseAddrPort("[2001:db8::2]:0")
		})},
		{"dns", dnsSample()},
		{"dns nxdomain", with(dnsSample(), func(e *Event) { e.DNS = dnsOf(1, 3, question(28, "nowhere", "example")) })},
		{"dns unnamed code and type", with(dnsSample(), func(e *Event) { e.DNS = dnsOf(0, 11, question(65280)) })},
		{"dns badvers", with(dnsSample(), func(e *Event) { e.DNS.RCode = 16 })},
		{"dns badcookie", with(dnsSample(), func(e *Event) { e.DNS.RCode = 23 })},
		{"dns unnamed extended code", with(dnsSample(), func(e *Event) { e.DNS.RCode = 3841 })},
		{"dns truncated", with(dnsSample(), func(e *Event) { e.DNS.Truncated = true })},
		{"dns without question", with(dnsSample(), func(e *Event) { e.DNS = DNS{ID: 9} })},
		{"dns hashed", with(dnsSample(), func(e *Event) { e.DNS.HashNames = true })},
		{"dns hostile", with(dnsSample(), func(e *Event) {
			e.DNS = dnsOf(6, 0, question(16, "\x1b[2J\r\nPRIORITY=0\n", "a.b\\\"", "\xff\x00 é"))
		})},
		{"dns timeout", with(timeoutSample(), func(e *Event) {
			e.Kind, e.Limit, e.Retransmits, e.DNS = KindDNS, 2500*time.Millisecond, 1, DNS{ID: 7}
		})},
		{"tcp of a service", with(tcpSample(), ownedBy("/system.slice/nginx.service", 33))},
		{"tcp timeout of a user's unit, in a container", with(timeoutSample(), ownedBy(
			"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-"+containerID+".scope/container", 1000))},
		{"tcp server side, ambiguous, of a service", with(tcpSample(), func(e *Event) {
			ownedBy("/system.slice/system-web.slice/web@1.service/worker", 0)(e)
			e.Side, e.Ambiguous, e.HasRTT, e.RTT, e.Retransmits = SideServer, true, false, 0, 2
		})},
		{"icmp of the kernel", with(icmpSample(), ownedBy("/", 0))},
		{"udp of a cgroup that nobody knows", with(udpSample(), func(e *Event) { e.Cgroup, e.UID = 4711, 33 })},
		{"hostile cgroup", with(tcpSample(), ownedBy("/lxc/\x1b[31m\nX=\"\xff", 1000))},
		{"hostile interface", with(tcpSample(), func(e *Event) { e.Interface.Name = "e\x1b[31m\nX=\"\xff" })},
		{"start", statusSample(ActionStart, "measuring on eth0", 0)},
		{"stop", statusSample(ActionStop, "stopped after 12 events", 0)},
		{"attach", with(statusSample(ActionAttach, "attached to eth0", 0), func(e *Event) { e.Interface = eth0 })},
		{"detach", with(statusSample(ActionDetach, "detached from eth0", 0), func(e *Event) { e.Interface = eth0 })},
		{"summary", summarySample()},
		{"summary of a quiet kind, server side", with(summarySample(), func(e *Event) {
			e.Side, e.Summary = SideServer, &Summary{Scope: ScopeExchanges, Interval: time.Minute, Kind: KindICMP, Count: 1}
		})},
		{"summary of a destination", with(summarySample(), func(e *Event) {
			e.Destination = netip.MustParseAddrPort("[2001:db8::53]:53")
			e.Summary = &Summary{Scope: ScopeDestination, Interval: 59_900_000_000, Kind: KindDNS, Count: 7, Failed: 6,
				Refused: 1, Unreachable: 1, Timeouts: 1, NXDomain: 1, ServFail: 1, OtherFailures: 1, Slow: 2,
				P50: 900_000, P90: time.Second, P99: time.Second, Max: 1_500_000_000}
		})},
		{"summary of a destination without ports", with(summarySample(), func(e *Event) {
			e.Destination = netip.MustParseAddrPort("198.51.100.20:0")
			e.Summary = &Summary{Scope: ScopeDestination, Interval: time.Minute, Kind: KindICMP, Count: 2, Failed: 2, Timeouts: 2}
		})},
		{"summary of what was left out", with(summarySample(), func(e *Event) {
			e.Side = 0
			e.Summary = &Summary{Scope: ScopeBooks, Interval: time.Minute,
				Withheld: 1200, Dropped: 3, ResultOut: 8, TooFast: 4, SampledOut: 5, RingFull: 6, HalfOpen: 9, Others: 7}
		})},
		{"loss", statusSample(ActionLoss, "17 events lost: the ring was full", 17)},
		{"config hostile", statusSample(ActionConfig, "two\nlines \x1b]0;x\a \u202e \U000e0001 \xff", 0)},
	}
}
