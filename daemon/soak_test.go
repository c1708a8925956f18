package daemon

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/packaging/testbed"
)

// soakVariable makes a long run of the tests that repeat something: how often
// they do (`make test-soak`).
const soakVariable = "FLATD_SOAK"

func rounds(t testing.TB, everyday int) int {
	t.Helper()
	text := os.Getenv(soakVariable)
	if text == "" {
		return everyday
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number of rounds", soakVariable, text)
	}
	return max(n, everyday)
}

// The outputs write at most so many events at once (outputs.batchMax); a killed
// flatd has those of one write delivered without knowing it.
const batch = 256

// loadPace is what the tests' machine bears beside flatd's starts.
const loadPace = 300 // connections per second

// quickTimeouts has the load's silent attempts end within the test.
const quickTimeouts = "measure.timeout = \"1s\"\nsummary.interval = \"0s\"\n"

// run is one flatd from start to end.
type run struct {
	events []event
	signal syscall.Signal
}

// reconcile holds what flatd delivered over all its runs against what the load
// made: each attempt once, with its result; the sequence of each state in the
// kernel without a gap; twice only what a kill interrupted, and then the same.
func reconcile(t *testing.T, made []attempt, runs []run, states int) {
	t.Helper()
	expected := make(map[attempt]int)
	for _, a := range made {
		expected[a]++
	}
	first := make(map[string]event) // by id
	var sequences []uint64
	doubles, bound := 0, 0
	for n, r := range runs {
		seen := make(map[string]bool)
		for _, e := range r.events {
			if e.Flatd.Side == "" {
				continue
			}
			if seen[e.Event.ID] {
				t.Errorf("twice from one flatd: %s", e)
			}
			seen[e.Event.ID] = true
			if before, again := first[e.Event.ID]; again {
				doubles++
				sameAgain(t, before, e)
				continue
			}
			first[e.Event.ID] = e
			if expected[e.attempt()]--; expected[e.attempt()] < 0 {
				t.Errorf("run %d: nobody made this attempt, or not so often: %s", n, e)
			}
			sequences = append(sequences, e.Event.Sequence)
		}
		if doubles > bound {
			t.Errorf("run %d: %d events were delivered twice by now, want at most %d", n, doubles, bound)
		}
		if r.signal == syscall.SIGKILL {
			bound += batch
		}
	}
	missing := 0
	for a, n := range expected {
		if n > 0 {
			if missing++; missing <= 10 {
				t.Errorf("no event for %+v", a)
			}
		}
	}
	slices.Sort(sequences)
	if len(sequences) == 0 {
		t.Fatal("no events")
	}
	gaps := 0
	for i := range sequences[1:] {
		if sequences[i+1] != sequences[i]+1 {
			gaps++
		}
	}
	// Of what the programs of two states have begun, one leaves its number out.
	if gaps != 0 && states == 1 {
		t.Errorf("%d gaps in %d sequence numbers of %d states", gaps, len(sequences), states)
	}
	t.Logf("%d attempts, %d missing, %d delivered twice in %d runs", len(made), missing, doubles, len(runs))
}

// attempt is what the load must have made for this event.
func (e event) attempt() attempt {
	end := func(ip string, port int) netip.AddrPort {
		addr, _ := netip.ParseAddr(ip)
		return netip.AddrPortFrom(addr, uint16(port))
	}
	return attempt{From: end(e.Source.IP, e.Source.Port), To: end(e.Destination.IP, e.Destination.Port), Result: e.Flatd.Result}
}

// sameAgain wants an event that comes twice to say the same.
func sameAgain(t *testing.T, a, b event) {
	t.Helper()
	// The wall clock is read anew by each flatd, and may be a little apart.
	if apart := b.Timestamp.Sub(a.Timestamp).Abs(); apart > 10*time.Millisecond {
		t.Errorf("%s at %s, and again at %s", a, a.Timestamp, b.Timestamp)
	}
	if a.attempt() != b.attempt() || a.Event.Duration != b.Event.Duration || a.Event.Sequence != b.Event.Sequence ||
		a.Flatd.Retransmits != b.Flatd.Retransmits {
		t.Errorf("%s, and again as %s", a, b)
	}
}

