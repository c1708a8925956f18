package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf/testbed"
)

// BenchmarkConnectionStorm tells what flatd costs where it costs most: short
// connections of one small request and answer each, as fast as they go. In turn,
// round by round, nothing watches, or flatd, or one of those that have every
// packet sent to user space: a program that matches handshakes there, tcpdump
// that prints, tcpdump that captures. All figures are of one run; read them as
// ratios. What a watcher costs is told in two ways: as what the storm and the
// watcher took together beyond what the storm takes alone, which is everything
// and noisy; and as the watcher's own CPU time ("own") with, for flatd, that of
// its programs by the kernel's account, taken in rounds of their own since
// keeping it costs something too.
func BenchmarkConnectionStorm(b *testing.B) {
	const rounds, connections = 9, 10000
	client, server := testbed.Pair(b)
	watchers := []struct {
		name  string
		start func() (stop func() time.Duration) // stop returns the watcher's CPU time
	}{
		{"nothing", func() func() time.Duration { return func() time.Duration { return 0 } }},
		// As by default, where journald gets ten successes a second and the rest is counted.
		{"flatd", func() func() time.Duration { return watchWithFlatd(b, client, connections, true) }},
		{"flatd-json", func() func() time.Duration { return watchWithFlatd(b, client, connections, false) }},
		{"flatd-programs", func() func() time.Duration { return countPrograms(b, client, connections) }},
		{"tcpdump", func() func() time.Duration { return watchWithTcpdump(b, client, "-l") }},
		{"userspace", func() func() time.Duration { return watchFromUserSpace(b, client) }},
		{"capture", func() func() time.Duration { return watchWithTcpdump(b, client, "-U", "-w", "/dev/null") }},
	}
	rates := make(map[string][]float64) // against nothing in the same round
	costs := make(map[string][]float64) // CPU time per connection in µs, of storm and watcher, less that of nothing
	own := make(map[string][]float64)   // of the watcher alone, without what its programs cost the storm
	var storms []float64
	for range rounds {
		var alone stormResult
		for _, w := range watchers {
			stop := w.start()
			storm := runStorm(b, client, server, connections)
			watcher := stop()
			if w.name == "nothing" {
				alone = storm
				storms = append(storms, perConnection(storm.CPU, connections))
			}
			own[w.name] = append(own[w.name], perConnection(watcher, connections))
			costs[w.name] = append(costs[w.name], perConnection(storm.CPU+watcher-alone.CPU, connections))
			rates[w.name] = append(rates[w.name], alone.Elapsed.Seconds()/storm.Elapsed.Seconds())
		}
	}
	for range b.N { // the storms are the benchmark; it has no finer step
	}
	programs := median(own["flatd-programs"])
	for _, w := range watchers[1:] {
		b.ReportMetric(median(own[w.name]), w.name+"-own-µs/conn")
		if w.name != "flatd-programs" {
			b.ReportMetric(median(rates[w.name]), w.name+"-rate-ratio")
			b.ReportMetric(median(costs[w.name]), w.name+"-µs/conn")
		}
	}
	b.ReportMetric(median(storms), "storm-µs/conn")
	b.ReportMetric(median(costs["flatd"])/median(costs["userspace"]), "x-userspace")
	b.ReportMetric((median(own["flatd"])+programs)/median(own["userspace"]), "x-userspace-own")
}

func perConnection(t time.Duration, connections int) float64 {
	return float64(t.Nanoseconds()) / 1000 / float64(connections)
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func watchWithFlatd(b *testing.B, h *testbed.Host, connections int, quiet bool) (stop func() time.Duration) {
	s := newSetup(b, h, testbed.Build(b, "flatd", ""), "")
	s.quiet = quiet
	p := s.start(b)
	started := cpuTime(b, p.cmd.Process.Pid)
	return func() time.Duration {
		p.waitRead(connections)
		used := cpuTime(b, p.cmd.Process.Pid) - started
		s.endAndDetach(b, p)
		return used
	}
}

func (s *setup) endAndDetach(b *testing.B, p *process) {
	b.Helper()
	p.end(syscall.SIGTERM)
	detach := s.host.Command(testbed.Build(b, "flatctl", ""), "detach", "--config", s.write(b))
	if out, err := detach.CombinedOutput(); err != nil {
		b.Fatalf("detach: %v\n%s", err, out)
	}
}

// waitRead waits until flatd has read so many exchanges.
func (p *process) waitRead(exchanges int) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); p.status().Books.Read < uint64(exchanges); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("flatd has seen %d of %d exchanges", p.status().Books.Read, exchanges)
		}
	}
}

