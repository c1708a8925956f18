package bpf

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

const (
	established = 1 // RESULT_ESTABLISHED
	answered    = 2 // RESULT_ANSWERED
	refused     = 3 // RESULT_REFUSED
	unreachable = 4 // RESULT_UNREACHABLE
	timedOut    = 5 // RESULT_TIMEOUT

	ofUDP  = 3 // KIND_UDP
	ofICMP = 4 // KIND_ICMP

	recordLate = 1 << 4 // RECORD_LATE
)

// exchange is packets as this host sees them, the records they must lead to
// and every counter that must move.
type exchange struct {
	name    string
	packets []packet
	records []want
	counts  counts
}

// packet is one that goes out or comes in, or, without a frame, the moment at which
// all that is open times out.
type packet struct {
	in    bool
	frame []byte
}

func out(frame []byte) packet { return packet{false, frame} }
func in(frame []byte) packet  { return packet{true, frame} }

var timeout = packet{}

// waited is the limit of a timeout: so short that it is over at once.
const waited = time.Microsecond

type counts = map[string]uint64

// want is what a record must say, beside the ends of the flow.
type want struct {
	kind, side, result uint8
	rcode              uint16
	repeats            uint32
	icmpType, icmpCode uint8
	vlan               uint16
	truncated          bool
	late               bool
	anew               bool // an answer may be to an earlier request with the same key
}

// client is an exchange that this host began, server one that it was asked for.
func client(kind, result uint8) want { return want{kind: kind, side: SideClient, result: result} }
func server(kind, result uint8) want { return want{kind: kind, side: SideServer, result: result} }

func (w want) repeated(times uint32) want { w.repeats = times; return w }
func (w want) coded(rcode uint16) want    { w.rcode = rcode; return w }
func (w want) cut() want                  { w.truncated = true; return w }
func (w want) tooLate() want              { w.late = true; return w }
func (w want) again() want                { w.anew = true; return w }
func (w want) in(vlan uint16) want        { w.vlan = vlan; return w }

func (w want) because(icmpType, icmpCode uint8) want {
	w.icmpType, w.icmpCode = icmpType, icmpCode
	return w
}

// path is a way for packets to reach the programs.
type path struct {
	name    string
	open    func(t *testing.T, o object) *kernel
	flows   [2]flow // one of each family
	without bool    // a link header
	exact   bool    // takes only packets that are as long as their IP header says
}

var paths = []path{
	{name: "ethernet", flows: [2]flow{flow4, flow6},
		open: func(t *testing.T, o object) *kernel { return openKernel(t, o) }},
	{name: "no link header", flows: [2]flow{bare4, bare6}, without: true,
		open: func(t *testing.T, o object) *kernel { return openBare(t, false, o) }},
	{name: "outer header first", flows: [2]flow{bare4, bare6}, without: true, exact: true,
		open: func(t *testing.T, o object) *kernel { return openBare(t, true, o) }},
	{name: "wire", flows: [2]flow{flow4, flow6}, open: openWire},
}

// The exchanges are in the files of their protocols. Each begins with empty
// tables, but what is awaited (awaiting.h) stays: cases that leave a handshake
// incomplete take ports of their own.
var tables = []struct {
	name     string
	ethernet bool // about link headers
	build    func(testing.TB, flow) []exchange
}{
	{"tcp", false, tcpExchanges},
	{"dns", false, dnsExchanges},
	{"udp", false, udpExchanges},
	{"icmp", false, icmpExchanges},
	{"errors", false, errorExchanges},
	{"shapes", false, shapeExchanges},
	{"links", true, linkExchanges},
}

func TestExchanges(t *testing.T) {
	testbed.Root(t)
	for _, p := range paths {
		t.Run(p.name, func(t *testing.T) {
			if testing.Short() && p.name != "ethernet" && p.name != "outer header first" {
				t.Skip("the shorter way: of the paths, two")
			}
			eachObject(t, func(t *testing.T, o object) {
				k := p.open(t, o)
				p.tryAll(k)
				k.t = t
				k.balanced()
			})
		})
	}
}

