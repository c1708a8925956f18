package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/pipeline"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/broker"
)

// hub is a NATS server that stores every event, and can be away.
type hub struct {
	t       *testing.T
	host    *testbed.Host
	options server.Options
	server  *server.Server // nil: away
}

const hubPort = 4222

// natsAway is a configuration with the hub for an output.
const natsAway = "outputs.nats.url = \"nats://127.0.0.1:4222\"\nsummary.interval = \"0s\"\n"

func startHub(t *testing.T, host *testbed.Host) *hub {
	t.Helper()
	h := &hub{t: t, host: host, options: server.Options{Port: hubPort, JetStream: true, StoreDir: t.TempDir()}}
	h.start()
	h.do(func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "events", Subjects: []string{"flatd.>"}})
		return err
	})
	return h
}

func (h *hub) start() {
	h.t.Helper()
	h.server = startNATS(h.t, h.host, &h.options)
}

func (h *hub) stop() {
	broker.Stop(h.server)
	h.server = nil
}

// do works with the hub's streams.
func (h *hub) do(f func(context.Context, jetstream.JetStream) error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	js, err := jetstream.New(natsClient(h.t, h.server))
	if err == nil {
		err = f(ctx, js)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// events are all that the hub has stored.
func (h *hub) events() (all []event) {
	h.t.Helper()
	h.do(func(ctx context.Context, js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, "events")
		if err != nil {
			return err
		}
		consumer, err := js.OrderedConsumer(ctx, "events", jetstream.OrderedConsumerConfig{})
		if err != nil {
			return err
		}
		left := int(stream.CachedInfo().State.Msgs)
		for left > 0 {
			batch, err := consumer.Fetch(min(left, 1000))
			if err != nil {
				return err
			}
			for m := range batch.Messages() {
				var e event
				if err := json.Unmarshal(m.Data(), &e); err != nil {
					return fmt.Errorf("%s: %w", m.Data(), err)
				}
				all = append(all, e)
				left--
			}
			if err := batch.Error(); err != nil {
				return err
			}
		}
		return nil
	})
	return all
}

// received is what has become of the exchanges, by what a receiver has.
type received struct {
	exchanges int      // each once
	losses    []uint64 // each report of a loss
}

func receivedOf(events []event) (r received) {
	ids := make(map[string]bool)
	for _, e := range events {
		switch {
		case isLoss(e):
			r.losses = append(r.losses, e.Flatd.Lost)
		case e.Flatd.Side != "":
			ids[e.Event.ID] = true
		}
	}
	r.exchanges = len(ids)
	return r
}

// wants each exchange either delivered or reported as lost.
func (r received) wants(t *testing.T, made int) {
	t.Helper()
	sum := uint64(r.exchanges)
	for _, n := range r.losses {
		sum += n
	}
	if sum != uint64(made) {
		t.Errorf("%d exchanges were made: %d were delivered, reported as lost: %v", made, r.exchanges, r.losses)
	}
}

// awayFor makes n exchanges while the output cannot have them.
func (p *process) awayFor(tr *traffic, output string, first, n int) state {
	p.t.Helper()
	tr.answered(first, n)
	p.awaitStatus("the outage", func(s state) bool {
		return s.Books.Read+s.Books.ReadBefore+s.Books.RingFull == uint64(first+n) && s.Ring.Backlog == 0
	})
	awaitMarks()
	s := p.status()
	checkOutputs(tr.t, s)
	if o := of(s, output); o.Delivered > 4 { // start, attach
		p.t.Fatalf("not away: %+v", o)
	}
	if s.Books.RingFull > 0 {
		p.t.Logf("the ring was full for %d", s.Books.RingFull)
	}
	return s
}

// delivered waits until every output has everything, and wants the books to balance.
func (p *process) delivered() state {
	p.t.Helper()
	p.awaitStatus("everything to be delivered", func(s state) bool {
		return s.Books.Own > 0 && !slices.ContainsFunc(s.Outputs, func(o api.OutputStatus) bool { return o.Down || o.Queued > 0 })
	})
	return booksBalance(p.t, p)
}

// awaitMarks waits until the marks tell of all that has happened.
func awaitMarks() { time.Sleep(3 * pipeline.PollEvery) }

// recordSize is what a record of the exchanges takes in the ring.
const recordSize = flows.RecordSize + 8

// TestAnOutageLongerThanHalfOfTheRing has a NATS server be away while more comes
// than the ring may hold back for it: only the oldest is let go, status says how
// many events the end of flatd would cost, and that is what is lost and reported,
// once, though the next flatd is killed before the server is back.
func TestAnOutageLongerThanHalfOfTheRing(t *testing.T) {
	const n = 25_000 // half of a ring of 4 MiB holds 14,563
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			client, host := testbed.Pair(t)
			hub := startHub(t, client)
			s := newSetup(t, client, testbed.Build(t, "flatd", ""), natsAway)
			s.quiet = true
			tr := &traffic{t: t, client: client, server: host}
			p := s.start(t)
			p.awaitStatus("the hub to have what there is", func(s state) bool { return s.Outputs[0].Delivered >= 2 && s.Outputs[0].Queued == 0 })
			hub.stop()

			b := p.awayFor(tr, "nats", 0, n)
			cost := n - b.Books.RingFull - uint64(b.Ring.Outstanding/recordSize)
			if spare := b.Ring.Size/2 - b.Ring.Outstanding; uint64(b.Ring.AtRisk) != cost || spare < 0 || spare >= recordSize {
				t.Errorf("%d events at risk, want %d; half of the ring less %d bytes is held back", b.Ring.AtRisk, cost, spare)
			}
			p.end(signal)

			p = s.start(t)
			p.awaitStatus("what the ring has kept", func(s state) bool { return s.Books.Read == n-b.Books.RingFull-cost })
			if b := p.status(); b.Books.LostBefore != cost || b.Ring.AtRisk != 0 {
				t.Errorf("%d lost before the start, want %d; %d at risk", b.Books.LostBefore, cost, b.Ring.AtRisk)
			}
			p.end(syscall.SIGKILL)

			hub.start()
			p = s.start(t)
			b = p.delivered()
			if !strings.Contains(strings.Join(b.Problems, "\n"), fmt.Sprintf("%d events lost", cost)) || b.Books.LostBefore != cost {
				t.Errorf("status says nothing of %d lost events: %q", cost, b.Problems)
			}
			p.saidOnce("events were lost before")
			awaitMarks()
			p.end(signal)
			p = s.start(t)
			if b := p.delivered(); b.Books.LostBefore != 0 || b.Books.ReadBefore != n-b.Books.RingFull {
				t.Errorf("after all was reported: %+v", b.Books)
			}
			p.end(signal)
			got := receivedOf(hub.events())
			got.wants(t, n)
			if b.Books.RingFull == 0 && (len(got.losses) != 1 || got.losses[0] != cost) {
				t.Errorf("reported as lost: %v, want %d, once", got.losses, cost)
			}
		})
	}
}

