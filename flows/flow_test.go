package flows

import (
	"hash/fnv"
	"net/netip"
	"testing"
)

// reversed is the same exchange with its ends swapped.
func reversed(e Event) Event {
	e.Source, e.Destination = e.Destination, e.Source
	return e
}

func TestFlowHash(t *testing.T) {
	e := tcpSample()
	if got := e.FlowHash(); got != 0xb34d2359f30fd5e0 {
		t.Errorf("flow hash %x", got)
	}
	for _, s := range samples() {
		if r := reversed(s.event); s.event.FlowHash() != r.FlowHash() {
			t.Errorf("%s: the directions differ", s.name)
		}
	}
	udp := tcpSample()
	udp.Kind = KindUDP
	if e.FlowHash() == udp.FlowHash() {
		t.Error("TCP and UDP have the same flow hash")
	}
}

func TestFNV(t *testing.T) {
	for _, data := range []string{"", "a", "foobar", "\x00\xff"} {
		h := fnv.New64a()
		h.Write([]byte(data))
		if got := fnv1a(fnvBasis, []byte(data)); got != h.Sum64() {
			t.Errorf("%q: %x, want %x", data, got, h.Sum64())
		}
	}
}

// The vectors that the specification publishes for the protocols flatd knows
// (corelight/community-id-spec, baseline_deflt.json; seed 0).
func TestCommunityID(t *testing.T) {
	tests := []struct {
		kind        Kind
		source      string
		sport       uint16
		destination string
		dport       uint16
		want        string
	}{
		{KindTCP, "128.232.110.120", 34855, "66.35.250.204", 80, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
		{KindTCP, "2001:470:e5bf:dead:4957:2174:e82c:4887", 63943, "2607:f8b0:400c:c03::1a", 25, "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4="},
		{KindUDP, "192.168.1.52", 54585, "8.8.8.8", 53, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="},
		{KindDNS, "192.168.1.52", 54585, "8.8.8.8", 53, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="},
		{KindTCP, "192.0.2.10", 43210, "198.51.100.20", 443, "1:DEWBuasXCvudQRwPRd/nZA0xMsA="},
	}
	for _, test := range tests {
		e := Event{
			Kind:        test.kind,
			Source:      netip.AddrPortFrom(netip.MustParseAddr(test.source), test.sport),
			Destination: netip.AddrPortFrom(netip.MustParseAddr(test.destination), test.dport),
		}
		r := reversed(e)
		if got := string(e.AppendCommunityID(nil)); got != test.want {
			t.Errorf("%v: got %s", test, got)
		}
		if got := string(r.AppendCommunityID(nil)); got != test.want {
			t.Errorf("%v reversed: got %s", test, got)
		}
	}
}

// For an echo the specification takes the types of request and reply for the
// ports; the source of an event is who sent the request.
func TestCommunityIDEcho(t *testing.T) {
	for _, test := range []struct{ source, destination, want string }{
		{"192.168.0.89", "192.168.0.1", "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="},
		{"3ffe:507:0:1:200:86ff:fe05:80da", "3ffe:501:0:1001::2", "1:+TW+HtLHvV1xnGhV1lv7XoJrqQg="},
	} {
		e := Event{
			Kind:        KindICMP,
			Source:      netip.AddrPortFrom(netip.MustParseAddr(test.source), 0),
			Destination: netip.AddrPortFrom(netip.MustParseAddr(test.destination), 0),
		}
		if got := string(e.AppendCommunityID(nil)); got != test.want {
			t.Errorf("%v: got %s", test, got)
		}
	}
}

// The specification's neighbour solicitations: which end comes first decides,
// also where only the ports tell the two flows apart.
func TestCommunityIDPorts(t *testing.T) {
	a := netip.MustParseAddr("fe80::200:86ff:fe05:80da")
	b := netip.MustParseAddr("fe80::260:97ff:fe07:69ea")
	for want, ends := range map[string][2]netip.AddrPort{
		"1:dGHyGvjMfljg6Bppwm3bg0LO8TY=": {netip.AddrPortFrom(a, 135), netip.AddrPortFrom(b, 136)},
		"1:zavyT/cezQr1fmImYCwYnMXbgck=": {netip.AddrPortFrom(b, 135), netip.AddrPortFrom(a, 136)},
	} {
		if got := string(appendCommunityID(nil, ends[0], ends[1], protocolICMPv6)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got := string(appendCommunityID(nil, ends[1], ends[0], protocolICMPv6)); got != want {
			t.Errorf("reversed: got %s, want %s", got, want)
		}
	}
}
