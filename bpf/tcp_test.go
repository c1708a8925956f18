package bpf

import (
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
)

func tcpExchanges(t testing.TB, f flow) []exchange {
	b := f.back()
	// A SYN/ACK that nobody completes takes one of two places for as long as
	// the table is at work: each such case has a port of its own.
	f1, f2, f3, f4, f5, f6, f7 := f.port(1001), f.port(1002), f.port(1003), f.port(1004), f.port(1005), f.port(1006), f.port(1007)
	flags := func(f flow, isn uint32, set func(*layers.TCP)) []byte {
		return f.tcp(t, func(h *layers.TCP) { h.Seq = isn; set(h) })
	}
	ecn := func(h *layers.TCP) { h.SYN, h.ECE, h.CWR = true, true, true }

	return append([]exchange{
		// This host asks.
		{"established", []packet{out(f.syn(t, 100)), in(b.synAck(t, 101)), out(f.ack(t, 101)), out(f.data(t)), in(b.data(t))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"established, with ECN", []packet{out(flags(f, 100, ecn)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"established, sequence numbers wrap", []packet{out(f.syn(t, 0xffffffff)), in(b.synAck(t, 0))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"refused", []packet{out(f.syn(t, 100)), in(b.rst(t, 101))},
			[]want{client(kindTCP, refused)}, counts{"requests": 1, "finished": 1}},
		{"SYN sent again", []packet{out(f.syn(t, 100)), out(f.syn(t, 100)), out(f.syn(t, 100)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established).repeated(2)}, counts{"requests": 1, "finished": 1, "repeats": 2}},
		{"SYN sent again, refused", []packet{out(f.syn(t, 100)), out(f.syn(t, 100)), in(b.rst(t, 101))},
			[]want{client(kindTCP, refused).repeated(1)}, counts{"requests": 1, "finished": 1, "repeats": 1}},
		{"SYN sent again after its answer", []packet{out(f.syn(t, 100)), in(b.synAck(t, 101)), out(f.syn(t, 100)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1, "repeats": 1, "unmatched": 1}},
		{"SYN sent again after a refusal", []packet{out(f.syn(t, 100)), in(b.rst(t, 101)), out(f.syn(t, 100)), in(b.rst(t, 101))},
			[]want{client(kindTCP, refused)}, counts{"requests": 1, "finished": 1, "repeats": 1, "unmatched": 1}},
		{"SYN from outside sent again after a refusal", []packet{in(f.syn(t, 100)), out(b.rst(t, 101)), in(f.syn(t, 100)), out(b.rst(t, 101))},
			[]want{server(kindTCP, refused)}, counts{"requests": 1, "finished": 1, "repeats": 1, "unmatched": 1}},
		{"SYN from outside sent again after the handshake", []packet{
			in(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.ack(t, 101)), in(f.syn(t, 100)), out(b.synAck(t, 101))},
			[]want{server(kindTCP, established)}, counts{"requests": 1, "finished": 1, "repeats": 1, "unmatched": 1}},

		// After the timeout.
		{"never answered", []packet{out(f.syn(t, 100)), timeout},
			[]want{client(kindTCP, timedOut)}, counts{"requests": 1, "timed_out": 1}},
		{"never answered, sent again", []packet{out(f.syn(t, 100)), out(f.syn(t, 100)), timeout, out(f.syn(t, 100)), timeout},
			[]want{client(kindTCP, timedOut).repeated(1)}, counts{"requests": 1, "timed_out": 1, "repeats": 2}},
		{"established too late", []packet{out(f.syn(t, 100)), timeout, out(f.syn(t, 100)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, timedOut), client(kindTCP, established).repeated(1).tooLate()},
			counts{"requests": 1, "timed_out": 1, "repeats": 1, "late": 1}},
		{"established too late, and sent again", []packet{out(f.syn(t, 100)), timeout, in(b.synAck(t, 101)), out(f.syn(t, 100)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, timedOut), client(kindTCP, established).tooLate()},
			counts{"requests": 1, "timed_out": 1, "repeats": 1, "late": 1, "unmatched": 1}},
		{"refused too late", []packet{out(f.syn(t, 100)), timeout, in(b.rst(t, 101))},
			[]want{client(kindTCP, timedOut), client(kindTCP, refused).tooLate()}, counts{"requests": 1, "timed_out": 1, "late": 1}},
		{"another number, too late", []packet{out(f.syn(t, 100)), timeout, in(b.rst(t, 100)), in(b.synAck(t, 102))},
			[]want{client(kindTCP, timedOut)}, counts{"requests": 1, "timed_out": 1, "wrong_ack": 2}},
		{"another attempt after the timeout", []packet{out(f.syn(t, 100)), timeout, out(f.syn(t, 900)), in(b.synAck(t, 101)), in(b.synAck(t, 901))},
			[]want{client(kindTCP, timedOut), client(kindTCP, established)},
			counts{"requests": 2, "timed_out": 1, "finished": 1, "wrong_ack": 1}},
		{"asked, not answered in time", []packet{in(f.syn(t, 100)), timeout, in(f.syn(t, 100)), out(b.rst(t, 101))},
			nil, counts{"requests": 1, "half_open": 1, "repeats": 1, "ended": 1}},
		{"asked, not completed in time", []packet{in(f7.syn(t, 100)), out(f7.back().synAck(t, 101)), timeout, in(f7.ack(t, 101))},
			nil, counts{"requests": 1, "half_open": 1}},

		{"SYN/ACK sent again", []packet{out(f.syn(t, 100)), in(b.synAck(t, 101)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1, "unmatched": 1}},
		{"SYN/ACK for no SYN", []packet{in(b.synAck(t, 101)), in(b.rst(t, 101))},
			nil, counts{"unmatched": 2}},
		{"answer in the request's direction", []packet{out(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.synAck(t, 101))},
			nil, counts{"requests": 1, "unmatched": 2}},
		{"answer from another port", []packet{out(f.syn(t, 100)), in(f.port(444).back().synAck(t, 101))},
			nil, counts{"requests": 1, "unmatched": 1}},

		// What is acknowledged.
		{"SYN/ACK of another number", []packet{out(f.syn(t, 100)), in(b.synAck(t, 100)), in(b.synAck(t, 102)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1, "wrong_ack": 2}},
		{"RST of another number", []packet{out(f.syn(t, 100)), in(b.rst(t, 100)), in(b.rst(t, 500)), in(b.rst(t, 101))},
			[]want{client(kindTCP, refused)}, counts{"requests": 1, "finished": 1, "wrong_ack": 2}},
		{"RST that acknowledges nothing", []packet{out(f.syn(t, 100)), in(flags(b, 0, func(h *layers.TCP) { h.RST, h.Ack = true, 101 }))},
			nil, counts{"requests": 1, "wrong_ack": 1}},

		// Another attempt from the same port.
		{"port used anew", []packet{out(f.syn(t, 100)), out(f.syn(t, 900)), in(b.synAck(t, 101)), in(b.synAck(t, 901))},
			[]want{client(kindTCP, established)}, counts{"requests": 2, "finished": 1, "replaced": 1, "wrong_ack": 1}},
		{"port used anew after an answer", []packet{out(f.syn(t, 100)), in(b.synAck(t, 101)), out(f.syn(t, 900)), in(b.rst(t, 901))},
			[]want{client(kindTCP, established), client(kindTCP, refused)}, counts{"requests": 2, "finished": 2}},
		{"port used anew from outside", []packet{in(f1.syn(t, 100)), out(f1.back().synAck(t, 101)), in(f1.syn(t, 900)), out(f1.back().rst(t, 901))},
			[]want{server(kindTCP, refused)}, counts{"requests": 2, "finished": 1, "replaced": 1}},

		// Data in the SYN (RFC 7413): all, some or none of it is taken.
		{"data in the SYN, taken", []packet{out(f.syn(t, 100, 1, 2, 3)), in(b.synAck(t, 104))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"data in the SYN, taken in part", []packet{out(f.syn(t, 100, 1, 2, 3)), in(b.synAck(t, 102))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"data in the SYN, not taken", []packet{out(f.syn(t, 100, 1, 2, 3)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"data in the SYN, more acknowledged", []packet{out(f.syn(t, 100, 1, 2, 3)), in(b.synAck(t, 105))},
			nil, counts{"requests": 1, "wrong_ack": 1}},
		{"data in the SYN, left out when sent again", []packet{out(f.syn(t, 100, 1, 2, 3)), out(f.syn(t, 100)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established).repeated(1)}, counts{"requests": 1, "finished": 1, "repeats": 1}},
		{"data in the SYN from outside", []packet{in(f.syn(t, 100, 1, 2, 3)), out(b.synAck(t, 104)), in(f.ack(t, 104))},
			[]want{server(kindTCP, established)}, counts{"requests": 1, "finished": 1}},

		// This host is asked.
		{"asked", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.ack(t, 101)), in(f.ack(t, 101)), in(f.data(t)), out(b.data(t))},
			[]want{server(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"asked, completed with data", []packet{in(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.ack(t, 101, 1, 2, 3))},
			[]want{server(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"asked, refused", []packet{in(f.syn(t, 100)), out(b.rst(t, 101))},
			[]want{server(kindTCP, refused)}, counts{"requests": 1, "finished": 1}},
		{"asked again and again", []packet{in(f.syn(t, 100)), in(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.syn(t, 100)), out(b.synAck(t, 101)), in(f.ack(t, 101))},
			[]want{server(kindTCP, established).repeated(2)}, counts{"requests": 1, "finished": 1, "repeats": 3}},
		{"asked, never completed", []packet{in(f2.syn(t, 100)), out(f2.back().synAck(t, 101))},
			nil, counts{"requests": 1}},
		{"asked, given up by the client", []packet{in(f3.syn(t, 100)), out(f3.back().synAck(t, 101)), in(f3.rst(t, 8))},
			nil, counts{"requests": 1, "unmatched": 1}},
		{"asked, ACK of another number", []packet{in(f4.syn(t, 100)), out(f4.back().synAck(t, 101)),
			in(flags(f4, 101, func(h *layers.TCP) { h.ACK, h.Ack = true, 9 }))},
			nil, counts{"requests": 1}},
		{"asked, ACK from elsewhere in the stream", []packet{in(f5.syn(t, 100)), out(f5.back().synAck(t, 101)), in(f5.ack(t, 7000))},
			nil, counts{"requests": 1}},
		{"asked, nowhere to await the ACK", []packet{
			in(f6.syn(t, 100)), out(f6.back().synAck(t, 101)), in(f6.syn(t, 200)), out(f6.back().synAck(t, 201)),
			in(f6.syn(t, 300)), out(f6.back().synAck(t, 301))},
			nil, counts{"requests": 3, "replaced": 2, "awaiting_full": 1}},

		// What is no part of a handshake.
		{"data alone", []packet{out(f.data(t)), in(b.data(t)), out(f.ack(t, 1)), in(b.ack(t, 1)),
			out(flags(f, 1, func(h *layers.TCP) { h.FIN, h.ACK = true, true }))},
			nil, counts{}},
		{"to a group", []packet{out(f.group(443).syn(t, 100)), in(f.group(443).syn(t, 100))},
			nil, counts{"multicast": 2}},
	}, malformedTCP(t, f)...)
}

// malformedTCP is what must not be taken for a segment, or read past its end.
func malformedTCP(t testing.TB, f flow) []exchange {
	b := f.back()
	syn := f.syn(t, 100)
	at := transportOf(syn) - networkOf(syn)
	options := func(octets ...byte) []byte {
		return patched(f.tcp(t, func(h *layers.TCP) {
			h.SYN, h.Seq = true, 100
			h.Options = []layers.TCPOption{{OptionType: 254, OptionLength: 4, OptionData: []byte{0, 0}}}
		}), at+20, octets...)
	}
	length := 2 // of the packet, in the IP header
	short := byte(20 + 19)
	if f.from.Addr().Is6() {
		length, short = 4, 19
	}
	return []exchange{
		{"cut short", []packet{out(stump(syn, 19)), in(stump(syn, 1))}, nil, counts{"truncated": 2}},
		{"header of four words", []packet{out(patched(syn, at+12, 0x40))}, nil, counts{"malformed": 1}},
		{"header longer than the packet", []packet{out(patched(syn, at+12, 0xf0))}, nil, counts{"malformed": 1}},
		{"packet shorter than the header", []packet{out(patched(syn, length, 0, short))}, nil, counts{"malformed": 1}},
		{"option of no length", []packet{out(options(8, 0, 8, 10)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
		{"option that ends behind the header", []packet{out(options(1, 1, 8, 10)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1}},
	}
}

// Both ends ask at once (RFC 9293, figure 8): each SYN/ACK answers a SYN and
// acknowledges the other end's SYN/ACK.
func TestSimultaneousOpenIsTwoExchanges(t *testing.T) {
	k := openKernel(t)
	for _, f := range []flow{flow4, flow6} {
		b := f.back()
		k.out(f.syn(t, 100))
		k.in(b.syn(t, 7))
		k.out(f.tcp(t, func(h *layers.TCP) { h.SYN, h.ACK, h.Seq, h.Ack = true, true, 100, 8 }))
		k.in(b.synAck(t, 101))
		got := k.records()
		if len(got) != 2 {
			t.Fatalf("records %+v", got)
		}
		for _, r := range got {
			if r.Side == SideClient {
				checkRecord(t, r, f)
			} else {
				checkRecord(t, r, b)
			}
		}
		if got[0].Side == got[1].Side {
			t.Errorf("both records are of side %d", got[0].Side)
		}
		k.counted(counts{"requests": 2, "finished": 2})
	}
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
			k.clear() // a SYN with the same number is a repeat, also after the answer
			for i, stamp := range []uint32{1000, 2000, 3000} {
				if i > 0 {
					time.Sleep(time.Millisecond) // so that the durations differ
				}
				k.out(flow4.stamped(t, 100, 0, stamp, 0))
			}
			k.in(flow4.back().stamped(t, 7, 101, 77, c.echo))
			r := k.one()
			if got := r.Flags&1 != 0; got != c.rtt {
				t.Errorf("rtt known: %t, want %t", got, c.rtt)
			}
			if got := r.Flags&2 != 0; got != c.guessed {
				t.Errorf("ambiguous: %t, want %t", got, c.guessed)
			}
			if c.rtt && (r.RttNs == r.DurationNs) != c.whole {
				t.Errorf("rtt %d of %d ns", r.RttNs, r.DurationNs)
			}
			k.counted(counts{"requests": 1, "finished": 1, "repeats": 2})
		})
	}
}

// The clock of the timestamps may be too coarse to tell two SYNs apart.
func TestEqualTimestampsNameNoSYN(t *testing.T) {
	k := openKernel(t)
	k.out(flow4.stamped(t, 100, 0, 1000, 0))
	k.out(flow4.stamped(t, 100, 0, 1000, 0))
	k.in(flow4.back().stamped(t, 7, 101, 77, 1000))
	if r := k.one(); r.Flags&3 != 2 {
		t.Errorf("flags %x: want ambiguous", r.Flags)
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
	r := k.one()
	if r.DurationNs < uint64(time.Millisecond) || r.EndNs > answered || r.ClientRttNs < uint64(5*time.Millisecond) {
		t.Errorf("duration %d ns, client rtt %d ns, end %d, answered before %d", r.DurationNs, r.ClientRttNs, r.EndNs, answered)
	}
}

// Which of two SYN/ACKs an ACK is for cannot be known (Karn), as with SYNs.
func TestTheClientsPartIsUnknownAfterASecondSYNACK(t *testing.T) {
	k := openKernel(t)
	k.in(flow4.syn(t, 100))
	k.out(flow4.back().synAck(t, 101))
	k.out(flow4.back().synAck(t, 101))
	k.in(flow4.ack(t, 101))
	if r := k.one(); r.ClientRttNs != 0 {
		t.Errorf("client rtt %d ns, though the SYN/ACK went out twice", r.ClientRttNs)
	}
}

// Attempts from outside that nobody completes end in a counter, not in events.
func TestHalfOpenAttemptsAreCountedAlone(t *testing.T) {
	k := openKernel(t)
	k.in(flow4.syn(t, 100)) // dropped by this host
	k.in(flow6.syn(t, 100)) // answered, not completed
	k.out(flow6.back().synAck(t, 101))
	if swept := k.sweep(11*time.Second, limit); swept != (Swept{}) {
		t.Errorf("swept %+v", swept)
	}
	k.in(flow6.ack(t, 101)) // too late
	if got := k.records(); got != nil {
		t.Errorf("records %+v", got)
	}
	k.counted(counts{"requests": 2, "half_open": 2})
}

// The kernel half knows the process that asks, and on the server's side that is
// another host's.
func TestNoProcessIsNamedForAHandshakeFromOutside(t *testing.T) {
	k := openKernel(t)
	k.in(flow4.syn(t, 100))
	k.out(flow4.back().synAck(t, 101))
	k.in(flow4.ack(t, 101))
	got := k.records()
	if len(got) != 1 || got[0].Side != SideServer || got[0].Pid != 0 || got[0].Comm != [2]uint64{} {
		t.Errorf("%+v", got)
	}
}

// A RST takes a short way where nothing can be open, and there alone.
func TestAResetIsSeenWhereItEndsSomething(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		for _, f := range []flow{flow4, flow6} {
			k := openFuzzed(t, o).kernel
			reset := f.back().rst(t, 101)
			refusal := func(what string, flags uint32) {
				t.Helper()
				if r := k.one(); r.Result != refused || r.Flags&recordLate != flags {
					t.Errorf("%s: record %+v", what, r)
				}
			}
			k.in(reset)
			k.counted(counts{"unmatched": 1})

			k.out(f.syn(t, 100))
			k.in(reset)
			refusal("open", 0)
			k.counted(counts{"requests": 1, "finished": 1})

			k.clear()
			k.RenewLease(BootTime() - uint64(time.Second)) // the clock of the short way is a little behind
			k.in(reset)
			k.counted(counts{"asleep": 1})
			k.RenewLease(0)

			k.shared.setPhase(phaseWatch)
			k.out(f.syn(t, 100)) // of the other programs, whose answer this is
			k.in(reset)
			if n := k.empty(k.maps.FlatSeen); n != 0 {
				t.Errorf("%d requests of the others are still open", n)
			}
			k.counted(counts{"handed_over": 1, "unmatched": 1})
			k.shared.setPhase(phaseAlone)

			k.clear()
			k.out(f.syn(t, 100))
			k.sweep(time.Minute, limit) // the last: from now on no RST takes the short way
			k.records()
			k.in(reset)
			refusal("timed out", recordLate)
			k.counted(counts{"requests": 1, "timed_out": 1, "late": 1})
		}
	})
}
