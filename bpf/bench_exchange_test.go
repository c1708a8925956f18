package bpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A matcher is a pair of programs that answers the same question.
type matcher struct {
	in, out *ebpf.Program
	ring    *Reader
	forget  func() // what it keeps of exchanges that are over
}

// minimalMatcher is testdata/minimal.c: the least that could do flatd's job.
func minimalMatcher(b *testing.B) *matcher {
	b.Helper()
	spec, err := ebpf.LoadCollectionSpec(compile(b, "testdata/minimal.c"))
	if err != nil {
		b.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		b.Fatalf("%+v", err)
	}
	b.Cleanup(collection.Close)
	ring, err := newReader(collection.Maps["events"])
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ring.Close() })
	return &matcher{collection.Programs["minimal_ingress"], collection.Programs["minimal_egress"], ring, func() {}}
}

// flatMatcher is flatd's, with a state of its own that has been swept, as a daemon does.
func flatMatcher(b *testing.B) *matcher {
	b.Helper()
	k := openKernel(b)
	k.sweep(0, time.Hour)
	return &matcher{k.programs.FlatIngress, k.programs.FlatEgress, k.reader, k.forgetEnded}
}

// drain returns how many records there were.
func (m *matcher) drain() (records int) {
	for {
		if _, _, ok := m.ring.Next(); !ok {
			m.ring.Commit()
			return records
		}
		records++
	}
}

// exchangeClass is a kind of exchange of this host.
type exchangeClass struct {
	name            string
	request, answer func(testing.TB, flow) []byte // by the flow of the request
}

// exchangeClasses are the kinds that flatd knows. A minimal matcher takes a DNS
// query for any datagram, and does not know echoes.
var exchangeClasses = []exchangeClass{
	{"tcp", func(t testing.TB, f flow) []byte { return f.stamped(t, 1, 0, 100, 0) },
		func(t testing.TB, f flow) []byte { return f.back().stamped(t, 7, 2, 200, 100) }},
	{"udp", func(t testing.TB, f flow) []byte { return f.udp(t, 1, 2, 3) },
		func(t testing.TB, f flow) []byte { return f.back().udp(t, 1, 2, 3) }},
	{"dns", func(t testing.TB, f flow) []byte { return f.port(53).dns(t, 1, nil) },
		func(t testing.TB, f flow) []byte { return f.port(53).back().answers(t, 1, 0) }},
	{"icmp", func(t testing.TB, f flow) []byte { return f.echo(t, f.from.Port(), 1, false) },
		func(t testing.TB, f flow) []byte { return f.back().echo(t, f.from.Port(), 1, true) }},
}

// BenchmarkExchange runs whole exchanges of this host, each from a port of its
// own, through flatd's programs and through a minimal matcher, in turn, and
// reports what the programs took by the kernel's own account, that of keeping it
// included. "x-minimal" is one against the other.
func BenchmarkExchange(b *testing.B) {
	keepStatistics(b)
	for _, open := range []int{1, 1000, 50000} {
		matchers := []*matcher{flatMatcher(b), minimalMatcher(b)}
		for _, m := range matchers {
			for _, frame := range requestsOfOthers(b, open) {
				runOn(b, m.out, frame)
			}
		}
		for _, class := range exchangeClasses {
			for _, f := range []flow{flow4, flow6} {
				family := "ipv4"
				if f.from.Addr().Is6() {
					family = "ipv6"
				}
				if open > 1 && family == "ipv6" {
					continue
				}
				b.Run(fmt.Sprintf("%s/%s/open=%d", class.name, family, open), func(b *testing.B) {
					if class.name == "icmp" {
						compareExchanges(b, class, f, matchers[:1])
					} else {
						compareExchanges(b, class, f, matchers)
					}
				})
			}
		}
	}
}

// compareExchanges has the matchers see exchanges of one class in turn, round by round.
func compareExchanges(b *testing.B, class exchangeClass, f flow, matchers []*matcher) {
	const rounds, exchanges = 15, 1000
	requests, answers := make([][]byte, exchanges), make([][]byte, exchanges)
	for i := range exchanges {
		f.from = netip.AddrPortFrom(f.from.Addr(), uint16(10000+i))
		requests[i], answers[i] = class.request(b, f), class.answer(b, f)
	}
	asked, answered := make([][]time.Duration, len(matchers)), make([][]time.Duration, len(matchers))
	for b.Loop() {
		for range rounds {
			for i, m := range matchers {
				a, w := m.cost(b, requests, answers)
				asked[i], answered[i] = append(asked[i], a), append(answered[i], w)
				if got := m.drain(); got != exchanges {
					b.Fatalf("matcher %d: %d of %d exchanges were reported", i, got, exchanges)
				}
				m.forget()
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	flatAsked, flatAnswered := median(asked[0]), median(answered[0])
	b.ReportMetric(flatAsked, "ns-request")
	b.ReportMetric(flatAnswered, "ns-answer")
	if len(matchers) == 1 {
		return
	}
	minimalAsked, minimalAnswered := median(asked[1]), median(answered[1])
	b.ReportMetric(minimalAsked, "ns-minimal-request")
	b.ReportMetric(minimalAnswered, "ns-minimal-answer")
	b.ReportMetric((flatAsked+flatAnswered)/(minimalAsked+minimalAnswered), "x-minimal")
}

// keepStatistics has the kernel take the time of each run of each program.
func keepStatistics(b *testing.B) {
	b.Helper()
	statistics, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = statistics.Close() })
}

// cost is what the programs take for one of the requests and for its answer, in ps.
func (m *matcher) cost(b *testing.B, requests, answers [][]byte) (request, answer time.Duration) {
	b.Helper()
	outBefore, inBefore := runtimeOf(b, m.out), runtimeOf(b, m.in)
	for i := range requests {
		runOn(b, m.out, requests[i])
		runOn(b, m.in, answers[i])
	}
	each := func(p *ebpf.Program, before time.Duration) time.Duration {
		return (runtimeOf(b, p) - before) * 1000 / time.Duration(len(requests))
	}
	return each(m.out, outBefore), each(m.in, inBefore)
}

func runOn(b *testing.B, p *ebpf.Program, frame []byte) {
	b.Helper()
	if _, err := p.Run(&ebpf.RunOptions{Data: frame}); err != nil {
		b.Fatal(err)
	}
}

func runtimeOf(b *testing.B, p *ebpf.Program) time.Duration {
	b.Helper()
	stats, err := p.Stats()
	if err != nil {
		b.Fatal(err)
	}
	return stats.Runtime
}
