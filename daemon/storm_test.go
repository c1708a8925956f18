package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf/testbed"
)

// BenchmarkConnectionStorm tells what flatd costs where it costs most: short
// connections, one after the other, as fast as they go. In turn, round by
// round, nothing watches, flatd does, and tcpdump does, which has every packet
// sent to user space. All figures are of one run; read them as ratios.
func BenchmarkConnectionStorm(b *testing.B) {
	const rounds, connections = 5, 10000
	client, server := testbed.Pair(b)
	watchers := []struct {
		name  string
		start func() (stop func() time.Duration) // stop returns the watcher's CPU time
	}{
		{"nothing", func() func() time.Duration { return func() time.Duration { return 0 } }},
		{"flatd", func() func() time.Duration { return watchWithFlatd(b, client, connections) }},
		{"tcpdump", func() func() time.Duration { return watchWithTcpdump(b, client, "-l") }},
		{"capture", func() func() time.Duration { return watchWithTcpdump(b, client, "-U", "-w", "/dev/null") }},
	}
	rates := make(map[string][]float64)
	costs := make(map[string][]float64) // CPU time per connection in µs, of storm and watcher
	for range rounds {
		for _, w := range watchers {
			stop := w.start()
			storm := runStorm(b, client, server, connections)
			cpu := storm.CPU + stop()
			rates[w.name] = append(rates[w.name], connections/storm.Elapsed.Seconds())
			costs[w.name] = append(costs[w.name], float64(cpu.Microseconds())/connections)
		}
	}
	for range b.N { // the storms are the benchmark; it has no finer step
	}
	base := median(costs["nothing"])
	for _, w := range watchers {
		b.ReportMetric(median(rates[w.name])/median(rates["nothing"]), w.name+"-rate-ratio")
		b.ReportMetric(median(costs[w.name])-base, w.name+"-µs/conn")
	}
	b.ReportMetric(base, "storm-µs/conn")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func watchWithFlatd(b *testing.B, h *testbed.Host, connections int) (stop func() time.Duration) {
	s := newSetup(b, h, testbed.Build(b, "flatd", ""), "")
	p := s.start(b)
	started := cpuTime(b, p.cmd.Process.Pid)
	return func() time.Duration {
		p.waitN("the storm", connections, isResult("established", "client"))
		used := cpuTime(b, p.cmd.Process.Pid) - started
		p.end(syscall.SIGTERM)
		remove := h.Command(testbed.Build(b, "flatctl", ""), "detach", "--config", s.write(b))
		if out, err := remove.CombinedOutput(); err != nil {
			b.Fatalf("detach: %v\n%s", err, out)
		}
		return used
	}
}

// cpuTime is what a process has used so far, by its CPU-time clock
// (clock_getcpuclockid(3)).
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|2, &t); err != nil {
		b.Fatalf("read the CPU time of %d: %v", pid, err)
	}
	return time.Duration(t.Nano())
}

func watchWithTcpdump(b *testing.B, h *testbed.Host, args ...string) (stop func() time.Duration) {
	dump := h.Command(testbed.Tool(b, "tcpdump"), append([]string{"-i", "eth0", "-n", "-Z", "root"}, args...)...)
	said, err := dump.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := dump.Start(); err != nil {
		b.Fatal(err)
	}
	// It announces itself once it listens.
	if _, err := said.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	return func() time.Duration {
		_ = dump.Process.Signal(syscall.SIGINT)
		_ = dump.Wait()
		return dump.ProcessState.UserTime() + dump.ProcessState.SystemTime()
	}
}

// stormResult is what the storm's process tells of itself.
type stormResult struct {
	Elapsed time.Duration
	CPU     time.Duration // of both ends, and of what runs in their context
}

// runStorm has a process of its own make the connections, so that its CPU time
// is theirs alone. It listens on the server's side through an inherited socket.
func runStorm(b *testing.B, client, server *testbed.Host, connections int) (result stormResult) {
	b.Helper()
	var listener net.Listener
	var err error
	server.Do(func() { listener, err = net.Listen("tcp", net.JoinHostPort(server.V4, "0")) })
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	storm := client.Command(os.Args[0], "-test.run", "^TestStormProcess$")
	storm.Env = append(os.Environ(), "FLATD_STORM="+strconv.Itoa(connections))
	storm.ExtraFiles = []*os.File{file}
	out, err := storm.Output()
	if err != nil {
		b.Fatalf("storm: %v", err)
	}
	if err := json.Unmarshal(out[:slices.Index(out, '\n')], &result); err != nil {
		b.Fatalf("storm: %v in %q", err, out)
	}
	return result
}

// TestStormProcess is not a test but the process that runStorm starts.
func TestStormProcess(t *testing.T) {
	connections, err := strconv.Atoi(os.Getenv("FLATD_STORM"))
	if err != nil {
		t.Skip("the other half of BenchmarkConnectionStorm")
	}
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		t.Fatal(err)
	}
	go acceptAll(listener)
	began := time.Now()
	var left atomic.Int64
	left.Store(int64(connections))
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for left.Add(-1) >= 0 {
				conn, err := net.Dial("tcp", listener.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				// Reset it, or the ports would be used up.
				_ = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
		})
	}
	workers.Wait()
	result := stormResult{Elapsed: time.Since(began)}
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	result.CPU = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	line, _ := json.Marshal(result)
	fmt.Printf("%s\n", line)
}

func acceptAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Close()
	}
}
