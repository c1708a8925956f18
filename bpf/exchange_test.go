package bpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
)

const (
	established = 1 // RESULT_ESTABLISHED
	answered    = 2 // RESULT_ANSWERED
	refused     = 3 // RESULT_REFUSED
)

// Each case is packets as this host sees them, the records they must lead to
// and every counter that must move.
func TestExchanges(t *testing.T) {
	type packet struct {
		in    bool
		frame []byte
	}
	out := func(frame []byte) packet { return packet{false, frame} }
	in := func(frame []byte) packet { return packet{true, frame} }
	type want struct {
		kind, side, result uint8
		repeats            uint32
		rcode              uint8
	}

	k := openKernel(t)
	for _, family := range []struct {
		name string
		flow flow
	}{{"ipv4", flow4}, {"ipv6", flow6}} {
		f := family.flow
		b := f.back()
		tagged := flow{from: f.from, to: f.to, vlans: []uint16{7}}
		double := flow{from: f.from, to: f.to, vlans: []uint16{7, 8}}
		triple := flow{from: f.from, to: f.to, vlans: []uint16{7, 8, 9}}
		d := f.port(53)
		group := flow{from: f.from, to: netip.AddrPortFrom(netip.MustParseAddr("224.0.0.251"), 5353)}
		if f.from.Addr().Is6() {
			group.to = netip.AddrPortFrom(netip.MustParseAddr("ff02::fb"), 5353)
		}

		for _, c := range []struct {
			name    string
			packets []packet
			records []want
			counts  map[string]uint64
		}{
			{"tcp established, asking", []packet{out(f.syn(t, 100)), in(b.synAck(t, 101)), out(f.data(t)), in(b.data(t))},
				[]want{{kindTCP, SideClient, established, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp established, asked", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101))},
				[]want{{kindTCP, SideServer, established, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp refused", []packet{out(f.syn(t, 100)), in(b.rst(t, 101))},
				[]want{{kindTCP, SideClient, refused, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp repeated", []packet{out(f.syn(t, 100)), out(f.syn(t, 100)), out(f.syn(t, 100)), in(b.synAck(t, 101))},
				[]want{{kindTCP, SideClient, established, 2, 0}}, counts{"requests": 1, "finished": 1, "repeats": 2}},
			{"tcp answer sent again", []packet{out(f.syn(t, 100)), in(b.synAck(t, 101)), in(b.synAck(t, 101))},
				[]want{{kindTCP, SideClient, established, 0, 0}}, counts{"requests": 1, "finished": 1, "unmatched": 1}},
			{"tcp wrong ack", []packet{out(f.syn(t, 100)), in(b.synAck(t, 99)), in(b.rst(t, 500)), in(b.synAck(t, 101))},
				[]want{{kindTCP, SideClient, established, 0, 0}}, counts{"requests": 1, "finished": 1, "wrong_ack": 2}},
			{"tcp port used anew", []packet{out(f.syn(t, 100)), out(f.syn(t, 900)), in(b.synAck(t, 901))},
				[]want{{kindTCP, SideClient, established, 0, 0}}, counts{"requests": 2, "finished": 1, "replaced": 1}},
			{"tcp data in the SYN", []packet{out(f.tcp(t, func(h *layers.TCP) { h.SYN = true; h.Seq = 100 }, 1, 2, 3)), in(b.synAck(t, 104))},
				[]want{{kindTCP, SideClient, established, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp answer in the request's direction", []packet{out(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.synAck(t, 101))},
				nil, counts{"requests": 1, "unmatched": 2}},
			{"tcp established, tagged", []packet{out(tagged.syn(t, 100)), in(tagged.back().synAck(t, 101))},
				[]want{{kindTCP, SideClient, established, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp established, tagged twice", []packet{out(double.syn(t, 100)), in(double.back().synAck(t, 101))},
				[]want{{kindTCP, SideClient, established, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tagged three times", []packet{out(triple.syn(t, 100))}, nil, counts{"extensions": 1}},

			{"dns", []packet{out(d.dns(t, 5, nil)), in(d.back().dns(t, 5, func(h *layers.DNS) { h.QR = true }))},
				[]want{{2, SideClient, answered, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"dns two queries at once, nxdomain", []packet{out(d.dns(t, 5, nil)), out(d.dns(t, 6, nil)), out(d.dns(t, 6, nil)),
				in(d.back().dns(t, 6, func(h *layers.DNS) { h.QR = true; h.ResponseCode = 3 })),
				in(d.back().dns(t, 5, func(h *layers.DNS) { h.QR = true }))},
				[]want{{2, SideClient, answered, 1, 3}, {2, SideClient, answered, 0, 0}}, counts{"requests": 2, "finished": 2, "repeats": 1}},
			{"dns other transaction", []packet{in(d.dns(t, 5, nil)), out(d.back().dns(t, 6, func(h *layers.DNS) { h.QR = true }))},
				nil, counts{"requests": 1, "unmatched": 1}},
			{"dns too short", []packet{out(d.udp(t, 1, 2, 3))}, nil, counts{"dns_other": 1}},

			{"udp", []packet{out(f.udp(t, 1)), out(f.udp(t, 2)), in(b.udp(t, 3)), in(b.udp(t, 4)), out(f.udp(t, 5))},
				[]want{{3, SideClient, answered, 1, 0}}, counts{"requests": 1, "finished": 1, "repeats": 1, "flow": 2}},
			{"udp asked, empty datagrams", []packet{in(f.udp(t)), out(b.udp(t))},
				[]want{{3, SideServer, answered, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"udp to a group", []packet{out(group.udp(t, 1)), in(group.udp(t, 1))}, nil, counts{"multicast": 2}},

			{"ping", []packet{out(f.echo(t, 9, 1, false)), in(b.echo(t, 9, 2, true)), in(b.echo(t, 9, 1, true))},
				[]want{{4, SideClient, answered, 0, 0}}, counts{"requests": 1, "finished": 1, "unmatched": 1}},
			{"pinged", []packet{in(f.echo(t, 9, 1, false)), out(b.echo(t, 9, 1, true))},
				[]want{{4, SideServer, answered, 0, 0}}, counts{"requests": 1, "finished": 1}},

			{"established data", []packet{out(f.data(t)), in(b.data(t))}, nil, counts{}},
			{"cut short", []packet{out(cut(f.syn(t, 1), 8))}, nil, counts{"truncated": 1}},
		} {
			t.Run(family.name+" "+c.name, func(t *testing.T) {
				k.t = t
				k.clear()
				for _, p := range c.packets {
					if p.in {
						k.in(p.frame)
					} else {
						k.out(p.frame)
					}
				}
				got := k.records()
				if len(got) != len(c.records) {
					t.Fatalf("%d records, want %d: %+v", len(got), len(c.records), got)
				}
				for i, r := range got {
					if (want{r.Kind, r.Side, r.Result, r.Repeats, r.Rcode}) != c.records[i] {
						t.Errorf("record %d is %+v, want %+v", i, r, c.records[i])
					}
					checkEnds(t, r, f)
				}
				k.counted(c.counts)
			})
		}
	}
}

type counts = map[string]uint64

func cut(frame []byte, bytes int) []byte { return frame[:len(frame)-bytes] }

// checkEnds checks that source is who asked.
func checkEnds(t *testing.T, r kernelFlatRecord, f flow) {
	t.Helper()
	source, destination := netip.AddrFrom16(r.Source.Bytes).Unmap(), netip.AddrFrom16(r.Destination.Bytes).Unmap()
	if source != f.from.Addr() || destination != f.to.Addr() {
		t.Errorf("%s -> %s, want %s -> %s", source, destination, f.from.Addr(), f.to.Addr())
	}
	if r.Kind != 4 && networkOrder(r.SourcePort) != f.from.Port() {
		t.Errorf("source port %d, want %d", networkOrder(r.SourcePort), f.from.Port())
	}
	if r.Ttl != 57 {
		t.Errorf("ttl %d, want the remote's 57", r.Ttl)
	}
	if now := BootTime(); r.EndNs > now || r.EndNs+uint64(time.Minute) < now {
		t.Errorf("ended at %d, now is %d", r.EndNs, now)
	}
	if r.DurationNs == 0 || r.DurationNs > uint64(time.Minute) {
		t.Errorf("duration %d ns", r.DurationNs)
	}
}

func TestRecordCarriesTheQuestion(t *testing.T) {
	k := openKernel(t)
	f := flow6.port(53)
	k.out(f.dns(t, 5, nil))
	k.in(f.back().dns(t, 5, func(h *layers.DNS) { h.QR = true }))
	raw, _, ok := k.reader.Next()
	if !ok {
		t.Fatal("no record")
	}
	const want = "\x07example\x03com\x00\x00\x1c\x00\x01"
	if got := string(raw[96 : 96+len(want)]); got != want {
		t.Errorf("question %q, want %q", got, want)
	}
}

func TestSequenceHasNoGaps(t *testing.T) {
	k := openKernel(t)
	for i := range uint32(10) {
		k.out(flow4.syn(t, i))
		k.in(flow4.back().synAck(t, i+1))
	}
	records := k.records()
	if len(records) != 10 {
		t.Fatalf("%d records, want 10", len(records))
	}
	for i, r := range records {
		if r.Sequence != records[0].Sequence+uint64(i) {
			t.Errorf("record %d has sequence %d after %d", i, r.Sequence, records[0].Sequence)
		}
	}
}
