package bpf

import (
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
	return &matcher{collection.Programs["minimal_ingress"], collection.Programs["minimal_egress"], ring}
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

// BenchmarkExchange runs whole exchanges of this host, each from a port of its
// own, through flatd's programs and through a minimal matcher, in turn, and
// reports what the programs took by the kernel's own account, that of keeping it
// included. "x-minimal" is one against the other.
func BenchmarkExchange(b *testing.B) {
	keepStatistics(b)
	k := openKernel(b)
	matchers := []*matcher{{k.programs.FlatIngress, k.programs.FlatEgress, k.reader}, minimalMatcher(b)}
	for _, c := range []struct {
		name            string
		request, answer func(flow) []byte
	}{
		{"tcp", func(f flow) []byte { return f.stamped(b, 1, 0, 100, 0) },
			func(f flow) []byte { return f.back().stamped(b, 7, 2, 200, 100) }},
		{"udp", func(f flow) []byte { return f.udp(b, 1, 2, 3) },
			func(f flow) []byte { return f.back().udp(b, 1, 2, 3) }},
	} {
		for _, f := range []flow{flow4, flow6} {
			name := c.name + "/ipv4"
			if f.from.Addr().Is6() {
				name = c.name + "/ipv6"
			}
			b.Run(name, func(b *testing.B) {
				const rounds, exchanges = 15, 2000
				requests, answers := make([][]byte, exchanges), make([][]byte, exchanges)
				for i := range exchanges {
					f.from = netip.AddrPortFrom(f.from.Addr(), uint16(10000+i))
					requests[i], answers[i] = c.request(f), c.answer(f)
				}
				asked, answered := make([][]time.Duration, len(matchers)), make([][]time.Duration, len(matchers))
				for b.Loop() {
					for range rounds {
						for i, m := range matchers {
							asked[i] = append(asked[i], m.cost(b, m.out, requests))
							answered[i] = append(answered[i], m.cost(b, m.in, answers))
							if got := m.drain(); got != exchanges {
								b.Fatalf("matcher %d: %d of %d exchanges were reported", i, got, exchanges)
							}
							k.clear()
						}
					}
				}
				flatAsked, flatAnswered := median(asked[0]), median(answered[0])
				minimalAsked, minimalAnswered := median(asked[1]), median(answered[1])
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(flatAsked, "ns-request")
				b.ReportMetric(flatAnswered, "ns-answer")
				b.ReportMetric(minimalAsked, "ns-minimal-request")
				b.ReportMetric(minimalAnswered, "ns-minimal-answer")
				b.ReportMetric((flatAsked+flatAnswered)/(minimalAsked+minimalAnswered), "x-minimal")
			})
		}
	}
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

// cost is what the program takes for one of the frames, in ps.
func (m *matcher) cost(b *testing.B, p *ebpf.Program, frames [][]byte) time.Duration {
	b.Helper()
	before := runtimeOf(b, p)
	for _, frame := range frames {
		if _, err := p.Run(&ebpf.RunOptions{Data: frame}); err != nil {
			b.Fatal(err)
		}
	}
	return (runtimeOf(b, p) - before) * 1000 / time.Duration(len(frames))
}

func runtimeOf(b *testing.B, p *ebpf.Program) time.Duration {
	b.Helper()
	stats, err := p.Stats()
	if err != nil {
		b.Fatal(err)
	}
	return stats.Runtime
}