// tryAll runs the exchanges of every table, of both families, on a path.
func (p *path) tryAll(k *kernel) {
	t := k.t.(*testing.T)
	for _, table := range tables {
		if table.ethernet && p.without {
			continue
		}
		for i, family := range []string{"ipv4", "ipv6"} {
			for _, e := range table.build(t, p.flows[i]) {
				if p.exact && strings.Contains(e.name, "short") {
					continue
				}
				t.Run(table.name+" "+family+" "+e.name, func(t *testing.T) {
					k.t = t
					k.try(e, p.flows[i])
				})
			}
		}
	}
}

// try runs an exchange between the ends of f.
func (k *kernel) try(e exchange, f flow) {
	k.t.Helper()
	k.clear()
	for _, p := range e.packets {
		switch {
		case p.frame == nil:
			k.timeOutAll()
		case p.in:
			k.in(p.frame)
		default:
			k.out(p.frame)
		}
	}
	got := k.records()
	if len(got) != len(e.records) {
		k.t.Errorf("%d records, want %d: %+v", len(got), len(e.records), got)
	}
	for i, r := range got[:min(len(got), len(e.records))] {
		if got := wanted(&r); got != e.records[i] {
			k.t.Errorf("record %d is %+v, want %+v", i, got, e.records[i])
		}
		checkRecord(k.t, r, f)
	}
	k.counted(e.counts)
	k.leaksNothing()
}

// wanted is what would be wanted of a record that is as this one.
func wanted(r *kernelFlatRecord) want {
	return want{kind: r.Kind, side: r.Side, result: r.Result, rcode: r.Rcode, repeats: r.Repeats, icmpType: r.IcmpType,
		icmpCode: r.IcmpCode, vlan: r.Vlan, truncated: r.Flags&(1<<3) != 0, late: r.Flags&recordLate != 0,
		anew: r.Flags&2 != 0 && r.Repeats == 0}
}

// timeOutAll has all that is open time out.
func (k *kernel) timeOutAll() {
	k.t.Helper()
	time.Sleep(waited)
	k.age(time.Second) // as after a timeout of that much
	if swept := k.sweep(0, waited); swept != (Swept{}) {
		k.t.Fatalf("swept %+v", swept)
	}
}

// checkRecord checks that source is who asked, and what holds of every record.
func checkRecord(t testing.TB, r kernelFlatRecord, f flow) {
	t.Helper()
	source, destination := netip.AddrFrom16(r.Source.Bytes).Unmap(), netip.AddrFrom16(r.Destination.Bytes).Unmap()
	if source != f.from.Addr() || destination != f.to.Addr() {
		t.Errorf("%s -> %s, want %s -> %s", source, destination, f.from.Addr(), f.to.Addr())
	}
	if r.Kind == ofICMP && (r.SourcePort != 0 || r.DestinationPort != 0) {
		t.Errorf("ports %d and %d of an echo", networkOrder(r.SourcePort), networkOrder(r.DestinationPort))
	}
	if r.Kind != ofICMP && r.DestinationPort == 0 {
		t.Error("no destination port")
	}
	noAnswer := r.Result == unreachable || r.Result == timedOut
	if !(noAnswer && r.Side == SideClient) && r.Ttl != 57 {
		t.Errorf("ttl %d, want the remote's 57", r.Ttl)
	}
	if now := BootTime(); r.EndNs > now || r.EndNs+uint64(time.Minute) < now {
		t.Errorf("ended at %d, now is %d", r.EndNs, now)
	}
	if r.DurationNs == 0 || r.DurationNs > uint64(time.Minute) {
		t.Errorf("duration %d ns", r.DurationNs)
	}
	rtt, ambiguous := r.Flags&1 != 0, r.Flags&2 != 0
	if rtt == ambiguous && r.Result != timedOut || rtt != (r.RttNs != 0) || r.RttNs > r.DurationNs {
		t.Errorf("flags %x, rtt %d of %d ns after %d repeats", r.Flags, r.RttNs, r.DurationNs, r.Repeats)
	}
	if r.Result == timedOut && (rtt || r.DurationNs != uint64(waited)) {
		t.Errorf("a timeout after %d ns, with flags %x", r.DurationNs, r.Flags)
	}
	if handshake := r.Kind == kindTCP && r.Side == SideServer && r.Result == established; !handshake && r.ClientRttNs != 0 {
		t.Errorf("client rtt %d ns", r.ClientRttNs)
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