// TestAnOutageThatEndsInTime costs nothing: what the ring has let go is in the
// queue.
func TestAnOutageThatEndsInTime(t *testing.T) {
	const n = 25_000
	client, host := testbed.Pair(t)
	hub := startHub(t, client)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), natsAway)
	s.quiet = true
	p := s.start(t)
	hub.stop()
	if b := p.awayFor(&traffic{t: t, client: client, server: host}, "nats", 0, n); b.Ring.AtRisk == 0 {
		t.Errorf("nothing at risk: %+v", b.Ring)
	}
	hub.start()
	b := p.delivered()
	if b.Ring.AtRisk != 0 || b.Outputs[0].Dropped != 0 {
		t.Errorf("%+v\n%+v", b.Ring, b.Outputs)
	}
	awaitMarks()
	p.end(syscall.SIGKILL)
	if b := s.start(t).delivered(); b.Books.LostBefore != 0 {
		t.Errorf("lost before the start: %d", b.Books.LostBefore)
	}
	receivedOf(hub.events()).wants(t, n)
}

// TestAnOutageLongerThanTheQueue: what a queue has dropped is reported to its
// output, too, by the next flatd if this one has been stopped or killed.
func TestAnOutageLongerThanTheQueue(t *testing.T) {
	const n = 25_000
	for _, test := range []struct {
		queue  int
		signal syscall.Signal
	}{{256, syscall.SIGKILL}, {8192, syscall.SIGTERM}, {20_000, syscall.SIGTERM}, {20_000, syscall.SIGKILL}} {
		t.Run(fmt.Sprintf("queue=%d,%v", test.queue, test.signal), func(t *testing.T) {
			client, host := testbed.Pair(t)
			hub := startHub(t, client)
			s := newSetup(t, client, testbed.Build(t, "flatd", ""), natsAway+fmt.Sprintf("outputs.nats.queue = %d\n", test.queue))
			s.quiet = true
			p := s.start(t)
			hub.stop()
			p.awayFor(&traffic{t: t, client: client, server: host}, "nats", 0, n)
			p.end(test.signal)
			hub.start()
			for range 2 { // a small queue drops some of what it gets at once, and that is reported later
				p = s.start(t)
				p.delivered()
				p.end(syscall.SIGTERM)
			}
			receivedOf(hub.events()).wants(t, n)
		})
	}
}

