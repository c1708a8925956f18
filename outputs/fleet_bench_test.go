package outputs

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// BenchmarkFleet has many hosts publish to a cluster of three servers, as fast
// as it takes their events, and then one consumer read them all. Hosts and
// servers share this process and its CPUs: what an event costs them together is
// the figure to reckon with (scale.md), not how many there were in a second.
func BenchmarkFleet(b *testing.B) {
	for _, c := range []struct {
		name     string
		replicas int
		compress jetstream.StoreCompression
	}{
		{"replicas=1", 1, jetstream.NoCompression},
		{"replicas=3", 3, jetstream.NoCompression},
		{"replicas=3,s2", 3, jetstream.S2Compression},
	} {
		b.Run(c.name, func(b *testing.B) {
			const hosts, batches, size = 16, 12, 256
			const events = hosts * batches * size
			servers, urls := cluster(b)
			conn, err := nats.Connect(urls)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			config := everything(c.replicas)
			config.Compression = c.compress
			stream := makeClustered(b, conn, config)
			fleet := newFleet(b, urls, hosts)
			for b.Loop() {
				used, began := ownCPU(b), time.Now()
				fleet.publish(b, batches, size)
				took, used := time.Since(began), ownCPU(b)-used
				b.ReportMetric(events/took.Seconds(), "events/s")
				b.ReportMetric(float64(used.Microseconds())/events, "µs-cpu/event")

				info, err := stream.Info(deadline(b))
				if err != nil || info.State.Msgs != events {
					b.Fatalf("%d of %d events are stored, %v", info.State.Msgs, events, err)
				}
				b.ReportMetric(float64(info.State.Bytes)/events, "B-stored/event")
				b.ReportMetric(float64(onDisk(b, servers))/events, "B-disk/event")
				b.ReportMetric(events/readAll(b, stream, events).Seconds(), "read-events/s")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// fleet is flatd's output on many hosts.
type fleet []*NATS

func newFleet(b *testing.B, urls string, hosts int) (all fleet) {
	for n := range hosts {
		host := &flows.Host{Name: fmt.Sprintf("web%d.example.com", n), BootID: fmt.Sprintf("%08x", n+1)}
		out, err := NewNATS(NATSOptions{Host: func() *flows.Host { return host }, URL: urls, Mode: ModeJetStream})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { out.Close() })
		awaitReady(b, out)
		all = append(all, out)
	}
	return all
}

// publish has each host write so many batches.
func (f fleet) publish(b *testing.B, batches, size uint64) {
	b.Helper()
	var hosts sync.WaitGroup
	for _, out := range f {
		hosts.Go(func() {
			for n := range batches {
				events := samples(n*size+1, (n+1)*size)
				for len(events) > 0 {
					t, err := out.Write(b.Context(), events)
					if events = events[t.Total():]; err != nil {
						b.Logf("tried again: %v", err)
					}
					if b.Context().Err() != nil {
						return
					}
				}
			}
		})
	}
	hosts.Wait()
}

// readAll reads a stream as one consumer, and returns how long that took.
func readAll(b *testing.B, stream jetstream.Stream, events int) time.Duration {
	b.Helper()
	began := time.Now()
	consumer, err := stream.OrderedConsumer(deadline(b), jetstream.OrderedConsumerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		b.Fatal(err)
	}
	defer messages.Stop()
	for range events {
		if _, err := messages.Next(jetstream.NextContext(b.Context())); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(began)
}

// ownCPU is what this process has used so far.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// onDisk is what the servers' stores of messages take. Blocks are compressed
// once they are full, so that the latest is not.
func onDisk(b *testing.B, servers []*server.Server) (octets int64) {
	b.Helper()
	for _, s := range servers {
		err := filepath.WalkDir(s.StoreDir(), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".blk" {
				return nil // what is temporary comes and goes
			}
			info, err := d.Info()
			if err != nil || strings.Contains(path, "$SYS") {
				return nil
			}
			octets += info.Size()
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return octets
}
