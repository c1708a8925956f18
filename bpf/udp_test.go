package bpf

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

func udpExchanges(t testing.TB, f flow) []exchange {
	b := f.back()
	one := client(ofUDP, answered)
	length := 2 // of the packet, in the IP header
	short := byte(20 + 7)
	if f.from.Addr().Is6() {
		length, short = 4, 7
	}
	return []exchange{
		{"answered", []packet{out(f.udp(t, 1)), in(b.udp(t, 2))},
			[]want{one}, counts{"requests": 1, "finished": 1}},
		{"asked", []packet{in(f.udp(t, 1)), out(b.udp(t, 2))},
			[]want{server(ofUDP, answered)}, counts{"requests": 1, "finished": 1}},
		{"empty datagrams", []packet{out(f.udp(t)), in(b.udp(t))},
			[]want{one}, counts{"requests": 1, "finished": 1}},
		{"a second datagram is no answer", []packet{out(f.udp(t, 1)), out(f.udp(t, 2)), in(b.udp(t, 3))},
			[]want{one.repeated(1)}, counts{"requests": 1, "finished": 1, "repeats": 1}},
		{"one exchange of a stream", []packet{out(f.udp(t, 1)), in(b.udp(t, 2)), in(b.udp(t, 3)), out(f.udp(t, 4)), in(b.udp(t, 5)), out(f.udp(t, 6))},
			[]want{one}, counts{"requests": 1, "finished": 1, "flow": 4}},
		{"one exchange of a stream from outside", []packet{in(f.udp(t, 1)), out(b.udp(t, 2)), out(b.udp(t, 3)), in(f.udp(t, 4))},
			[]want{server(ofUDP, answered)}, counts{"requests": 1, "finished": 1, "flow": 2}},
		{"from another port", []packet{out(f.udp(t, 1)), in(f.port(444).back().udp(t, 2))},
			nil, counts{"requests": 2}},
		{"two sockets", []packet{out(f.udp(t, 1)), out(f.sourcePort(43211).udp(t, 1)), in(f.sourcePort(43211).back().udp(t, 1)), in(b.udp(t, 1))},
			[]want{one, one}, counts{"requests": 2, "finished": 2}},
		{"the tunnel, not what is in it", []packet{out(f.port(4789).udp(t, append([]byte{8, 0, 0, 0, 0, 0, 7, 0}, f.syn(t, 100)...)...))},
			nil, counts{"requests": 1}},

		{"never answered", []packet{out(f.udp(t, 1)), timeout},
			[]want{client(ofUDP, timedOut)}, counts{"requests": 1, "timed_out": 1}},
		{"asked, never answered", []packet{in(f.udp(t, 1)), timeout},
			[]want{server(ofUDP, timedOut)}, counts{"requests": 1, "timed_out": 1}},
		{"answered too late", []packet{out(f.udp(t, 1)), timeout, in(b.udp(t, 2)), out(f.udp(t, 3)), in(b.udp(t, 4))},
			[]want{client(ofUDP, timedOut), one.tooLate()}, counts{"requests": 1, "timed_out": 1, "late": 1, "flow": 2}},
		// Only the first datagram after the timeout pays for a look at the request.
		{"sent again after the timeout, answered too late", []packet{out(f.udp(t, 1)), timeout, out(f.udp(t, 1)), out(f.udp(t, 1)), in(b.udp(t, 2))},
			[]want{client(ofUDP, timedOut), one.repeated(1).tooLate()}, counts{"requests": 1, "timed_out": 1, "repeats": 1, "flow": 1, "late": 1}},
		{"a stream that nobody answers", []packet{in(f.udp(t, 1)), timeout, in(f.udp(t, 3)), timeout, in(f.udp(t, 4))},
			[]want{server(ofUDP, timedOut)}, counts{"requests": 1, "timed_out": 1, "repeats": 1, "flow": 1}},

		{"to a group", []packet{out(f.group(9999).udp(t, 1)), in(f.group(9999).udp(t, 1))},
			nil, counts{"multicast": 2}},
		{"cut short", []packet{out(stump(f.udp(t), 7)), in(stump(f.udp(t), 0))}, nil, counts{"truncated": 2}},
		{"packet shorter than the header", []packet{out(patched(f.udp(t), length, 0, short))}, nil, counts{"malformed": 1}},
	}
}