// TestADropIsReportedDuringTheOutage: to the other outputs at once, and to the one
// that is away later, for a full queue does not drop the report. What was dropped
// after that the next flatd reports.
func TestADropIsReportedDuringTheOutage(t *testing.T) {
	const n = 15_000
	client, host := testbed.Pair(t)
	hub := startHub(t, client)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), natsAway+"outputs.nats.queue = 1024\n")
	s.room(t, 1<<16)
	p := s.start(t)
	hub.stop()
	tr := &traffic{t: t, client: client, server: host}
	p.awayFor(tr, "nats", 0, n)
	if first := p.wait("the report", isLoss); !strings.Contains(first.Message, "output nats lost") {
		t.Errorf("reported: %s", first.Message)
	}
	p.awayFor(tr, "nats", n, n)
	hub.start()
	p.delivered()
	awaitMarks()
	p.end(syscall.SIGKILL)
	p = s.start(t)
	second := p.delivered().Books.LostBefore
	got := receivedOf(hub.events())
	if got.wants(t, 2*n); len(got.losses) != 2 || got.losses[1] != second {
		t.Errorf("reported as lost: %v, the second of %d events", got.losses, second)
	}
	awaitMarks()
	p.end(syscall.SIGKILL)
	if b := s.start(t).delivered(); b.Books.LostBefore != 0 {
		t.Errorf("%d lost before the start, though all was reported", b.Books.LostBefore)
	}
}

// TestAnOutageBeforeAnUpgrade to another layout, whose first flatd is killed before
// the server is back: what the ring has kept is taken over, what it has let go is
// reported as lost, once.
func TestAnOutageBeforeAnUpgrade(t *testing.T) {
	const n = 25_000
	client, host := testbed.Pair(t)
	next := testbed.BuildVaried(t, "flatd", otherLayout...)
	hub := startHub(t, client)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), natsAway+"measure.timeout = \"1s\"\n")
	s.quiet = true
	p := s.start(t)
	hub.stop()
	cost := uint64(p.awayFor(&traffic{t: t, client: client, server: host}, "nats", 0, n).Ring.AtRisk)
	p.end(syscall.SIGTERM)

	s.binary = next
	p = s.start(t)
	p.awaitStatus("what the older ring has kept", func(s state) bool { return s.Books.TakenOver > 0 && of(s, "nats").Down })
	awaitMarks()
	if b := p.status(); b.Books.LostBefore != cost || !b.TakingOver {
		t.Errorf("%d lost before the start, want %d; taking over: %t", b.Books.LostBefore, cost, b.TakingOver)
	}
	p.end(syscall.SIGKILL)
	hub.start()
	p = s.start(t)
	p.takenOver()
	p.delivered()
	got := receivedOf(hub.events())
	if got.wants(t, n); len(got.losses) != 1 || got.losses[0] != cost {
		t.Errorf("reported as lost: %v, want %d, once", got.losses, cost)
	}
	awaitMarks()
	p.end(syscall.SIGKILL)
	if b := s.start(t).delivered(); b.Books.LostBefore != 0 {
		t.Errorf("lost before the start: %d", b.Books.LostBefore)
	}
}

// TestAWriteThatHangs is one to a pipe that nobody reads; flatd is killed over it,
// with a queue that has room for everything and with one that has not.
func TestAWriteThatHangs(t *testing.T) {
	const n = 40_000
	for _, test := range []struct {
		queue  int
		failed bool // before it is killed
	}{{1 << 16, false}, {8192, false}, {8192, true}} {
		t.Run(fmt.Sprintf("queue=%d,failed=%t", test.queue, test.failed), func(t *testing.T) {
			client, host := testbed.Pair(t)
			s := newSetup(t, client, testbed.Build(t, "flatd", ""), "summary.interval = \"0s\"\n")
			s.room(t, test.queue)
			s.stdout = fullPipe(t)
			p := s.launch(t)
			p.awaitStatus("measuring", func(s state) bool { return s.Measuring })
			p.awayFor(&traffic{t: t, client: client, server: host}, "stdout", 0, n)
			p.awaitStatus("the failure", func(s state) bool { return s.Outputs[0].Down || !test.failed })
			awaitMarks()
			p.end(syscall.SIGKILL)

			s.stdout = nil
			p = s.start(t)
			p.delivered()
			receivedOf(p.end(syscall.SIGTERM)).wants(t, n)
		})
	}
}
