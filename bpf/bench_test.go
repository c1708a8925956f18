package bpf

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// packetClass is a kind of packet, by what the programs have to do for it. One
// more of it changes nothing that the next would meet, so that a run of many
// costs what each of them does.
type packetClass struct {
	name    string
	frame   func(testing.TB, flow) []byte   // of a flow from its sender to its receiver
	prepare func(testing.TB, flow) []packet // of a flow from this host, seen before; nil: nothing
}

// packetClasses are what most packets of a host are, and what else anybody can
// send. What opens or ends an exchange is in exchangeClasses. The last leaves
// something behind that the others would meet.
var packetClasses = []packetClass{
	{name: "tcp-data", frame: func(t testing.TB, f flow) []byte { return f.data(t) }},
	{name: "tcp-data-stamped", frame: func(t testing.TB, f flow) []byte { return f.stampedData(t) }},
	{name: "tcp-ack", frame: func(t testing.TB, f flow) []byte { return f.ack(t, 1) }},
	{name: "tcp-syn-again", frame: func(t testing.TB, f flow) []byte { return f.syn(t, 1) },
		prepare: func(t testing.TB, f flow) []packet { return []packet{in(f.back().syn(t, 1)), out(f.syn(t, 1))} }},
	{name: "tcp-syn-ack-late", frame: func(t testing.TB, f flow) []byte { return f.synAck(t, 1) }},
	{name: "tcp-rst-late", frame: func(t testing.TB, f flow) []byte { return f.rst(t, 1) }},
	{name: "udp-data", frame: func(t testing.TB, f flow) []byte { return f.udp(t, make([]byte, 100)...) },
		prepare: func(t testing.TB, f flow) []packet { return []packet{out(f.udp(t, 1)), in(f.back().udp(t, 1))} }},
	{name: "dns-query-again", frame: func(t testing.TB, f flow) []byte { return f.port(53).dns(t, 1, nil) },
		prepare: func(t testing.TB, f flow) []packet {
			return []packet{in(f.back().port(53).dns(t, 1, nil)), out(f.port(53).dns(t, 1, nil))}
		}},
	{name: "dns-answer-late", frame: func(t testing.TB, f flow) []byte { return f.sourcePort(53).answers(t, 2, 0) }},
	{name: "icmp-reply-late", frame: func(t testing.TB, f flow) []byte { return f.echo(t, 1, 1, true) }},
	{name: "arp", frame: func(t testing.TB, f flow) []byte { return f.typed(t, layers.EthernetTypeARP) }},
	{name: "not-ip", frame: func(t testing.TB, f flow) []byte { return f.typed(t, layers.EthernetTypeLinkLayerDiscovery) }},
	// While connections from outside are being made, each ACK is looked at more closely.
	{name: "tcp-data-accepting", frame: func(t testing.TB, f flow) []byte { return f.data(t) },
		prepare: func(t testing.TB, f flow) []packet {
			return []packet{in(f.back().port(22).syn(t, 1)), out(f.sourcePort(22).synAck(t, 2))}
		}},
}

// stampedData is a segment as nearly all are: with TCP timestamps (RFC 7323).
func (f flow) stampedData(t testing.TB) []byte {
	return f.tcp(t, func(h *layers.TCP) {
		h.ACK, h.PSH = true, true
		h.Options = []layers.TCPOption{
			{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
			{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)},
		}
	}, make([]byte, 100)...)
}

// typed is a frame of another EtherType, in the flow's VLANs.
func (f flow) typed(t testing.TB, etherType layers.EthernetType) []byte {
	types := append(slices.Repeat([]layers.EthernetType{layers.EthernetTypeDot1Q}, len(f.vlans)), etherType)
	all := []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: types[0]}}
	for i, id := range f.vlans {
		all = append(all, &layers.Dot1Q{VLANIdentifier: id, Type: types[i+1]})
	}
	return serialize(t, append(all, gopacket.Payload(make([]byte, 46)))...)
}