// countPrograms is watchWithFlatd, but what stop returns is the time that the
// programs took, by the kernel's account and with what keeping it costs.
func countPrograms(b *testing.B, h *testbed.Host, connections int) (stop func() time.Duration) {
	keeping, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	s := newSetup(b, h, testbed.Build(b, "flatd", ""), "")
	s.quiet = true
	p := s.start(b)
	return func() time.Duration {
		p.waitRead(connections)
		var took time.Duration
		for _, name := range []string{"flat_ingress", "flat_egress"} {
			took += programTime(b, filepath.Join(s.pins, "v1", name))
		}
		_ = keeping.Close()
		s.endAndDetach(b, p)
		return took
	}
}

// programTime is how long a pinned program has run.
func programTime(b *testing.B, pin string) time.Duration {
	b.Helper()
	program, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer program.Close()
	stats, err := program.Stats()
	if err != nil {
		b.Fatal(err)
	}
	return stats.Runtime
}

// watchFromUserSpace is flatd's job without the kernel's half: a process of its
// own receives each packet, decodes it, matches SYN and SYN/ACK.
func watchFromUserSpace(b *testing.B, h *testbed.Host) (stop func() time.Duration) {
	watcher := h.Command(os.Args[0], "-test.run", "^TestUserSpaceProcess$")
	watcher.Env = append(os.Environ(), "FLATD_USERSPACE=1")
	out, err := watcher.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := watcher.Start(); err != nil {
		b.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it listens
		b.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	started := cpuTime(b, watcher.Process.Pid)
	return func() time.Duration {
		used := cpuTime(b, watcher.Process.Pid) - started
		_ = watcher.Process.Kill()
		_ = watcher.Wait()
		return used
	}
}

// TestUserSpaceProcess is not a test but the process that watchFromUserSpace
// starts; it ends when it is killed.
func TestUserSpaceProcess(t *testing.T) {
	if os.Getenv("FLATD_USERSPACE") == "" {
		t.Skip("the other half of BenchmarkConnectionStorm")
	}
	const everything = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, everything)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("listening")
	var ethernet layers.Ethernet
	var ip layers.IPv4
	var tcp layers.TCP
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &ethernet, &ip, &tcp)
	parser.IgnoreUnsupported = true
	asked := make(map[gopacket.Flow]time.Time)
	decoded := make([]gopacket.LayerType, 0, 4)
	frame := make([]byte, 65536)
	for {
		n, err := unix.Read(fd, frame)
		if err != nil {
			t.Fatal(err)
		}
		if parser.DecodeLayers(frame[:n], &decoded) != nil || len(decoded) < 3 || !tcp.SYN {
			continue
		}
		if ports := tcp.TransportFlow(); !tcp.ACK {
			asked[ports] = time.Now()
		} else if began, ok := asked[ports.Reverse()]; ok {
			delete(asked, ports.Reverse())
			fmt.Printf("{\"source\":%q,\"destination\":%q,\"duration\":%d}\n", ip.DstIP, ip.SrcIP, time.Since(began))
		}
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
				_, _ = conn.Write(make([]byte, 100))
				_, _ = io.Copy(io.Discard, conn) // the server closes first and keeps TIME_WAIT
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
		go func() {
			_, _ = conn.Read(make([]byte, 100))
			_, _ = conn.Write(make([]byte, 1000))
			conn.Close()
		}()
	}
}
