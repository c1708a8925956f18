package daemon

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/packaging/testbed"
)

// What flatd may take at most, as the README says. Both bounds are for the
// default configuration.
const (
	residentMax = 160 << 20 // of the process
	mapsMax     = 48 << 20  // of the kernel's half, with the CPUs of a test machine
)

// memoryIsBounded looks at the most that flatd has ever taken.
func memoryIsBounded(t *testing.T, p *process) {
	t.Helper()
	resident := residentPeak(t, p.cmd.Process.Pid)
	maps := mapMemory(t, p.cmd.Process.Pid)
	t.Logf("at most %d MiB resident, maps of %d MiB", resident>>20, maps>>20)
	if resident > residentMax && !testbed.Raced() || maps > mapsMax {
		t.Errorf("%d MiB resident and maps of %d MiB, want at most %d and %d", resident>>20, maps>>20, residentMax>>20, mapsMax>>20)
	}
}

// residentPeak is VmHWM of proc_pid_status(5), in bytes.
func residentPeak(t testing.TB, pid int) int {
	t.Helper()
	return procField(t, fmt.Sprintf("/proc/%d/status", pid), "VmHWM:") << 10
}

// mapMemory is what the maps that a process has open are charged for.
func mapMemory(t testing.TB, pid int) (sum int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "\nmap_id:") {
			continue
		}
		if id := procField(t, file, "map_id:"); !seen[id] {
			seen[id] = true
			sum += procField(t, file, "memlock:")
		}
	}
	if sum == 0 {
		t.Fatal("flatd has no maps")
	}
	return sum
}

// procField is a number behind its name.
func procField(t testing.TB, path, name string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in %s", name, path)
	return 0
}

// frame is an IPv4 packet over Ethernet without payload, to nobody's MAC
// address: the hosts' own stacks have no part in it.
type frame []byte

const (
	ethernetLength = 14
	ipv4Length     = 20
	tcpLength      = 20
	udpLength      = 8
)

func newFrame(protocol uint8, length int) frame {
	f := make(frame, ethernetLength+ipv4Length+length)
	copy(f, []byte{2, 0, 0, 0, 0xf1, 0xa7, 2, 0, 0, 0, 0xf1, 0xa8, 8, 0, 0x45})
	binary.BigEndian.PutUint16(f[16:], uint16(ipv4Length+length))
	f[22], f[23] = 64, protocol
	return f
}

func newSYN() frame {
	f := newFrame(unix.IPPROTO_TCP, tcpLength)
	f[46], f[47] = tcpLength/4<<4, 0x02
	return f
}

func newDatagram() frame {
	f := newFrame(unix.IPPROTO_UDP, udpLength)
	binary.BigEndian.PutUint16(f[38:], udpLength)
	return f
}

func (f frame) address(from, to netip.AddrPort) {
	source, destination := from.Addr().As4(), to.Addr().As4()
	copy(f[26:], source[:])
	copy(f[30:], destination[:])
	binary.BigEndian.PutUint16(f[34:], from.Port())
	binary.BigEndian.PutUint16(f[36:], to.Port())
}

// stranger is the nth of many ends in a network for benchmarks (RFC 2544), on a
// port that no protocol has.
func stranger(n int) netip.AddrPort {
	const ports = 50000
	a := n / ports
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(a >> 8), byte(a)}), uint16(10000+n%ports))
}

func send(t *testing.T, socket int, f frame) {
	t.Helper()
	if _, err := unix.Write(socket, f); err != nil {
		t.Fatalf("send a frame: %v", err)
	}
}

// manySYNs is how many are spoofed: a million in the long form.
func manySYNs(t *testing.T) int {
	if rounds(t, 1) > 1 {
		return 1_000_000
	}
	return 200_000
}

