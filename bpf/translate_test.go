package bpf

import (
	"net/netip"
	"testing"
	"time"
)

const (
	natSource      = 1 << 5 // RECORD_NAT_SOURCE
	natDestination = 1 << 6 // RECORD_NAT_DESTINATION
)

// elsewhere is another address of each family, at a port of the same number.
func elsewhere(end netip.AddrPort) netip.AddrPort {
	if end.Addr().Is4() {
		return netip.AddrPortFrom(netip.MustParseAddr("203.0.113.30"), end.Port())
	}
	return netip.AddrPortFrom(netip.MustParseAddr("2001:db8:2::30"), end.Port())
}

// openTranslating is a kernel whose packets come over a device where addresses are
// translated.
func openTranslating(t *testing.T, o object) *kernel {
	k := openKernel(t, o)
	k.shared.setTranslating([]int{runIfindex})
	return k
}

// translations are what NAT does to the flow that an answer belongs to.
var translations = []struct {
	name string
	flag uint32
	of   func(flow) flow
}{
	{"source", natSource, func(f flow) flow { f.from = elsewhere(f.from); return f }},
	{"destination", natDestination, func(f flow) flow { f.to = elsewhere(f.to); return f }},
}

// An answer whose one end was translated is found by the other and by what NAT leaves
// alone. It names what it was translated to.
func TestTranslatedAnswersAreFound(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openTranslating(t, o)
		for _, class := range exchangeClasses {
			for _, f := range []flow{flow4, flow6} {
				for _, nat := range translations {
					if class.name == "udp" && nat.flag == natDestination {
						continue // nothing is left of it but the near end
					}
					t.Run(class.name+" "+f.from.Addr().String()+" "+nat.name, func(t *testing.T) {
						k.t = t
						k.clear()
						k.out(class.request(t, f))
						k.in(class.answer(t, nat.of(f)))
						r := k.one()
						checkRecord(t, r, f)
						changed := nat.of(f).from
						if nat.flag == natDestination {
							changed = nat.of(f).to
						}
						if r.Flags&(natSource|natDestination) != nat.flag || netip.AddrFrom16(r.Nat.Bytes).Unmap() != changed.Addr() {
							t.Errorf("flags %#x, translated to %s; want %#x and %s", r.Flags, netip.AddrFrom16(r.Nat.Bytes).Unmap(), nat.flag, changed.Addr())
						}
						if class.name != "icmp" && class.name != "dns" && networkOrder(r.NatPort) != changed.Port() {
							t.Errorf("translated to port %d, want %d", networkOrder(r.NatPort), changed.Port())
						}
						k.counted(counts{"requests": 1, "finished": 1})
						k.balanced()
					})
				}
			}
		}
	})
}

// So is a refusal, and an error that quotes the request as it was translated.
func TestTranslatedFailuresAreFound(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openTranslating(t, o)
		for _, f := range []flow{flow4, flow6} {
			k.clear()
			masked := translations[0].of(f)
			k.out(f.syn(t, 100))
			k.in(masked.back().rst(t, 101))
			if r := k.one(); r.Result != refused || r.Flags&natSource == 0 {
				t.Errorf("record %+v of a refusal", r)
			}
			for _, class := range exchangeClasses {
				k.clear()
				k.out(class.request(t, f))
				k.in(masked.back().unreachable(t, class.request(t, masked)))
				if r := k.one(); r.Result != unreachable || r.Flags&natSource == 0 {
					t.Errorf("%s: record %+v of an error", class.name, r)
				}
			}
			k.counted(counts{"requests": 5, "finished": 5})
			k.balanced()
		}
	})
}