// After the interval a flow is measured again.
func TestAUDPFlowIsNewAfterTheInterval(t *testing.T) {
	k := openKernel(t)
	exchange := func() {
		k.out(flow4.udp(t, 1))
		k.in(flow4.back().udp(t, 2))
	}
	exchange()
	exchange()
	k.counted(counts{"requests": 1, "finished": 1, "flow": 2})
	if err := k.Apply(Settings{UDPIdle: 20 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		time.Sleep(50 * time.Millisecond)
		exchange()
	}
	k.counted(counts{"requests": 2, "finished": 2})
	if got := k.records(); len(got) != 3 {
		t.Errorf("%d records, want 3: %+v", len(got), got)
	}
	k.balanced()
}

// RFC 9000, 17.2: the first datagram of a connection has a long header.
func TestQUICByItsLongHeader(t *testing.T) {
	k := openKernel(t)
	initial := make([]byte, 1200)
	copy(initial, []byte{0xc3, 0, 0, 0, 1})
	with := func(octets ...byte) []byte {
		changed := bytes.Clone(initial)
		copy(changed, octets)
		return changed
	}
	for name, c := range map[string]struct {
		payload []byte
		quic    bool
	}{
		"version 1":      {initial, true},
		"version 2":      {with(0xd3, 0x6b, 0x33, 0x43, 0xcf), true},
		"draft 29":       {with(0xc3, 0xff, 0, 0, 29), true},
		"too short":      {initial[:1199], false},
		"short header":   {with(0x43), false},
		"no fixed bit":   {with(0x83), false},
		"negotiation":    {with(0xc3, 0, 0, 0, 0), false},
		"another number": {with(0xc3, 1, 2, 3, 4), false},
	} {
		t.Run(name, func(t *testing.T) {
			k.t = t
			for _, f := range []flow{flow4, flow6} {
				k.clear()
				k.out(f.udp(t, c.payload...))
				k.in(f.back().udp(t, 1))
				if got := k.one().Flags&4 != 0; got != c.quic {
					t.Errorf("quic %t, want %t", got, c.quic)
				}
			}
		})
	}
}

// A flow whose request found no room in the table is known all the same: that its
// other half, or what comes after it, is a request would be an invention.
func TestAUDPFlowWithoutRoomIsNotInvented(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openFuzzed(t, o).kernel
		for _, direction := range []struct {
			name        string
			there, back func([]byte)
		}{{"ours", k.out, k.in}, {"theirs", k.in, k.out}} {
			t.Run(direction.name, func(t *testing.T) {
				k.t = t
				k.clear()
				f := flow4
				var requests uint64
				for full := k.count(PendingFull); k.count(PendingFull) == full; requests++ {
					if requests == 400 {
						t.Fatal("a table of 16 takes 400 requests")
					}
					f = flow4.port(uint16(2000 + requests))
					direction.there(f.udp(t, 1))
				}
				k.counted(counts{"requests": requests, "pending_full": 1})
				direction.back(f.back().udp(t, 2))
				direction.there(f.udp(t, 3))
				direction.back(f.back().udp(t, 4))
				k.counted(counts{"rescued": 1, "flow": 2})
				k.one()
			})
		}
	})
}

// Where a set is full of flows that go on, one makes room, which is counted; an
// exchange is one all the same.
func TestAUDPFlowMakesRoomForAnother(t *testing.T) {
	k := openKernel(t)
	k.crowdFlows()
	k.out(flow4.udp(t, 1))
	k.in(flow4.back().udp(t, 2))
	k.in(flow4.back().udp(t, 3))
	k.in(flow6.udp(t, 1))
	k.out(flow6.back().udp(t, 2))
	k.out(flow6.back().udp(t, 3))
	k.counted(counts{"requests": 2, "finished": 2, "flow": 2, "flows_forgotten": 2})
	if got := k.records(); len(got) != 2 {
		t.Errorf("%d records of two exchanges: %+v", len(got), got)
	}
}

