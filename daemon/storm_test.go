package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// A watcher looks on while a storm goes by.
type watcher struct {
	name  string
	start func() (stop func() time.Duration) // stop returns the watcher's CPU time
}

// BenchmarkConnectionStorm tells what flatd costs where it costs most: short
// connections of one small request and answer each, as fast as they go. In turn,
// round by round, nothing watches, or flatd, or one of those that have every
// packet sent to user space: two that match handshakes there (userspace_test.go), tcpdump
// that prints, tcpdump that captures. All figures are of one run; read them as
// ratios. What a watcher costs is told in two ways: as what the storm and the
// watcher took together beyond what the storm takes alone, which is everything
// and noisy; and as the watcher's own CPU time ("own") with, for flatd, that of
// its programs by the kernel's account, taken in rounds of their own since
// keeping it costs something too.
func BenchmarkConnectionStorm(tb *testing.B) {
	const rounds, connections = 9, 10000
	b := newBench(tb)
	events := 0 // lost
	watchers := []watcher{
		{"nothing", func() func() time.Duration { return func() time.Duration { return 0 } }},
		// As by default, where journald gets ten successes a second and the rest is counted.
		{"flatd", func() func() time.Duration { return b.watchWithFlatd(connections, true, &events) }},
		{"flatd-json", func() func() time.Duration { return b.watchWithFlatd(connections, false, &events) }},
		{"flatd-programs", func() func() time.Duration { return b.countPrograms(connections) }},
		{"tcpdump", func() func() time.Duration { return watchWithTcpdump(tb, b.client, "-l") }},
		{"userspace", func() func() time.Duration { return watchFromUserSpace(tb, b.client, userSpaceSocket) }},
		{"userspace-ring", func() func() time.Duration { return watchFromUserSpace(tb, b.client, userSpaceRing) }},
		{"capture", func() func() time.Duration { return watchWithTcpdump(tb, b.client, "-U", "-w", "/dev/null") }},
	}
	costs := newStormCosts()
	b.once(func() {
		for range rounds {
			slices.Reverse(watchers) // who is first has no advantage
			results := make(map[string]stormResult)
			for _, w := range watchers {
				stop := w.start()
				result := runStorm(tb, b.client, b.server, storm{Connections: connections})
				result.Watcher = stop()
				results[w.name] = result
			}
			costs.add(results, connections)
		}
	})
	b.ReportMetric(float64(events), "events-lost")
	costs.report(tb)
}

// stormCosts are the figures of all rounds, by the watcher's name.
type stormCosts struct {
	rates    map[string][]float64 // of connections, against nothing in the same round
	connects map[string][]float64 // median time to connect, against nothing in the same round
	costs    map[string][]float64 // CPU time per connection in µs, of storm and watcher, less that of nothing
	own      map[string][]float64 // of the watcher alone, without what its programs cost the storm
	storms   []float64
}

func newStormCosts() *stormCosts {
	return &stormCosts{
		rates: make(map[string][]float64), connects: make(map[string][]float64),
		costs: make(map[string][]float64), own: make(map[string][]float64),
	}
}

// add enters a round.
func (c *stormCosts) add(round map[string]stormResult, connections int) {
	alone := round["nothing"]
	c.storms = append(c.storms, perConnection(alone.CPU, connections))
	for name, r := range round {
		c.own[name] = append(c.own[name], perConnection(r.Watcher, connections))
		c.costs[name] = append(c.costs[name], perConnection(r.CPU+r.Watcher-alone.CPU, connections))
		c.rates[name] = append(c.rates[name], alone.Elapsed.Seconds()/r.Elapsed.Seconds())
		c.connects[name] = append(c.connects[name], r.Connect.Seconds()/alone.Connect.Seconds())
	}
}

func (c *stormCosts) report(b *testing.B) {
	for name := range c.own {
		if name == "nothing" {
			continue
		}
		b.ReportMetric(median(c.own[name]), name+"-own-µs/conn")
		if name != "flatd-programs" {
			b.ReportMetric(median(c.rates[name]), name+"-rate-ratio")
			b.ReportMetric(median(c.connects[name]), name+"-connect-ratio")
			b.ReportMetric(median(c.costs[name]), name+"-µs/conn")
		}
	}
	flatd := median(c.own["flatd"]) + median(c.own["flatd-programs"])
	b.ReportMetric(flatd/100, "flatd-cpu-s/10k") // 10,000 times so many µs
	b.ReportMetric(median(c.storms), "storm-µs/conn")
	b.ReportMetric(median(c.costs["flatd"])/median(c.costs["userspace"]), "x-userspace")
	b.ReportMetric(median(c.costs["flatd"])/median(c.costs["userspace-ring"]), "x-userspace-ring")
	b.ReportMetric(flatd/median(c.own["userspace"]), "x-userspace-own")
}