// families are what a class of packets comes in.
var families = []struct {
	name string
	flow flow
}{
	{"ipv4", flow4},
	{"ipv6", flow6},
	{"vlan", flow4.tagged(7)},
}

// BenchmarkPacket runs packets of each class through flatd's programs, through
// a program that only parses them and through an empty one, in turn, and reports
// what one costs, with few exchanges open and with many. "x-parse" is flatd
// against the program that only parses; that one knows TCP, and has less to do
// elsewhere.
func BenchmarkPacket(b *testing.B) {
	parse, empty := loadOne(b, "testdata/parse_only.c"), loadOne(b, "testdata/empty.c")
	for _, open := range []int{1, 1000, 50000} {
		k := openKernel(b)
		k.open(b, open)
		for _, class := range packetClasses {
			for _, family := range families {
				if open > 1 && family.name != "ipv4" {
					continue
				}
				f := family.flow
				if class.prepare != nil {
					for _, p := range class.prepare(b, f) {
						k.pass(p.in, p.frame)
					}
				}
				name := fmt.Sprintf("%s/%s/open=%d", class.name, family.name, open)
				b.Run(name+"/egress", func(b *testing.B) {
					compare(b, []*ebpf.Program{k.programs.FlatEgress, parse, empty}, class.frame(b, f))
				})
				b.Run(name+"/ingress", func(b *testing.B) {
					compare(b, []*ebpf.Program{k.programs.FlatIngress, parse, empty}, class.frame(b, f.back()))
				})
			}
		}
	}
}

// open has this host ask for so many connections that nobody answers.
func (k *kernel) open(b *testing.B, requests int) {
	b.Helper()
	for _, frame := range requestsOfOthers(b, requests) {
		if _, err := k.programs.FlatEgress.Run(&ebpf.RunOptions{Data: frame}); err != nil {
			b.Fatal(err)
		}
	}
}

// requestsOfOthers are SYNs from ports of an address that no class has.
func requestsOfOthers(b *testing.B, n int) (frames [][]byte) {
	f := flow4.back()
	for i := range n {
		frames = append(frames, f.sourcePort(uint16(1+i)).syn(b, 1))
	}
	return frames
}

// compare has the programs see a frame in turn, round by round: the first is
// flatd's, the second only parses, the third is empty.
func compare(b *testing.B, programs []*ebpf.Program, frame []byte) {
	const rounds = 41 // brief ones: what else the machine does then falls into few
	costs := make([][]time.Duration, len(programs))
	for b.Loop() {
		for range rounds {
			for i, p := range programs {
				costs[i] = append(costs[i], cost(b, p, frame))
			}
		}
	}
	flat, parse, empty := median(costs[0]), median(costs[1]), median(costs[2])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(flat, "ns-flat")
	b.ReportMetric(parse, "ns-parse")
	b.ReportMetric(empty, "ns-empty")
	b.ReportMetric(flat/parse, "x-parse")
}

// cost is that of one packet, which the kernel tells in whole nanoseconds: it
// is taken from a run of many as long as it lasts.
func cost(b *testing.B, p *ebpf.Program, frame []byte) time.Duration {
	const packets = 5_000
	start := time.Now()
	if _, err := p.Run(&ebpf.RunOptions{Data: frame, Repeat: packets}); err != nil {
		b.Fatal(err)
	}
	return time.Since(start) * 1000 / packets // ps
}

// median is in nanoseconds, of picoseconds.
func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2]) / 1000
}

// loadOne compiles and loads a source file with one program in it.
func loadOne(b *testing.B, source string) *ebpf.Program {
	b.Helper()
	spec, err := ebpf.LoadCollectionSpec(compile(b, source))
	if err != nil {
		b.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		b.Fatalf("%s: %+v", source, err)
	}
	b.Cleanup(collection.Close)
	for _, p := range collection.Programs {
		return p
	}
	b.Fatalf("%s holds no program", source)
	return nil
}