// closeAccounts has a last flatd deliver what is left, and balances all accounts.
func closeAccounts(t *testing.T, s *setup, l *load, runs []run) {
	t.Helper()
	last := s.start(t)
	made := l.stop()
	books := booksBalance(t, last).Books
	if int(books.Requests) != len(made) || books.Replaced+books.PendingFull+books.RingFull != 0 {
		t.Errorf("the load made %d attempts: %+v", len(made), books)
	}
	runs = append(runs, run{last.end(syscall.SIGTERM), syscall.SIGTERM})
	reconcile(t, made, runs, 1)
}

// TestNothingIsLostToKill kills flatd at random moments under a steady load: at
// work, and at its start too. The OOM killer sends the same signal.
func TestNothingIsLostToKill(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	s.start(t).end(syscall.SIGTERM) // the load is to find the programs attached
	l := startLoad(newTraffic(t, client, server), loadPace, 0)
	var runs []run
	for range rounds(t, 10) {
		p := s.launch(t)
		// The moment is the subject: within the start or the work after it.
		time.Sleep(rand.N(1200 * time.Millisecond))
		runs = append(runs, run{p.end(syscall.SIGKILL), syscall.SIGKILL})
	}
	closeAccounts(t, s, l, runs)
}

// isNews tells exchanges of this flatd's time.
func isNews(e event) bool { return e.Flatd.Side != "" && !e.Flatd.Replayed }

// TestAFirstStartMayBeKilled kills flatd while it makes its pins.
func TestAFirstStartMayBeKilled(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	tr := newTraffic(t, client, server)
	pins := s.pins
	for n := range rounds(t, 3) {
		s.pins = fmt.Sprint(pins, n)
		p := s.launch(t)
		time.Sleep(rand.N(500 * time.Millisecond)) // the moment is the subject
		p.end(syscall.SIGKILL)
		p = s.start(t)
		tr.connect(server.V4)
		p.wait("the handshake", isResult("established", "client"))
		booksBalance(t, p)
		p.end(syscall.SIGTERM)
		if n := programsOn(t, client, 2); n != 2 {
			t.Errorf("%d programs on eth0, want 2", n)
		}
		s.detach(t)
		if n := programsOn(t, client, 2); n != 0 {
			t.Errorf("%d programs on eth0 after the removal", n)
		}
	}
}

// detach removes everything, as flatctl does.
func (s *setup) detach(t *testing.T) {
	t.Helper()
	var err error
	s.host.Do(func() { _, err = bpf.Remove(s.pins) })
	if err != nil {
		t.Fatal(err)
	}
}

