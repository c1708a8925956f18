package daemon

import (
	"fmt"
	"testing"
	"time"

	"github.com/flatd/flatd/outputs"
	"github.com/flatd/flatd/packaging/testbed"
)

// BenchmarkThroughput has as much go as goes, connections, one stream and small
// datagrams, with flatd and without in turn, and reports one against the other: the
// rate, and of connections the median time that one takes to be made.
func BenchmarkThroughput(tb *testing.B) {
	b := newBench(tb)
	for _, traffic := range []struct {
		name   string
		rounds int
		bursts int // without flatd in a round, half before and half after as many with it
		units  int // in a burst
		send   func(b *bench, units int) (took, connect time.Duration)
		unit   string
		scale  float64
	}{
		{"connections", 13, 8, 2500, (*bench).connections, "kconn/s", 1e-3},
		{"bulk", 25, 2, 512 << 20, timed(testbed.Bulk), "Gbit/s", 8e-9},
		{"datagrams", 25, 2, 50_000, timed(testbed.Datagrams), "kpackets/s", 1e-3},
	} {
		tb.Run(traffic.name, func(tb *testing.B) {
			b := &bench{tb, b.client, b.server, b.flatd, b.flatctl}
			var with, without, ratios, connects []float64
			b.once(func() {
				for range traffic.rounds {
					var alone, watched bursts
					send := func(to *bursts, n int) {
						for range n {
							to.add(traffic.send(b, traffic.units))
						}
					}
					// In this order, what changes steadily does not matter.
					send(&alone, traffic.bursts/2)
					r := b.start("")
					send(&watched, traffic.bursts)
					r.end()
					send(&alone, traffic.bursts/2)
					units := float64(traffic.bursts*traffic.units) * traffic.scale
					without, with = append(without, units/alone.took), append(with, units/watched.took)
					ratios = append(ratios, alone.took/watched.took)
					if alone.connects != nil {
						connects = append(connects, median(watched.connects)/median(alone.connects))
					}
				}
			})
			b.ReportMetric(median(without), traffic.unit+"-nothing")
			b.ReportMetric(median(with), traffic.unit+"-flatd")
			b.ReportMetric(median(ratios), "rate-ratio")
			if connects != nil {
				b.ReportMetric(median(connects), "connect-ratio")
			}
		})
	}
}

// bursts are what some of them took, in seconds.
type bursts struct {
	took     float64
	connects []float64 // the median of each to connect
}

func (b *bursts) add(took, connect time.Duration) {
	b.took += took.Seconds()
	if connect > 0 {
		b.connects = append(b.connects, connect.Seconds())
	}
}

func timed(send func(t testing.TB, from, to *testbed.Host, units int)) func(*bench, int) (took, connect time.Duration) {
	return func(b *bench, units int) (took, connect time.Duration) {
		began := time.Now()
		send(b, b.client, b.server, units)
		return time.Since(began), 0
	}
}

func (b *bench) connections(n int) (took, connect time.Duration) {
	r := runStorm(b.B, b.client, b.server, storm{Connections: n})
	return r.Elapsed, r.Connect
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