// TestSpoofedSYNsLeaveOurOwnAlone floods the host with SYNs of many sources,
// while it makes connections of its own: each of those is reported, none of the
// flood is, and the books know them all.
func TestSpoofedSYNsLeaveOurOwnAlone(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	p := s.start(t)
	l := startLoad(newTraffic(t, client, server), loadPace, 0)

	flood := manySYNs(t)
	socket, syn := rawSocket(t, server), newSYN()
	to := netip.AddrPortFrom(netip.MustParseAddr(client.V4), 443)
	for n := range flood {
		syn.address(stranger(n), to)
		send(t, socket, syn)
	}
	p.awaitStatus("the flood to have ebbed", func(s state) bool { return s.Books.HalfOpen+s.Books.PendingFull == uint64(flood) })
	made := l.stop()
	b := booksBalance(t, p)
	if b.Books.Requests != uint64(flood+len(made)) || b.Books.PendingFull == 0 {
		t.Errorf("%d SYNs and %d attempts of our own: %+v", flood, len(made), b.Books)
	}
	if !slices.ContainsFunc(b.Problems, func(problem string) bool { return strings.Contains(problem, "not followed") }) {
		t.Errorf("status says nothing of it: %q", b.Problems)
	}
	memoryIsBounded(t, p)
	p.awaitLosses("all that was not followed", b.Books.PendingFull)
	all := p.end(syscall.SIGTERM)
	reconcile(t, made, []run{{all, syscall.SIGTERM}}, 1)
	// In the first second and, less and less often, while it goes on.
	if told := strings.Count(p.stderr.String(), "not followed"); told > 4 {
		t.Errorf("the log tells of it %d times", told)
	}
	t.Logf("of %d SYNs %d were followed to their end", flood, b.Books.HalfOpen)
}

// awaitLosses waits until so much has been told as lost, and returns the events
// that told it.
func (p *process) awaitLosses(what string, lost uint64) (losses []event) {
	p.t.Helper()
	for n := 1; ; n++ {
		losses = p.waitN("the loss of "+what, n, isLoss)
		sum := uint64(0)
		for _, e := range losses {
			sum += e.Flatd.Lost
		}
		if sum > lost {
			p.t.Fatalf("%d told as lost, want %d: %v", sum, lost, losses)
		}
		if sum == lost {
			return losses
		}
		n = len(losses)
	}
}

// TestFullTablesWhileAwayAreToldOnce has more requests without flatd than the
// table holds, where nobody removes those that are never answered: the next one
// reports all that are in it, and how many are not.
func TestFullTablesWhileAwayAreToldOnce(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	s.room(t, 1<<17) // no other losses
	s.start(t).end(syscall.SIGTERM)
	const n, room = 70_000, 61440 + 1024 // PENDING_MAX and SEATS
	socket, datagram := rawSocket(t, client), newDatagram()
	from := netip.AddrPortFrom(netip.MustParseAddr(client.V4), 9)
	for i := range n {
		datagram.address(from, stranger(i))
		send(t, socket, datagram)
	}
	s.stdout = fullPipe(t)
	p := s.launch(t)
	p.awaitStatus("the loss in the queue", func(s state) bool { return s.Books.Own >= 3 && s.Outputs[0].Delivered == 0 }) // start, attach, loss
	p.end(syscall.SIGKILL)

	s.stdout = nil
	p = s.start(t)
	losses := p.awaitLosses("what was not followed", n-room)
	if len(losses) != 1 || !strings.Contains(losses[0].Message, "not followed") {
		t.Errorf("told so: %v", losses)
	}
	booksBalance(t, p)
	p.end(syscall.SIGTERM)
	p.saidOnce("not followed")

	p = s.start(t)
	booksBalance(t, p)
	for _, e := range p.end(syscall.SIGTERM) {
		if isLoss(e) {
			t.Errorf("told again: %s", e.Message)
		}
	}
}

// TestTheTimeoutsOfFullTablesAreReported, more than a queue holds, by the first
// sweep after nobody was there for a while.
func TestTheTimeoutsOfFullTablesAreReported(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	s.start(t).end(syscall.SIGTERM)
	const n = 30_000
	socket, datagram := rawSocket(t, client), newDatagram()
	from := netip.AddrPortFrom(netip.MustParseAddr(client.V4), 9)
	for i := range n {
		datagram.address(from, stranger(i))
		send(t, socket, datagram)
	}
	time.Sleep(time.Second) // measure.timeout is the subject
	p := s.start(t)
	p.awaitStatus("the timeouts", func(s state) bool { return s.Books.TimedOut == n })
	if b := booksBalance(t, p); b.Books.TimedOut != n || b.Books.TimeoutsSeen != n || b.Outputs[0].Dropped != 0 {
		t.Errorf("%d requests in vain: %+v, %+v", n, b.Books, b.Outputs)
	}
}

