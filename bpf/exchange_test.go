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
	unreachable = 4 // RESULT_UNREACHABLE
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
		w := f.port(444) // other places to await an ACK in; those of f fill up
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
			{"tcp established, asked", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.ack(t, 101)), in(f.ack(t, 101)), out(b.data(t))},
				[]want{{kindTCP, SideServer, established, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp asked, completed with data", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101)),
				in(f.tcp(t, func(h *layers.TCP) { h.ACK = true; h.Seq = 101; h.Ack = 8 }, 1, 2, 3))},
				[]want{{kindTCP, SideServer, established, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp asked, never completed", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101)), out(b.synAck(t, 101))},
				nil, counts{"requests": 1, "repeats": 1}},
			{"tcp asked, ACK of another number", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101)),
				in(f.tcp(t, func(h *layers.TCP) { h.ACK = true; h.Seq = 101; h.Ack = 9 }))},
				nil, counts{"requests": 1}},
			{"tcp asked, ACK from elsewhere in the stream", []packet{in(w.syn(t, 100)), out(w.back().synAck(t, 101)), in(w.ack(t, 7000))},
				nil, counts{"requests": 1}},
			{"tcp asked, nowhere to await the ACK", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101))},
				nil, counts{"requests": 1, "awaiting_full": 1}},
			{"tcp asked and refused", []packet{in(f.syn(t, 100)), out(b.rst(t, 101))},
				[]want{{kindTCP, SideServer, refused, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"tcp unreachable", []packet{out(f.syn(t, 100)), in(b.quote(t, 3, 1, f.syn(t, 100))), out(f.syn(t, 100)), in(b.synAck(t, 101))},
				[]want{{kindTCP, SideClient, unreachable, 0, 0}}, counts{"requests": 1, "finished": 1, "repeats": 1, "late": 1}},
			{"tcp unreachable, another attempt quoted", []packet{out(f.syn(t, 100)), in(b.quote(t, 3, 1, f.syn(t, 99)))},
				nil, counts{"requests": 1, "quote": 1}},
			{"tcp unreachable, told by this host", []packet{in(f.syn(t, 100)), out(b.quote(t, 3, 1, f.syn(t, 100)))},
				[]want{{kindTCP, SideServer, unreachable, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"udp unreachable", []packet{out(f.udp(t, 1)), in(b.quote(t, 3, 3, f.udp(t, 1))), out(f.udp(t, 2))},
				[]want{{3, SideClient, unreachable, 0, 0}}, counts{"requests": 1, "finished": 1, "repeats": 1}},
			{"dns unreachable", []packet{out(d.dns(t, 5, nil)), in(d.back().quote(t, 3, 3, d.dns(t, 5, nil)))},
				[]want{{2, SideClient, unreachable, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"ping unreachable", []packet{out(f.echo(t, 9, 1, false)), in(b.quote(t, 3, 1, f.echo(t, 9, 1, false)))},
				[]want{{4, SideClient, unreachable, 0, 0}}, counts{"requests": 1, "finished": 1}},
			{"mdns answered by one host", []packet{out(group.udp(t, 1)), in(flow{from: netip.AddrPortFrom(f.to.Addr(), 5353), to: f.from}.udp(t, 1))},
				nil, counts{"multicast": 2}},
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
	if r.Result != unreachable && r.Ttl != 57 {
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
	if got := string(raw[112 : 112+len(want)]); got != want {
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

func TestSimultaneousOpenIsTwoExchanges(t *testing.T) {
	k := openKernel(t)
	f, b := flow4, flow4.back()
	k.out(f.syn(t, 100))
	k.in(b.syn(t, 7))
	k.out(f.synAck(t, 8))
	k.in(b.synAck(t, 101))
	k.in(b.ack(t, 8))
	got := k.records()
	if len(got) != 2 || got[0].Side != SideClient || got[1].Side != SideServer {
		t.Fatalf("records %+v", got)
	}
	checkEnds(t, got[0], f)
	checkEnds(t, got[1], b)
	k.counted(counts{"requests": 2, "finished": 2})
}

func TestTheEchoedTimestampNamesTheSYN(t *testing.T) {
	k := openKernel(t)
	for _, c := range []struct {
		name         string
		echo         uint32
		rtt, guessed bool
		whole        bool // the first SYN was answered
	}{
		{"the latest", 3000, true, false, false},
		{"the first", 1000, true, false, true},
		{"one between", 2000, false, true, false},
		{"none", 0, false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			k.t = t
			for i, stamp := range []uint32{1000, 2000, 3000} {
				if i > 0 {
					time.Sleep(time.Millisecond) // so that the durations differ
				}
				k.out(flow4.stamped(t, 100, 0, stamp, 0))
			}
			k.in(flow4.back().stamped(t, 7, 101, 77, c.echo))
			r := k.records()[0]
			if got := r.Flags&1 != 0; got != c.rtt {
				t.Errorf("rtt known: %t, want %t", got, c.rtt)
			}
			if got := r.Flags&2 != 0; got != c.guessed {
				t.Errorf("ambiguous: %t, want %t", got, c.guessed)
			}
			if c.rtt && (r.RttNs == r.DurationNs) != c.whole {
				t.Errorf("rtt %d of %d ns", r.RttNs, r.DurationNs)
			}
		})
	}
}

func TestTheServersPartAndTheClients(t *testing.T) {
	k := openKernel(t)
	k.in(flow6.syn(t, 100))
	time.Sleep(time.Millisecond)
	k.out(flow6.back().synAck(t, 101))
	answered := BootTime()
	time.Sleep(5 * time.Millisecond)
	k.in(flow6.ack(t, 101))
	r := k.records()[0]
	if r.DurationNs < uint64(time.Millisecond) || r.EndNs > answered || r.ClientRttNs < uint64(5*time.Millisecond) {
		t.Errorf("duration %d ns, client rtt %d ns, end %d, answered before %d", r.DurationNs, r.ClientRttNs, r.EndNs, answered)
	}
}

func TestAQuestionOutlivesItsRequest(t *testing.T) {
	k := openKernel(t)
	const want = "\x07example\x03com\x00\x00\x1c\x00\x01"
	k.out(flow4.port(53).dns(t, 5, nil))
	var asked []byte
	if _, err := k.Sweep(BootTime()+uint64(time.Minute), time.Second, func(_ uint8, _, _, question []byte) { asked = question }); err != nil {
		t.Fatal(err)
	}
	if string(asked) != want {
		t.Errorf("the timeout asked %q, want %q", asked, want)
	}
	// An answer that leaves the question out.
	k.out(flow4.port(53).dns(t, 6, nil))
	k.in(flow4.port(53).back().dns(t, 6, func(h *layers.DNS) { h.QR, h.QDCount, h.Questions, h.ResponseCode = true, 0, nil, 2 }))
	raw, _, ok := k.reader.Next()
	if !ok || string(raw[112:112+len(want)]) != want {
		t.Errorf("the answer asked %q, want %q", raw[112:], want)
	}
}

func TestQUICByItsLongHeader(t *testing.T) {
	k := openKernel(t)
	initial := make([]byte, 1200)
	copy(initial, []byte{0xc3, 0, 0, 0, 1})
	for name, c := range map[string]struct {
		payload []byte
		quic    bool
	}{
		"initial":      {initial, true},
		"too short":    {initial[:1199], false},
		"short header": {append([]byte{0x43}, initial[1:]...), false},
		"negotiation":  {append([]byte{0xc3, 0, 0, 0, 0}, initial[5:]...), false},
	} {
		t.Run(name, func(t *testing.T) {
			k.t = t
			k.clear()
			k.out(flow4.udp(t, c.payload...))
			k.in(flow4.back().udp(t, 1))
			if got := k.records()[0].Flags&4 != 0; got != c.quic {
				t.Errorf("quic %t, want %t", got, c.quic)
			}
		})
	}
}
