package bpf

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// BenchmarkPacket runs ordinary TCP segments through flat_ingress, through a
// program that only parses them and through an empty one, in turn, and reports
// what one packet costs. "x-parse" is flat_ingress against the program that
// only parses: at most 1.25 is what it may be. In "x-parse-net" the cost of
// running a program at all is taken off both.
func BenchmarkPacket(b *testing.B) {
	k := openKernel(b)
	programs := []*ebpf.Program{
		k.programs.FlatIngress,
		loadOne(b, "testdata/parse_only.c"),
		loadOne(b, "testdata/empty.c"),
	}
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"ipv4", flow4.data(b)},
		{"ipv6", flow6.data(b)},
		{"tagged", flow{from: flow4.from, to: flow4.to, vlans: []uint16{7}}.data(b)},
	} {
		b.Run(c.name, func(b *testing.B) {
			const rounds = 21
			costs := make([][]time.Duration, len(programs))
			for b.Loop() {
				for range rounds {
					for i, p := range programs {
						costs[i] = append(costs[i], cost(b, p, c.frame))
					}
				}
			}
			flat, parse, empty := median(costs[0]), median(costs[1]), median(costs[2])
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(flat, "ns-flat")
			b.ReportMetric(parse, "ns-parse")
			b.ReportMetric(empty, "ns-empty")
			b.ReportMetric(flat/parse, "x-parse")
			b.ReportMetric(flat/empty, "x-empty")
			b.ReportMetric((flat-empty)/(parse-empty), "x-parse-net")
		})
	}
}

// cost is that of one packet, which the kernel tells in whole nanoseconds: it
// is taken from a run of many as long as it lasts.
func cost(b *testing.B, p *ebpf.Program, frame []byte) time.Duration {
	const packets = 100_000
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