// TestTheDeadMansSwitch has the lease end while no flatd is there.
func TestTheDeadMansSwitch(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	tr := newTraffic(t, client, server)
	p := s.start(t)
	tr.connect(server.V4)
	p.wait("a handshake", isResult("established", "client"))
	p.end(syscall.SIGTERM)

	state, err := bpf.Open(s.pins, bpf.Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	until, now := state.Lease(), bpf.BootTime()
	if keep := uint64(config.Defaults().KeepFor); until > now+keep || until+uint64(patience) < now+keep {
		t.Errorf("the lease ends in %s, want keep_for or a little less", time.Duration(until-now))
	}
	state.RenewLease(now - 1)
	const asleep = 3
	for range asleep {
		tr.connect(server.V4)
	}
	counters, err := state.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if n := counters.Map()["asleep"]; n < 2*asleep || counters[bpf.Requests] != 1 {
		t.Errorf("asleep for %d packets of %d handshakes, %d requests seen", n, asleep, counters[bpf.Requests])
	}
	if err := state.Close(); err != nil {
		t.Fatal(err)
	}

	p = s.start(t)
	tr.connect(server.V4)
	p.wait("a handshake once there is a flatd again", isNews)
	if b := booksBalance(t, p).Books; b.Requests != 2 {
		t.Errorf("%d requests, want those of the two handshakes that flatd was awake for", b.Requests)
	}
}

// TestNothingIsLostOrDoubledByARestart ends flatd as systemd does.
func TestNothingIsLostOrDoubledByARestart(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	s.start(t).end(syscall.SIGTERM)
	l := startLoad(newTraffic(t, client, server), loadPace, 0)
	var runs []run
	for range rounds(t, 4) {
		p := s.start(t)
		p.waitN("some events", 50, isNews)
		runs = append(runs, run{p.end(syscall.SIGTERM), syscall.SIGTERM})
	}
	closeAccounts(t, s, l, runs)
}

// otherPrograms are the edits of a release whose programs are others, on the
// same maps.
var otherPrograms = []testbed.Edit{
	{File: "bpf/load.go", Old: "variables.Name, variables.Pinning = variablesPin, ebpf.PinByName\n",
		New: `variables.Name, variables.Pinning = variablesPin, ebpf.PinByName
	for _, p := range spec.Programs {
		// Behind the first instruction, which carries the function's name.
		p.Instructions = append(asm.Instructions{p.Instructions[0], asm.Mov.Imm(asm.R0, 0)}, p.Instructions[1:]...)
	}
`},
}

// TestNothingIsLostByAnUpgrade changes to and fro between two releases with
// programs of their own, by a stop and by a kill.
func TestNothingIsLostByAnUpgrade(t *testing.T) {
	client, server := testbed.Pair(t)
	binaries := []string{testbed.Build(t, "flatd", ""), testbed.BuildVaried(t, "flatd", otherPrograms...)}
	s := newSetup(t, client, binaries[0], quickTimeouts)
	s.start(t).end(syscall.SIGTERM)
	l := startLoad(newTraffic(t, client, server), loadPace, 0)
	var runs []run
	for n := range rounds(t, 4) {
		s.binary = binaries[(n+1)%2]
		p := s.start(t)
		if start := p.status().Start; start != "replace" {
			t.Errorf("start %q, want replace", start)
		}
		p.waitN("some events", 50, isNews)
		signal := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[n/2%2]
		runs = append(runs, run{p.end(signal), signal})
		if n := programsOn(t, client, 2); n != 2 {
			t.Fatalf("%d programs on eth0, want 2", n)
		}
	}
	closeAccounts(t, s, l, runs)
}

// otherLayout are the edits of a release with other maps.
var otherLayout = []testbed.Edit{
	{File: "bpf/layout.go", Old: fmt.Sprintf("const ABI = %d\n", bpf.ABI), New: fmt.Sprintf("const ABI = %d\n", bpf.ABI+1)},
	{File: "bpf/load.go", Old: "variables.Name, variables.Pinning = variablesPin, ebpf.PinByName\n",
		New: `variables.Name, variables.Pinning = variablesPin, ebpf.PinByName
		spec.Maps[kernelMapFlatEvents].MaxEntries *= 2
		spec.Maps[kernelMapFlatTheirs].MaxEntries /= 2
`},
}

// TestNothingIsLostByAnotherLayout upgrades to a release with other maps, kills
// it while it takes over, and goes back.
func TestNothingIsLostByAnotherLayout(t *testing.T) {
	old, new := testbed.Build(t, "flatd", ""), testbed.BuildVaried(t, "flatd", otherLayout...)
	for _, attach := range []string{"tcx", "clsact"}[:min(2, rounds(t, 1))] {
		t.Run(attach, func(t *testing.T) {
			client, server := testbed.Pair(t)
			s := newSetup(t, client, old, "attach = \""+attach+"\"\n"+quickTimeouts)
			s.start(t).end(syscall.SIGTERM)
			l := startLoad(newTraffic(t, client, server), loadPace/2, 0)
			t.Cleanup(func() { s.detach(t) })
			var runs []run
			next := func(binary string, signal syscall.Signal, ready func(state) bool) {
				s.binary = binary
				p := s.start(t)
				p.awaitStatus("its turn to end", ready)
				runs = append(runs, run{p.end(signal), signal})
			}
			alone := func(s state) bool { return !s.TakingOver && s.Books.Read > 50 }
			next(old, syscall.SIGTERM, alone)
			next(new, syscall.SIGKILL, func(s state) bool { return s.TakingOver && s.Books.Read > 50 && s.Books.TakenOver > 0 })
			next(new, syscall.SIGTERM, alone)
			next(old, syscall.SIGKILL, alone)
			s.binary = old
			last := s.start(t)
			made := l.stop()
			booksBalance(t, last)
			runs = append(runs, run{last.end(syscall.SIGTERM), syscall.SIGTERM})
			reconcile(t, made, runs, 3)
		})
	}
}

// TestWhatAnOutputHoldsOutlivesAKill kills flatd when it has handshakes and
// timeouts that its output, which nobody reads, cannot deliver.
func TestWhatAnOutputHoldsOutlivesAKill(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	s.stdout = fullPipe(t)
	p := s.launch(t)
	p.awaitStatus("measuring", func(s state) bool { return s.Measuring })
	const n = 300
	tr := newTraffic(t, client, server)
	for port := range n {
		from := netip.AddrPortFrom(netip.MustParseAddr(client.V4), uint16(loadPortFirst+port))
		syscall.Close(tr.begin(from, netip.AddrPortFrom(netip.MustParseAddr(silentV4), tcpPort)))
	}
	p.awaitStatus("the timeouts in the queue", func(s state) bool { return s.Books.TimeoutsSeen == n })
	const handshakes = 20
	for range handshakes {
		tr.connect(server.V4)
	}
	// That the ring is held back shows that the outputs have been asked since.
	p.awaitStatus("the handshakes in the queue", func(s state) bool {
		return s.Books.Read == n+handshakes && s.Ring.Outstanding > 0 && s.Outputs[0].Delivered == 0 && s.Outputs[0].Queued >= n+handshakes
	})
	p.end(syscall.SIGKILL)

	s.stdout = nil
	p = s.start(t)
	ports := make(map[int]bool)
	for _, e := range p.waitN("the timeouts", n, isResult("timeout", "client")) {
		if ports[e.Source.Port] {
			t.Errorf("twice: %s", e)
		}
		ports[e.Source.Port] = true
	}
	p.waitN("the handshakes", handshakes, isResult("established", "client"))
	if b := booksBalance(t, p).Books; b.Requests != n+handshakes || b.TimedOut != n || b.TimeoutsSeen != n || b.Read != n+handshakes || b.ReadBefore != 0 {
		t.Errorf("%d handshakes were made, and %d requests in vain: %+v", handshakes, n, b)
	}
	p.end(syscall.SIGTERM)
	p = s.start(t)
	booksBalance(t, p)
	for _, e := range p.end(syscall.SIGTERM) {
		if e.Flatd.Side != "" {
			t.Errorf("again after it was delivered: %s", e)
		}
	}
}

// fullPipe is one that nobody reads and that takes nothing more.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	// A write that fails at its deadline has filled it.
	if err := w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = w.Write(make([]byte, 4096))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return w
}