func perConnection(t time.Duration, connections int) float64 {
	return float64(t.Nanoseconds()) / 1000 / float64(connections)
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func (b *bench) watchWithFlatd(connections int, quiet bool, events *int) (stop func() time.Duration) {
	s := newSetup(b, b.client, b.flatd, "")
	s.quiet = quiet
	r := &running{s.start(b), s, b}
	started := cpuTime(b, r.pid())
	return func() time.Duration {
		*events += lost(r.settled(connections))
		used := cpuTime(b, r.pid()) - started
		r.end()
		return used
	}
}

// countPrograms is watchWithFlatd, but what stop returns is the time that the
// programs took, by the kernel's account and with what keeping it costs.
func (b *bench) countPrograms(connections int) (stop func() time.Duration) {
	keeping, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	r := b.start("")
	return func() time.Duration {
		r.settled(connections)
		var took time.Duration
		for _, name := range []string{"flat_ingress", "flat_egress"} {
			took += programTime(b.B, r.setup.pinned(name))
		}
		_ = keeping.Close()
		r.end()
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

// storm is what the storm's process is told.
type storm struct {
	Connections int
	PerSecond   int // 0: as fast as they go
}

// stormResult is what it tells of itself.
type stormResult struct {
	Elapsed time.Duration
	CPU     time.Duration // of both ends, and of what runs in their context
	Connect time.Duration // the median that a connection took to be made
	Watcher time.Duration // its CPU time, which the storm does not know
}

const stormVariable = "FLATD_STORM"

// runStorm has a process of its own make the connections, so that its CPU time
// is theirs alone. It listens on the server's side through an inherited socket.
func runStorm(b *testing.B, client, server *testbed.Host, orders storm) (result stormResult) {
	b.Helper()
	listener := server.Listen(b, net.JoinHostPort(server.V4, "0"))
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	text, _ := json.Marshal(orders)
	process := client.Command(os.Args[0], "-test.run", "^TestStormProcess$")
	process.Env = append(os.Environ(), stormVariable+"="+string(text))
	process.ExtraFiles = []*os.File{file}
	out, err := process.Output()
	if err != nil {
		b.Fatalf("storm: %v\n%s", err, out)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	if err := json.Unmarshal(line, &result); err != nil {
		b.Fatalf("storm: %v in %q", err, out)
	}
	return result
}

// TestStormProcess is not a test but the process that runStorm starts.
func TestStormProcess(t *testing.T) {
	var orders storm
	if json.Unmarshal([]byte(os.Getenv(stormVariable)), &orders) != nil {
		t.Skip("the other half of the benchmarks")
	}
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		t.Fatal(err)
	}
	go testbed.AnswerEach(listener)
	result, err := orders.carryOut(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	line, _ := json.Marshal(result)
	fmt.Printf("%s\n", line)
}

// carryOut makes the connections, four at a time.
func (o storm) carryOut(address string) (result stormResult, err error) {
	began := time.Now()
	turns := o.turns()
	took := make([]time.Duration, o.Connections)
	errs := make([]error, o.Connections)
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for n := range turns {
				start := time.Now()
				conn, err := net.Dial("tcp", address)
				if took[n], errs[n] = time.Since(start), err; err == nil {
					testbed.Ask(conn)
				}
			}
		})
	}
	workers.Wait()
	result.Elapsed = time.Since(began)
	slices.Sort(took)
	result.Connect = took[len(took)/2]
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return result, err
	}
	result.CPU = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return result, errors.Join(errs...)
}

// turns numbers the connections, each when it is to be made.
func (o storm) turns() <-chan int {
	turns := make(chan int, 64)
	go func() {
		defer close(turns)
		began := time.Now()
		for n := range o.Connections {
			if o.PerSecond > 0 {
				time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(o.PerSecond))))
			}
			turns <- n
		}
	}()
	return turns
}