// A request from outside whose answer leaves from another address.
func TestTranslatedAnswersOfThisHostAreFound(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openTranslating(t, o)
		for _, class := range exchangeClasses {
			for _, f := range []flow{flow4, flow6} {
				t.Run(class.name+" "+f.from.Addr().String(), func(t *testing.T) {
					k.t = t
					k.clear()
					k.in(class.request(t, f))
					k.out(class.answer(t, translations[1].of(f)))
					if class.name == "tcp" {
						k.in(f.ack(t, 2))
					}
					r, changed := k.one(), translations[1].of(f).to
					if r.Side != SideServer || r.Flags&(natSource|natDestination) != natDestination || netip.AddrFrom16(r.Nat.Bytes).Unmap() != changed.Addr() {
						t.Errorf("translated to %s, want %s: %+v", netip.AddrFrom16(r.Nat.Bytes).Unmap(), changed.Addr(), r)
					}
					if class.name == "tcp" && networkOrder(r.NatPort) != changed.Port() {
						t.Errorf("translated to port %d, want %d", networkOrder(r.NatPort), changed.Port())
					}
					k.counted(counts{"requests": 1, "finished": 1})
					k.balanced()
				})
			}
		}
	})
}

// Where it cannot be known whose answer it was, none of those that wait is a timeout.
func TestUntracedAnswersMakeNoTimeouts(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openTranslating(t, o)
		for _, class := range exchangeClasses {
			t.Run(class.name+", both ends differ", func(t *testing.T) {
				k.t = t
				k.clear()
				k.out(class.request(t, flow4))
				k.in(class.answer(t, translations[1].of(translations[0].of(flow4))))
				k.timeOutAll()
				want := counts{"requests": 1, "untraced": 1, "unmatched": 1, "translated": 1}
				if class.name == "udp" { // which is known by nothing then: a request from outside
					want = counts{"requests": 2, "timed_out": 2}
				}
				k.counted(want)
				k.balanced()
			})
		}
		t.Run("two that one answer may be of", func(t *testing.T) {
			k.t = t
			k.clear()
			k.records()
			k.out(flow4.syn(t, 100)) // a scanner's, whose numbers are all the same
			k.out(translations[0].of(flow4).sourcePort(1).syn(t, 100))
			k.in(flow4.sourcePort(2).back().synAck(t, 101))
			k.out(flow4.sourcePort(3).syn(t, 500)) // nobody answers it
			k.timeOutAll()
			k.counted(counts{"requests": 3, "untraced": 1, "unmatched": 1, "translated": 2, "timed_out": 1})
			if r := k.one(); networkOrder(r.SourcePort) != 3 {
				t.Errorf("record %+v of the timeout", r)
			}
			k.balanced()
		})
	})
}

// A server behind NAT that is dead times out, and other devices pay for no hint.
func TestTranslationHidesNoTimeout(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		for _, class := range exchangeClasses {
			k.shared.setTranslating([]int{runIfindex})
			k.clear()
			k.out(class.request(t, flow4))
			k.timeOutAll()
			if r := k.one(); r.Result != timedOut {
				t.Errorf("%s: record %+v", class.name, r)
			}
			k.shared.setTranslating([]int{runIfindex + 1})
			k.clear()
			k.out(class.request(t, flow4))
			if traits := k.openRequests()[0].Traits &^ (1 << 1); traits != 0 { // REQUEST_HINTED
				t.Errorf("%s: traits %#x on another device", class.name, traits)
			}
			if class.name != "udp" {
				k.in(class.answer(t, translations[0].of(flow4)))
				k.lastCounts, _ = k.Counters()
				k.timeOutAll()
				k.counted(counts{"timed_out": 1})
			}
			k.balanced() // which also reads the records
		}
	})
}

// What goes on after a translated answer belongs to its exchange.
func TestATranslatedFlowGoesOn(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openTranslating(t, o)
		masked := translations[0].of(flow4)
		k.out(flow4.udp(t, 1))
		k.in(masked.back().udp(t, 2))
		k.in(masked.back().udp(t, 3))
		k.out(flow4.udp(t, 4))
		k.in(masked.back().udp(t, 5))
		k.one()
		time.Sleep(waited)
		k.timeOutAll()
		k.counted(counts{"requests": 1, "finished": 1, "flow": 3})
		k.balanced()
	})
}