// TestTimeoutsLeaveTheRingToExchanges: as many as the table holds are due at once, beside
// 2,600 exchanges a second.
func TestTimeoutsLeaveTheRingToExchanges(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"2s\"\nsummary.interval = \"0s\"\n")
	s.start(t).end(syscall.SIGTERM)
	const silent = 61_440 // PENDING_MAX
	const exchanges, each, pause = 13_000, 130, 50 * time.Millisecond
	socket, datagram := rawSocket(t, client), newDatagram()
	from := netip.AddrPortFrom(netip.MustParseAddr(client.V4), 9)
	for i := range silent {
		datagram.address(from, stranger(i))
		send(t, socket, datagram)
	}
	time.Sleep(2 * time.Second) // measure.timeout is the subject
	p := s.start(t)
	tr := &traffic{t: t, client: client, server: server}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for made := 0; made < exchanges; made += each {
		<-tick.C
		tr.answered(silent+made, each)
	}
	p.awaitStatus("the timeouts", func(s state) bool { return s.Books.TimedOut == silent })
	b := booksBalance(t, p)
	if b.Books.RingFull != 0 && !testbed.Raced() || b.Books.PendingFull != 0 || b.Books.Finished != exchanges ||
		b.Books.TimeoutsSeen != silent || b.Outputs[0].Dropped != 0 && !testbed.Raced() {
		t.Errorf("%d requests in vain beside %d exchanges: %+v, %+v", silent, exchanges, b.Books, b.Outputs)
	}
}

// answered makes n UDP exchanges of the client, each a flow of its own.
func (tr *traffic) answered(first, n int) {
	tr.t.Helper()
	out, in := rawSocket(tr.t, tr.client), rawSocket(tr.t, tr.server)
	request, answer := newDatagram(), newDatagram()
	from := netip.AddrPortFrom(netip.MustParseAddr(tr.client.V4), 9)
	for i := range n {
		to := stranger(first + i)
		request.address(from, to)
		answer.address(to, from)
		send(tr.t, out, request)
		send(tr.t, in, answer)
	}
}

// readAsMade makes n UDP exchanges, in steps that the ring has room for, however late it is
// read: half of it may be held for an output that is away.
func (p *process) readAsMade(tr *traffic, n int) {
	p.t.Helper()
	const step = 5000
	for made := 0; made < n; made += step {
		tr.answered(made, step)
		p.awaitStatus("the exchanges so far", func(s state) bool { return s.Books.Read >= uint64(made+step) })
	}
}

// TestAHundredThousandFlows is more than the table of open requests holds, which
// flows leave once they are answered, and more than the queue of an output that is away.
func TestAHundredThousandFlows(t *testing.T) {
	client, server := testbed.Pair(t)
	// Nobody listens there.
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"1m\"\nsummary.interval = \"0s\"\noutputs.nats.url = \"nats://127.0.0.1:9\"\n")
	s.room(t, 1<<17)
	p := s.start(t)
	const flows = 100_000
	p.readAsMade(&traffic{t: t, client: client, server: server}, flows)
	p.awaitStatus("the flows", func(s state) bool {
		return s.Books.Read == flows && of(s, "stdout").Queued == 0 && of(s, "nats").Down
	})
	b := p.status()
	if b.Books.PendingFull != 0 || b.Books.Requests != flows || b.Books.Finished != flows || b.Books.RingFull != 0 {
		t.Errorf("%d flows: %+v", flows, b.Books)
	}
	checkOutputs(t, b)
	if nats := of(b, "nats"); !nats.Down || nats.Delivered != 0 || nats.Offered != nats.Dropped+nats.Queued {
		t.Errorf("an output that is away: %+v", nats)
	}
	memoryIsBounded(t, p)
	udp := answersIn(p.end(syscall.SIGTERM))
	if noGaps(t, udp); len(udp) != flows {
		t.Errorf("%d flows were reported, want %d", len(udp), flows)
	}
}

// of finds the books of an output.
func of(s state, output string) api.OutputStatus {
	i := slices.IndexFunc(s.Outputs, func(o api.OutputStatus) bool { return o.Name == output })
	return s.Outputs[i]
}

// answersIn are the UDP exchanges among the events.
func answersIn(events []event) []event {
	return slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.Event.Dataset != "flatd.udp" })
}