// A stream is one exchange for as long as it goes on, from either end.
func TestAStreamStaysOneExchange(t *testing.T) {
	k := openKernel(t)
	k.out(flow4.udp(t, 1))
	k.in(flow4.back().udp(t, 2))
	for range 3 {
		k.age(20 * time.Second) // of the 30 after which it is idle
		k.out(flow4.udp(t, 3))
		k.age(20 * time.Second)
		k.in(flow4.back().udp(t, 4))
	}
	k.counted(counts{"requests": 1, "finished": 1, "flow": 6})
	k.age(40 * time.Second)
	k.out(flow4.udp(t, 5))
	k.counted(counts{"requests": 1})
}

// A datagram that follows before the answer is the request sent again: what follows within
// a unit of time is noted once.
func TestAFlowSentAgainIsNotedOnceAUnit(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		k.out(flow4.udp(t, 1))
		const later = 3
		for range later {
			k.age(50 * time.Millisecond)
			for range 20 {
				k.out(flow4.udp(t, 1))
			}
		}
		k.in(flow4.back().udp(t, 2))
		c, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		// A unit may end in between.
		if m := c.Map(); m["repeats"] < later || m["repeats"] > 2*later || m["repeats"]+m["flow"] != 20*later {
			t.Errorf("%d repeats and %d others of a flow", m["repeats"], m["flow"])
		} else if r := k.one(); uint64(r.Repeats) != m["repeats"] || r.Flags&2 == 0 {
			t.Errorf("record %+v after %d repeats", r, m["repeats"])
		}
		k.balanced()
	})
}

// A flow that was idle is new, from whichever end it then begins, and as often.
func TestAnIdleFlowBeginsAnew(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		const times = 20
		for i := range times {
			k.age(time.Minute)
			ask, tell := k.out, k.in
			if i%3 == 2 {
				ask, tell = k.in, k.out
			}
			ask(flow6.udp(t, 1))
			tell(flow6.back().udp(t, 2))
			ask(flow6.udp(t, 3))
		}
		k.counted(counts{"requests": times, "finished": times, "flow": times})
		k.balanced()
	})
}

// A flow is its five-tuple's, whichever others share its set.
func TestUDPFlowsAreToldApart(t *testing.T) {
	k := openKernel(t)
	const flows = 1000 // so few that hardly ever five of them share a set
	each := func(do func(flow)) {
		for i := range uint16(flows) {
			do(flow4.sourcePort(10000 + i))
		}
	}
	each(func(f flow) { k.out(f.udp(t, 1)) })
	each(func(f flow) { k.in(f.back().udp(t, 2)) })
	each(func(f flow) { k.out(f.udp(t, 3)) })
	k.counted(counts{"requests": flows, "finished": flows, "flow": flows})
	if got := k.records(); len(got) != flows {
		t.Errorf("%d records of %d exchanges", len(got), flows)
	}
	k.balanced()
}

// A flow is in the set that its hash names, among those of its side, and every set can
// be one's.
func TestAFlowHasItsSet(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		var used uint64 // the lowest bits of the sets' numbers
		for i := range 20 {
			for side, see := range map[uint8]func([]byte){SideClient: k.out, SideServer: k.in} {
				k.clear()
				f := numbered(flow4, i)
				if i%2 == 1 {
					f = flow6.sourcePort(uint16(20000 + i))
				}
				see(f.udp(t, 1))
				hash := flowHash(k.shared.Seed, &k.openRequests()[0].Key)
				set := hash % 32768 // FLOW_SETS
				used |= 1 << (set & 1)
				k.flows(func(words []uint64) {
					ways := words[8*set+4*uint64(side-1):][:4]
					if !slices.ContainsFunc(ways, func(w uint64) bool { return w>>tagShift == hash>>tagShift }) {
						t.Errorf("the flow with the hash %#x is not in its set: %#x", hash, ways)
					}
				})
			}
		}
		if used != 3 {
			t.Error("half of the sets are no flow's")
		}
	})
}

func (k *kernel) count(c Counter) uint64 {
	k.t.Helper()
	n, err := k.Count(c)
	if err != nil {
		k.t.Fatal(err)
	}
	return n
}
