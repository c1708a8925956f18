package daemon

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/packaging/testbed"
)

// bench is where the benchmarks of the whole take place: two hosts, and flatd
// built once. What it measures is told in ratios to rounds without flatd, or in
// CPU time, which what else the machine does can stretch but not multiply.
type bench struct {
	*testing.B
	client, server *testbed.Host
	flatd, flatctl string // binaries
}

func newBench(b *testing.B) *bench {
	b.Helper()
	client, server := testbed.Pair(b)
	return &bench{b, client, server, testbed.Build(b, "flatd", ""), testbed.Build(b, "flatctl", "")}
}

// start runs a flatd on the client without an output, but for those of config.
func (b *bench) start(config string) *running {
	b.Helper()
	s := newSetup(b, b.client, b.flatd, config)
	s.quiet = true
	return &running{s.start(b), s, b}
}

// running is a flatd that a benchmark looks at.
type running struct {
	*process
	setup *setup
	bench *bench
}

// end ends flatd and takes its programs away.
func (r *running) end() {
	r.bench.Helper()
	r.process.end(syscall.SIGTERM)
	detach := r.setup.host.Command(r.bench.flatctl, "detach", "--config", r.setup.write(r.bench))
	if out, err := detach.CombinedOutput(); err != nil {
		r.bench.Fatalf("detach: %v\n%s", err, out)
	}
}

// pid is flatd's: what runs a command in a namespace becomes that command.
func (r *running) pid() int { return r.cmd.Process.Pid }

// settled waits until flatd has seen so many exchanges in all and its outputs
// have nothing left to do.
func (r *running) settled(exchanges int) state {
	r.bench.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		s := r.status()
		busy := slices.ContainsFunc(s.Outputs, func(o api.OutputStatus) bool { return o.Queued > 0 })
		if s.Books.Read+uint64(lost(s)) >= uint64(exchanges) && !busy {
			return s
		}
		if time.Now().After(deadline) {
			r.bench.Fatalf("flatd has seen %d of %d exchanges: %+v", s.Books.Read, exchanges, s)
		}
	}
}

// lost counts the events that some output has not had, or nobody.
func lost(s state) int {
	n := s.Books.RingFull + s.Books.PendingFull + s.Books.DecodeErrors
	for _, o := range s.Outputs {
		n += o.Dropped + o.Failed
	}
	return int(n)
}

// cpuTime is what a process has used so far, by its CPU-time clock
// (clock_getcpuclockid(3)).
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|2, &spent); err != nil {
		t.Fatalf("read the CPU time of %d: %v", pid, err)
	}
	return time.Duration(spent.Nano())
}

// userTime is the part of a process's CPU time that was spent outside the
// kernel (proc_pid_stat(5)). The kernel tells it in steps of 10 ms.
func userTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	const utime = 14 - 2 // behind pid and (comm)
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	ticks, err := strconv.Atoi(string(fields[utime-1]))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 everywhere
}

// subscriber receives what flatd publishes, and notes how long after the
// answer's packet each event came.
type subscriber struct {
	url    string
	delays chan time.Duration
}

const natsConfig = "[outputs.nats]\nurl = %q\nmode = %q\n"

// subscribe runs a NATS server on the client, and a subscriber to it, in this
// process, which is neither flatd's nor the storm's.
func (b *bench) subscribe(events int) *subscriber {
	b.Helper()
	hub := startNATS(b, b.client, &server.Options{})
	s := &subscriber{url: hub.ClientURL(), delays: make(chan time.Duration, events)}
	conn := natsClient(b, hub)
	_, err := conn.Subscribe("flatd.v1.*.tcp.>", func(m *nats.Msg) {
		if at, ok := timestampOf(m.Data); ok {
			s.delays <- time.Since(at)
		}
	})
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// timestampOf is the time of an event, without reading all of its JSON: the
// subscriber is not to be the slow part.
func timestampOf(event []byte) (time.Time, bool) {
	_, rest, found := bytes.Cut(event, []byte(`"@timestamp":"`))
	text, _, closed := bytes.Cut(rest, []byte{'"'})
	at, err := time.Parse(time.RFC3339Nano, string(text))
	return at, found && closed && err == nil
}

// received waits for so many events and returns their delays, least first.
func (s *subscriber) received(t testing.TB, events int) []time.Duration {
	t.Helper()
	late := time.After(patience)
	all := make([]time.Duration, 0, events)
	for len(all) < events {
		select {
		case d := <-s.delays:
			all = append(all, d)
		case <-late:
			t.Fatalf("the subscriber has %d of %d events", len(all), events)
		}
	}
	slices.Sort(all)
	return all
}

// reportDelays tells the quantiles in ms.
func (b *bench) reportDelays(all []time.Duration) {
	for _, q := range []int{50, 90, 99} {
		b.ReportMetric(milliseconds(all[len(all)*q/100]), fmt.Sprintf("ms-delay-p%d", q))
	}
	b.ReportMetric(milliseconds(all[len(all)-1]), "ms-delay-max")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// mib is for sizes in octets.
func mib(octets int) float64 { return float64(octets) / (1 << 20) }

// resident is VmRSS of proc_pid_status(5) in bytes, without the maps of the
// kernel's half that the process has mapped, the ring twice over: those pages
// are counted as maps.
func resident(t testing.TB, pid int) int {
	t.Helper()
	rss := procField(t, fmt.Sprintf("/proc/%d/status", pid), "VmRSS:") << 10
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	isMap := false
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case !strings.HasSuffix(fields[0], ":"): // the head of a mapping
			isMap = fields[len(fields)-1] == "anon_inode:bpf-map"
		case isMap && fields[0] == "Rss:":
			kB, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			rss -= kB << 10
		}
	}
	return rss
}

// once is the loop of a benchmark whose rounds are of its own making.
func (b *bench) once(do func()) {
	for b.Loop() {
		do()
	}
	b.ReportMetric(0, "ns/op")
}
