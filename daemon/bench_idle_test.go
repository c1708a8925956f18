package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// idleTime is how long BenchmarkIdle looks on.
func idleTime() time.Duration {
	if os.Getenv("BENCH_LONG") != "" {
		return time.Minute
	}
	return 20 * time.Second
}

// BenchmarkIdle reports what flatd takes while nothing happens: memory, the
// maps of the kernel's half, and the share of a core.
func BenchmarkIdle(tb *testing.B) {
	b := newBench(tb)
	subscriber := b.subscribe(1)
	r := b.start(fmt.Sprintf(natsConfig, subscriber.url, "auto"))
	cpu := cpuTime(b, r.pid())
	began := time.Now()
	b.once(func() { time.Sleep(idleTime()) })
	share := (cpuTime(b, r.pid()) - cpu).Seconds() / time.Since(began).Seconds()
	b.ReportMetric(100*share, "%core")
	b.ReportMetric(mib(resident(b, r.pid())), "MiB-resident")
	b.ReportMetric(mib(mapMemory(b, r.pid())), "MiB-maps")
	r.end()
}

// BenchmarkStart reports how long it takes from exec to readiness (sd_notify(3)),
// with one interface and with many, when flatd makes the kernel's half and when
// it adopts what is there.
func BenchmarkStart(tb *testing.B) {
	for _, interfaces := range []int{1, 200} {
		b := newBench(tb)
		const rounds = 3
		var fresh, adopt []float64
		tb.Run(fmt.Sprintf("interfaces=%d", interfaces), func(tb *testing.B) {
			b := &bench{tb, b.client, b.server, b.flatd, b.flatctl}
			names := `"eth0"`
			if interfaces > 1 {
				names = `"many*"`
				b.makeInterfaces(interfaces)
			}
			b.once(func() {
				for range rounds {
					s := newSetup(b, b.client, b.flatd, "")
					s.interfaces, s.quiet = names, true
					first, r := b.untilReady(s, interfaces)
					r.process.end(syscall.SIGTERM)
					again, r := b.untilReady(s, interfaces)
					r.end()
					fresh, adopt = append(fresh, milliseconds(first)), append(adopt, milliseconds(again))
				}
			})
			b.ReportMetric(median(fresh), "ms-first")
			b.ReportMetric(median(adopt), "ms-adopt")
		})
	}
}

// makeInterfaces makes as many as are to be measured.
func (b *bench) makeInterfaces(n int) {
	b.Helper()
	file := filepath.Join(b.TempDir(), "batch")
	if err := os.WriteFile(file, []byte(linkBatch("add", 0, n)), 0o600); err != nil {
		b.Fatal(err)
	}
	testbed.Run(b, "ip", "-n", b.client.Name, "-batch", file)
}

// untilReady starts flatd and returns how long that took.
func (b *bench) untilReady(s *setup, interfaces int) (time.Duration, *running) {
	b.Helper()
	// A directory of its own: what the path may be long is little.
	dir, err := os.MkdirTemp("", "flatd")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		b.Fatal(err)
	}
	defer manager.Close()
	if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
		b.Fatal(err)
	}
	s.env = []string{"NOTIFY_SOCKET=" + manager.LocalAddr().String()}
	began := time.Now()
	p := s.launch(b)
	message := make([]byte, 4096)
	for {
		n, err := manager.Read(message)
		if err != nil {
			b.Fatalf("wait for readiness: %v", err)
		}
		if strings.Contains(string(message[:n]), "READY=1") {
			break
		}
	}
	took := time.Since(began)
	r := &running{p, s, b}
	if got := len(p.interfaces()); got != interfaces {
		b.Fatalf("%d interfaces are measured, want %d", got, interfaces)
	}
	return took, r
}
