package daemon

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
)

func isLoss(e event) bool { return e.Event.Action == "loss" }

// takenOver waits until a flatd has taken over from programs of another layout.
func (p *process) takenOver() {
	p.t.Helper()
	p.awaitStatus("the end of the takeover", func(s state) bool { return !s.TakingOver })
}

// TestResultsNotAskedForAreLeftOutOfATakeover: the sweep that finds timeouts of
// the older programs' requests does not report them if nobody wants any.
func TestResultsNotAskedForAreLeftOutOfATakeover(t *testing.T) {
	client, server := testbed.Pair(t)
	next := testbed.BuildVaried(t, "flatd", otherLayout...)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"1s\"\nfilter.results = [\"refused\"]\n")
	tr := newTraffic(t, client, server)
	s.start(t).end(syscall.SIGTERM)
	tr.connectInVain(silentV4)
	tr.connectInVain(silentV6)
	tr.connectRefused(server.V4)

	s.binary = next
	p := s.start(t)
	if start := p.status().Start; start != "beside" {
		t.Fatalf("start %q, want beside", start)
	}
	p.takenOver()
	if b := booksBalance(t, p).Books; b.TakenOver != 1 || b.TimeoutsSeen != 0 || b.TakenOverOut != 2 {
		t.Errorf("a refusal was made, and 2 attempts in vain: %+v", b)
	}
	var results []string
	var leftOut uint64
	for _, e := range p.end(syscall.SIGTERM) {
		leftOut += e.Flatd.Summary.ResultOut
		if e.Flatd.Side != "" {
			results = append(results, e.Flatd.Result)
		}
	}
	if !slices.Equal(results, []string{"refused"}) || leftOut != 2 {
		t.Errorf("results %q, and %d left out, want 2", results, leftOut)
	}
}

// TestTheNewProgramsKnowWhatTheOlderFollow: SYNs repeated after the takeover, an
// answer that comes then, and the datagrams of a flow that goes on are no
// exchanges of their own.
func TestTheNewProgramsKnowWhatTheOlderFollow(t *testing.T) {
	client, server := testbed.Pair(t)
	next := testbed.BuildVaried(t, "flatd", otherLayout...)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"8s\"\nsummary.interval = \"0s\"\n")
	tr := newTraffic(t, client, server)
	s.start(t).end(syscall.SIGTERM)
	tr.connectInVain(silentV6)
	from := netip.MustParseAddrPort(client.V4 + ":10000")
	fd := tr.begin(from, netip.AddrPortFrom(netip.MustParseAddr(silentV4), tcpPort))
	defer syscall.Close(fd)
	flow, err := dial(client, "udp", join(server.V4, udpPort))
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	echo := func() {
		t.Helper()
		if _, err := flow.Write([]byte("ask")); err != nil {
			t.Fatal(err)
		}
		if _, err := flow.Read(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	echo()

	s.binary = next
	p := s.start(t)
	p.wait("the new programs at work", isAction("start", ""))
	echo()
	testbed.Run(t, "ip", "-n", server.Name, "address", "add", silentV4+"/24", "dev", "eth0")
	awaitConnection(t, fd)
	p.takenOver()
	echo()
	tr.connect(server.V4) // which the new programs alone have seen
	p.wait("a handshake", func(e event) bool { return e.Flatd.Result == "established" && e.Destination.IP == server.V4 })
	booksBalance(t, p)

	told := make(map[string]int)
	for _, e := range p.end(syscall.SIGTERM) {
		if e.Flatd.Side == "" {
			continue
		}
		told[e.Event.Dataset+" "+e.Flatd.Side+" "+e.Flatd.Result]++
		if e.Source.Port == int(from.Port()) && e.Flatd.Retransmits == 0 {
			t.Errorf("%s, though its SYN was repeated", e)
		}
	}
	want := map[string]int{"flatd.tcp client timeout": 1, "flatd.tcp client established": 2, "flatd.udp client answered": 1}
	if !maps.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// TestWhatTheOlderRingLostIsTold, once, though the first flatd to take over is
// killed before anybody has heard of it. What the ring kept is more than a queue
// holds, and nothing of it is dropped.
func TestWhatTheOlderRingLostIsTold(t *testing.T) {
	client, server := testbed.Pair(t)
	next := testbed.BuildVaried(t, "flatd", otherLayout...)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	s.start(t).end(syscall.SIGTERM)
	const n = 45000 // a ring of 4 MiB holds 34,952
	newTraffic(t, client, server).pings(n)

	s.binary = next
	s.stdout = fullPipe(t)
	p := s.launch(t)
	p.awaitStatus("the loss in the queue", func(s state) bool { return s.TakingOver && s.Books.Own == 3 }) // start, attach, loss
	p.end(syscall.SIGKILL)

	s.stdout = nil
	p = s.start(t)
	p.takenOver()
	b := booksBalance(t, p)
	all := p.end(syscall.SIGTERM)
	losses := slices.DeleteFunc(slices.Clone(all), func(e event) bool { return !isLoss(e) })
	pings := slices.DeleteFunc(slices.Clone(all), func(e event) bool { return e.Event.Dataset != "flatd.icmp" })
	noGaps(t, pings)
	lost := uint64(n - len(pings))
	if len(losses) != 1 || losses[0].Flatd.Lost != lost || lost == 0 {
		t.Errorf("of %d pings %d were reported; told as lost: %v", n, len(pings), losses)
	}
	if b.Books.TakenOverLost != lost || b.Books.TakenOver != n-lost || b.Outputs[0].Dropped != 0 {
		t.Errorf("%d lost: %+v, %+v", lost, b.Books, b.Outputs)
	}
	if !slices.ContainsFunc(b.Problems, func(problem string) bool { return strings.Contains(problem, "events lost") }) {
		t.Errorf("status says nothing of the loss: %q", b.Problems)
	}
	p.saidOnce("ring was full")

	p = s.start(t)
	booksBalance(t, p)
	for _, e := range p.end(syscall.SIGTERM) {
		if isLoss(e) || e.Flatd.Side != "" {
			t.Errorf("told again: %s %s", e, e.Message)
		}
	}
}
