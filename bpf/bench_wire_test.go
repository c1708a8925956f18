package bpf

import (
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/flatd/flatd/packaging/testbed"
)

// wireTraffic is what two hosts can have to do with each other.
type wireTraffic struct {
	name  string
	units int // connections, exchanges, octets or datagrams
	run   func(t testing.TB, from, to *testbed.Host, units int)

	matched bool // each unit is a request and its answer
}

var wireTraffics = []wireTraffic{
	{"connections", 5000, testbed.Connections, true},
	{"connections-bare", 5000, testbed.BareConnections, true},
	{"connections-reset", 5000, testbed.ResetConnections, true},
	{"udp-exchanges", 5000, testbed.Exchanges, true},
	{"bulk", 64 << 20, testbed.Bulk, false},
	{"datagrams", 20000, testbed.Datagrams, false},
}

// BenchmarkWire is real traffic between two namespaces, seen by flatd's
// programs at the client's end, by a minimal matcher, by programs that only
// parse, and by empty ones, in turn. It reports what they took by the kernel's
// own account, that of keeping it included: per packet, of all that there are in
// both directions (a packet of a stream is one of up to 64 kB), and for
// connections, each with a small request and answer, per connection.
func BenchmarkWire(b *testing.B) {
	if err := HaveTCX(); err != nil {
		testbed.Missing(b, "%v", err)
	}
	keepStatistics(b)
	names := []string{"flat", "minimal", "parse", "empty"}
	// Where the kernel happens to place programs and maps is worth a fifth, so that
	// there are several of each.
	var loaded [4][]*matcher
	for i := range loaded {
		parse, empty := loadOne(b, "testdata/parse_only.c"), loadOne(b, "testdata/empty.c")
		loaded[i] = []*matcher{flatMatcher(b), minimalMatcher(b), onlyPrograms(parse), onlyPrograms(empty)}
	}
	client, server := testbed.Pair(b)
	for _, traffic := range wireTraffics {
		b.Run(traffic.name, func(b *testing.B) {
			const rounds = 12
			perPacket, perUnit := make([][]time.Duration, len(names)), make([][]time.Duration, len(names))
			for b.Loop() {
				for round := range rounds {
					for n := range names {
						i := (n + round/len(loaded)) % len(names) // who is first has no advantage
						took, packets := loaded[round%len(loaded)][i].watch(b, client, func() { traffic.run(b, client, server, traffic.units) })
						perPacket[i] = append(perPacket[i], took*1000/time.Duration(packets))
						perUnit[i] = append(perUnit[i], took*1000/time.Duration(traffic.units))
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			for i := range names {
				b.ReportMetric(median(perPacket[i]), "ns-"+names[i]+"/packet")
			}
			b.ReportMetric(median(perPacket[0])/median(perPacket[2]), "x-parse")
			if traffic.matched {
				b.ReportMetric(median(perUnit[0]), "ns-flat/exchange")
				b.ReportMetric(median(perUnit[1]), "ns-minimal/exchange")
				b.ReportMetric(median(perUnit[0])/median(perUnit[1]), "x-minimal")
			}
		})
	}
}

// onlyPrograms match nothing.
func onlyPrograms(p *ebpf.Program) *matcher { return &matcher{in: p, out: p} }

// watch attaches the programs to the host's interface while something happens
// there, and returns how long they took for how many packets.
func (m *matcher) watch(b *testing.B, host *testbed.Host, something func()) (took time.Duration, packets uint64) {
	b.Helper()
	programs := []*ebpf.Program{m.in, m.out}
	if m.in == m.out {
		programs = programs[:1]
	}
	sum := func() (took time.Duration, packets uint64) {
		for _, p := range programs {
			stats, err := p.Stats()
			if err != nil {
				b.Fatal(err)
			}
			took, packets = took+stats.Runtime, packets+stats.RunCount
		}
		return took, packets
	}
	tookBefore, packetsBefore := sum()
	detach := m.attach(b, host)
	something()
	detach()
	if m.ring != nil {
		m.drain()
		m.forget()
	}
	took, packets = sum()
	return took - tookBefore, packets - packetsBefore
}

func (m *matcher) attach(b *testing.B, host *testbed.Host) (detach func()) {
	b.Helper()
	var links []link.Link
	host.Do(func() {
		device, err := net.InterfaceByName(host.Interface)
		if err != nil {
			b.Error(err)
			return
		}
		for at, p := range map[ebpf.AttachType]*ebpf.Program{ebpf.AttachTCXIngress: m.in, ebpf.AttachTCXEgress: m.out} {
			l, err := link.AttachTCX(link.TCXOptions{Interface: device.Index, Program: p, Attach: at})
			if err != nil {
				b.Error(err)
				return
			}
			links = append(links, l)
		}
	})
	if len(links) != 2 {
		b.FailNow()
	}
	return func() {
		for _, l := range links {
			l.Close()
		}
	}
}