// room gives standard output a queue for so many events.
func (s *setup) room(t *testing.T, events int) {
	t.Helper()
	dir := filepath.Join(s.dir, "flatd.toml.d")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("outputs.stdout.queue = %d\n", events)
	if err := os.WriteFile(filepath.Join(dir, "50-room.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// noGaps wants each sequence number once.
func noGaps(t *testing.T, events []event) {
	t.Helper()
	var sequences []uint64
	for _, e := range events {
		sequences = append(sequences, e.Event.Sequence)
	}
	slices.Sort(sequences)
	for i := range sequences[1:] {
		if sequences[i+1] != sequences[i]+1 {
			t.Fatalf("event %d follows on %d", sequences[i+1], sequences[i])
		}
	}
}

// checkOutputs holds the outputs' books, also of those that are away.
func checkOutputs(t *testing.T, s state) {
	t.Helper()
	b := s.Books
	for _, o := range s.Outputs {
		if o.Offered != o.Delivered+o.Withheld+o.Failed+o.Dropped+o.Queued {
			t.Errorf("%s: offered != delivered + withheld + failed + dropped + queued: %+v", o.Name, o)
		}
		if o.Offered != b.Read+b.TakenOver-b.TakenOverBoth-b.DecodeErrors+b.Own {
			t.Errorf("%s: offered %d, %+v", o.Name, o.Offered, b)
		}
	}
}

// TestTheRingOverflowsUnderAStoppedDaemon has flatd not get the CPU for a while.
func TestTheRingOverflowsUnderAStoppedDaemon(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "summary.interval = \"0s\"\n")
	s.room(t, 1<<16)
	p := s.start(t)
	tr := &traffic{t: t, client: client, server: server}
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const n = 60_000 // a ring of 4 MiB holds a third of them
	tr.answered(0, n)
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.awaitStatus("the loss", func(s state) bool { return s.Books.Own == 3 }) // start, attach, loss
	b := booksBalance(t, p).Books
	newTraffic(t, client, server).connect(server.V4)
	booksBalance(t, p)
	all := p.end(syscall.SIGTERM)

	isLoss := func(e event) bool { return e.Event.Action == "loss" }
	losses := slices.DeleteFunc(slices.Clone(all), func(e event) bool { return !isLoss(e) })
	if len(losses) != 1 || losses[0].Flatd.Lost != b.RingFull || b.RingFull == 0 || b.Requests != n || b.Read != n-b.RingFull {
		t.Errorf("%d exchanges, told as lost: %v; %+v", n, losses, b)
	}
	udp := answersIn(all)
	noGaps(t, udp)
	next := all[slices.IndexFunc(all, isResult("established", "client"))].Event.Sequence
	if last := udp[len(udp)-1].Event.Sequence; uint64(len(udp)) != b.Read || next != last+b.RingFull+1 {
		t.Errorf("%d reported, the last as %d, then %d; %d lost", len(udp), last, next, b.RingFull)
	}
}

// TestAnOutputThatNobodyReads gets more than its queue and half of the ring can
// hold, then a reader.
func TestAnOutputThatNobodyReads(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "summary.interval = \"0s\"\n")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.stdout = w
	p := s.launch(t)
	w.Close()
	p.awaitStatus("measuring", func(s state) bool { return s.Measuring })
	const n = 60_000
	p.readAsMade(&traffic{t: t, client: client, server: server}, n)
	p.awaitStatus("the outage", func(s state) bool { return s.Books.Read == n && s.Outputs[0].Down })
	b := p.status()
	checkOutputs(t, b)
	o := b.Outputs[0]
	if o.Dropped == 0 || b.Ring.Outstanding > b.Ring.Size/2 || b.Books.RingFull != 0 {
		t.Errorf("%+v\n%+v\n%+v", o, b.Ring, b.Books)
	}
	if response, err := p.get(http.MethodGet, "/healthz"); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("health: %v, %v", response, err)
	}
	memoryIsBounded(t, p)

	read := make(chan int)
	losses := 0
	go func() {
		lines := 0
		for scanner := bufio.NewScanner(r); scanner.Scan(); lines++ {
			if strings.Contains(scanner.Text(), `"action":"loss"`) {
				losses++
			}
		}
		read <- lines
	}()
	p.awaitStatus("the loss to be told, and delivered", func(s state) bool {
		o := s.Outputs[0]
		return !o.Down && o.Queued == 0 && s.Books.Own == 3 // start, attach, loss
	})
	o = booksBalance(t, p).Outputs[0]
	p.end(syscall.SIGTERM)
	if lines := uint64(<-read); lines < o.Delivered || losses != 1 {
		t.Errorf("%d lines, the loss told %d times: %+v", lines, losses, o)
	}
	if told := strings.Count(p.stderr.String(), "output lost events"); told != 1 {
		t.Errorf("the log tells of the loss %d times", told)
	}
	if told := strings.Count(p.stderr.String(), "output fails"); told != 1 {
		t.Errorf("the log tells of the outage %d times", told)
	}
}