// TestAHandshakeOutlivesTheDaemonThatSawItBegin has the SYN sent while flatd is
// at work, and answered when it has been killed.
func TestAHandshakeOutlivesTheDaemonThatSawItBegin(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	tr := newTraffic(t, client, server)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			p := s.start(t)
			// Its SYN reaches the server, which does not have the address yet.
			from := netip.AddrPortFrom(netip.MustParseAddr(client.V4), uint16(loadPortFirst+int(signal)))
			to := netip.AddrPortFrom(netip.MustParseAddr(silentV4), tcpPort)
			began := time.Now()
			fd := tr.begin(from, to)
			defer syscall.Close(fd)
			sent := time.Now()
			p.awaitStatus("the SYN", func(s state) bool { return s.Books.Open == 1 })
			p.end(signal)

			answerable := time.Now()
			testbed.Run(t, "ip", "-n", server.Name, "address", "add", silentV4+"/24", "dev", "eth0")
			awaitConnection(t, fd) // the SYN is sent again after a second
			answered := time.Now()
			testbed.Run(t, "ip", "-n", server.Name, "address", "delete", silentV4+"/24", "dev", "eth0")

			p = s.start(t)
			e := p.wait("the handshake", func(e event) bool { return e.Source.Port == int(from.Port()) })
			if e.attempt() != (attempt{from, to, "established"}) || !e.Flatd.Replayed || e.Flatd.Retransmits == 0 {
				t.Errorf("%s, replayed %t, %d retransmits", e, e.Flatd.Replayed, e.Flatd.Retransmits)
			}
			if e.Timestamp.Before(answerable) || e.Timestamp.After(answered) {
				t.Errorf("at %s, want between %s and %s", e.Timestamp, answerable, answered)
			}
			took := time.Duration(e.Event.Duration)
			if took < answerable.Sub(sent) || took > answered.Sub(began) {
				t.Errorf("took %s, want between %s and %s", took, answerable.Sub(sent), answered.Sub(began))
			}
			booksBalance(t, p)
			p.end(syscall.SIGTERM)
		})
	}
}

// begin sends the client's SYN.
func (tr *traffic) begin(from, to netip.AddrPort) (fd int) {
	tr.t.Helper()
	var err error
	tr.client.Do(func() { fd, err = beginConnect(from, to) })
	if err != nil {
		tr.t.Fatal(err)
	}
	return fd
}

// awaitConnection returns when the connection stands.
func awaitConnection(t *testing.T, fd int) {
	t.Helper()
	if err := pollOut(fd); err != nil {
		t.Fatal(err)
	}
	if code, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ERROR); code != 0 || err != nil {
		t.Fatal(fmt.Errorf("connect: %w, %w", syscall.Errno(code), err))
	}
}
