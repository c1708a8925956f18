package daemon

import (
	"fmt"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf/testbed"
	"github.com/flatd/flatd/outputs"
)

// BenchmarkThroughput sends as much as goes, in one stream and in small
// datagrams, with flatd and without in turn, and reports one against the other.
func BenchmarkThroughput(tb *testing.B) {
	b := newBench(tb)
	for _, traffic := range []struct {
		name  string
		units int
		send  func(t testing.TB, from, to *testbed.Host, units int)
		unit  string
		scale float64
	}{
		{"bulk", 2 << 30, testbed.Bulk, "Gbit/s", 8e-9},
		{"datagrams", 150_000, testbed.Datagrams, "kpackets/s", 1e-3},
	} {
		tb.Run(traffic.name, func(tb *testing.B) {
			const rounds = 9
			b := &bench{tb, b.client, b.server, b.flatd, b.flatctl}
			var with, without, ratios []float64
			rate := func() float64 {
				began := time.Now()
				traffic.send(b, b.client, b.server, traffic.units)
				return float64(traffic.units) * traffic.scale / time.Since(began).Seconds()
			}
			b.once(func() {
				for n := range rounds {
					var alone, watched float64
					if n%2 == 0 { // who is first has no advantage
						alone = rate()
					}
					r := b.start("")
					watched = rate()
					r.end()
					if n%2 == 1 {
						alone = rate()
					}
					without, with, ratios = append(without, alone), append(with, watched), append(ratios, watched/alone)
				}
			})
			b.ReportMetric(median(without), traffic.unit+"-nothing")
			b.ReportMetric(median(with), traffic.unit+"-flatd")
			b.ReportMetric(median(ratios), "rate-ratio")
		})
	}
}

// BenchmarkPublishing has flatd publish each connection to a NATS server, in a
// storm of them and at a steady rate. It reports flatd's CPU time per 10,000
// connections, how long after the packet a subscriber has the event, and what
// flatd's memory has come to.
func BenchmarkPublishing(tb *testing.B) {
	for _, c := range []struct {
		name   string
		mode   string
		orders storm
		rounds int
	}{
		{"storm", outputs.ModeCore, storm{Connections: 10000}, 15},
		{"steady", outputs.ModeCore, storm{Connections: 10000, PerSecond: 500}, 1},
	} {
		tb.Run(c.name, func(tb *testing.B) {
			b := newBench(tb)
			total := c.orders.Connections * c.rounds
			subscriber := b.subscribe(total)
			r := b.start(fmt.Sprintf(natsConfig, subscriber.url, c.mode))
			cpu, user := cpuTime(b, r.pid()), userTime(b, r.pid())
			began := time.Now()
			b.once(func() {
				for range c.rounds {
					runStorm(tb, b.client, b.server, c.orders)
				}
			})
			state := r.settled(total)
			took := time.Since(began)
			per10k := 10000 / float64(total)
			b.ReportMetric(milliseconds(cpuTime(b, r.pid())-cpu)*per10k, "cpu-ms/10k")
			b.ReportMetric(milliseconds(userTime(b, r.pid())-user)*per10k, "user-ms/10k")
			b.ReportMetric(float64(total)/took.Seconds(), "events/s")
			b.ReportMetric(float64(lost(state)), "events-lost")
			b.ReportMetric(mib(resident(b, r.pid())), "MiB-resident")
			b.ReportMetric(mib(mapMemory(b, r.pid())), "MiB-maps")
			b.reportDelays(subscriber.received(b, total-lost(state)))
			r.end()
		})
	}
}
