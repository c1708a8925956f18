package outputs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed/broker"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// patience is what a test gives a server; it is not what anything takes.
const patience = 30 * time.Second

func serverOptions(t testing.TB) *server.Options {
	return &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, // as a reload has to have them, too
		JetStream: true, StoreDir: t.TempDir(),
	}
}

// restartServer starts a server on the port and store of one that was stopped.
func restartServer(t testing.TB, o *server.Options, old *server.Server) *server.Server {
	t.Helper()
	again := o.Clone()
	again.Port = port(old)
	return broker.Start(t, again)
}

func port(s *server.Server) int {
	var p int
	fmt.Sscanf(s.ClientURL()[strings.LastIndex(s.ClientURL(), ":")+1:], "%d", &p)
	return p
}

func newTestNATS(t testing.TB, o NATSOptions) *NATS {
	t.Helper()
	o.Host = thisHost
	n, err := NewNATS(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// awaitReady waits for the connection.
func awaitReady(t testing.TB, n *NATS) {
	t.Helper()
	select {
	case <-n.Ready():
	case <-time.After(patience):
		_, err := n.connected()
		t.Fatalf("no connection: %v", err)
	}
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func client(t testing.TB, s *server.Server, options ...nats.Option) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(s.ClientURL(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func subscribe(t testing.TB, conn *nats.Conn) *nats.Subscription {
	t.Helper()
	sub, err := conn.SubscribeSync("flatd.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return sub
}

func makeStream(t testing.TB, conn *nats.Conn, config jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(deadline(t), config)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func stored(t testing.TB, stream jetstream.Stream) uint64 {
	t.Helper()
	info, err := stream.Info(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

func mustWrite(t testing.TB, n *NATS, events ...*flows.Event) {
	t.Helper()
	tally, err := n.Write(deadline(t), events)
	if err != nil || tally != (Tally{Delivered: len(events)}) {
		t.Fatalf("%+v, %v", tally, err)
	}
}

func checkMessage(t *testing.T, sub *nats.Subscription, e *flows.Event, subject string) {
	t.Helper()
	m, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != subject {
		t.Errorf("subject %s, want %s", m.Subject, subject)
	}
	if want := string(testHost.AppendJSON(nil, e)); string(m.Data) != want {
		t.Errorf("payload %s\nwant %s", m.Data, want)
	}
	if got, want := m.Header.Get("Nats-Msg-Id"), string(testHost.AppendID(nil, e)); got != want {
		t.Errorf("Nats-Msg-Id %s, want %s", got, want)
	}
}

func TestNATSCore(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	sub := subscribe(t, client(t, s))
	out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: ModeCore})
	awaitReady(t, out)
	events := []*flows.Event{sample(1), refused(2), status("flatd has started")}
	mustWrite(t, out, events...)
	checkMessage(t, sub, events[0], "flatd.v1.web1_example_com.tcp.established")
	checkMessage(t, sub, events[1], "flatd.v1.web1_example_com.tcp.refused")
	checkMessage(t, sub, events[2], "flatd.v1.web1_example_com.status.start")
}

func TestNATSServerAppears(t *testing.T) {
	o := serverOptions(t)
	first := broker.Start(t, o)
	url := first.ClientURL()
	broker.Stop(first)

	out := newTestNATS(t, NATSOptions{URL: url})
	if tally, err := out.Write(deadline(t), samples(1, 1)); err == nil || tally.Total() != 0 {
		t.Errorf("without a server: %+v, %v", tally, err)
	} else if !strings.Contains(err.Error(), "not connected to nats://127.0.0.1") {
		t.Errorf("without a server: %v", err)
	}
	s := restartServer(t, o, first)
	sub := subscribe(t, client(t, s))
	awaitReady(t, out)
	mustWrite(t, out, sample(1))
	checkMessage(t, sub, sample(1), "flatd.v1.web1_example_com.tcp.established")
}

// The queue keeps the newest events while the server is away.
func TestNATSServerStops(t *testing.T) {
	o := serverOptions(t)
	s := broker.Start(t, o)
	out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: ModeCore})
	awaitReady(t, out)
	failed := make(chan error, 10)
	q := NewQueue(out, 100, func(_ string, err error) { failed <- err })
	result := make(chan error, 1)
	go func() { result <- q.Run(t.Context()) }()
	broker.Stop(s)

	var pool Pool
	q.Offer(item(&pool, 1))
	if err := <-failed; err == nil {
		t.Error("the first change is a recovery")
	}
	for n := uint64(2); n <= 250; n++ {
		q.Offer(item(&pool, n))
	}
	stats := q.Stats()
	checkBalance(t, stats)
	if stats.Queued != 100 || stats.Dropped != 150 || !stats.Down {
		t.Errorf("while the server is away: %+v", stats)
	}

	s = restartServer(t, o, s)
	sub := subscribe(t, client(t, s))
	if err := <-failed; err != nil {
		t.Errorf("instead of a recovery: %v", err)
	}
	if err := q.Drain(deadline(t)); err != nil {
		t.Error(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	stats = q.Stats()
	checkBalance(t, stats)
	if stats.Delivered != 100 || stats.Dropped != 150 {
		t.Errorf("at the end: %+v", stats)
	}
	// The subscriber came after the first of them, perhaps; the last is there.
	for id := ""; id != "6f1c0d2e-250"; {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("after %s: %v", id, err)
		}
		id = m.Header.Get("Nats-Msg-Id")
	}
}

// A stream of events goes through a restart of the server: each is stored, and
// none twice.
func TestNATSJetStreamExactlyOnce(t *testing.T) {
	const events = 20000
	o := serverOptions(t)
	s := broker.Start(t, o)
	config := jetstream.StreamConfig{Name: "FLATD", Subjects: []string{"flatd.>"}, Duplicates: time.Hour}
	stream := makeStream(t, client(t, s), config)
	out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: ModeJetStream})
	awaitReady(t, out)
	q := NewQueue(out, events, nil)
	var pool Pool
	for n := uint64(1); n <= events; n++ {
		q.Offer(item(&pool, n))
	}
	go q.Run(t.Context())
	for stored(t, stream) < events/10 {
	}
	broker.Stop(s)
	if stats := q.Stats(); stats.Delivered >= events {
		t.Fatalf("the restart comes too late: %+v", stats)
	}
	s = restartServer(t, o, s)
	if err := q.Drain(deadline(t)); err != nil {
		t.Error(err)
	}
	stats := q.Stats()
	checkBalance(t, stats)
	if stats.Delivered != events {
		t.Errorf("%+v", stats)
	}
	checkStoredOnce(t, s, events)
}

func checkStoredOnce(t *testing.T, s *server.Server, events int) {
	t.Helper()
	js, err := jetstream.New(client(t, s))
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.OrderedConsumer(deadline(t), "FLATD", jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	seen := make(map[string]int)
	for {
		m, err := messages.Next(jetstream.NextContext(deadline(t)))
		if err != nil {
			t.Fatalf("after %d: %v", len(seen), err)
		}
		seen[m.Headers().Get("Nats-Msg-Id")]++
		if meta, err := m.Metadata(); err != nil || meta.NumPending == 0 {
			break
		}
	}
	for n := 1; n <= events; n++ {
		if count := seen[fmt.Sprintf("6f1c0d2e-%d", n)]; count != 1 {
			t.Errorf("event %d is stored %d times", n, count)
		}
	}
}

func TestNATSAuto(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	conn := client(t, s)
	sub := subscribe(t, conn)
	stream := makeStream(t, conn, jetstream.StreamConfig{Name: "BAD", Subjects: []string{"flatd.v1.*.tcp.refused"}})
	out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: ModeAuto})
	awaitReady(t, out)
	mustWrite(t, out, sample(1), refused(2), sample(3))
	if n := stored(t, stream); n != 1 {
		t.Errorf("%d events stored, want that with the stream's subject", n)
	}
	for n := uint64(1); n <= 3; n++ {
		if m, err := sub.NextMsg(patience); err != nil || m.Header.Get("Nats-Msg-Id") != fmt.Sprintf("6f1c0d2e-%d", n) {
			t.Errorf("event %d: %v, %v", n, m, err)
		}
	}
	// The stream goes: one failure, then the subject is known to be free.
	js, _ := jetstream.New(conn)
	if err := js.DeleteStream(deadline(t), "BAD"); err != nil {
		t.Fatal(err)
	}
	sub.Unsubscribe() // a subscriber would hide that no stream answers
	conn.Flush()
	if _, err := out.Write(deadline(t), []*flows.Event{refused(4)}); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("without its stream: %v", err)
	}
	mustWrite(t, out, refused(4))
}

// A stream that was made while the server restarted is found.
func TestNATSAutoLooksAgain(t *testing.T) {
	o := serverOptions(t)
	s := broker.Start(t, o)
	out := newTestNATS(t, NATSOptions{URL: s.ClientURL()})
	awaitReady(t, out)
	mustWrite(t, out, sample(1))
	broker.Stop(s)
	s = restartServer(t, o, s)
	awaitReady(t, out)
	stream := makeStream(t, client(t, s), jetstream.StreamConfig{Name: "FLATD", Subjects: []string{"flatd.>"}})
	mustWrite(t, out, sample(2))
	if n := stored(t, stream); n != 1 {
		t.Errorf("%d events stored, want the second", n)
	}
	if r := out.routes["flatd.v1.web1_example_com.tcp.established"]; !r.stored {
		t.Error("its acknowledgement is not waited for") // a stream stores either way
	}
}

func TestNATSAutoWithoutJetStream(t *testing.T) {
	o := serverOptions(t)
	o.JetStream = false
	out := newTestNATS(t, NATSOptions{URL: broker.Start(t, o).ClientURL()})
	awaitReady(t, out)
	mustWrite(t, out, samples(1, 300)...)
}

func TestNATSNoStream(t *testing.T) {
	out := newTestNATS(t, NATSOptions{URL: broker.Start(t, serverOptions(t)).ClientURL(), Mode: ModeJetStream})
	awaitReady(t, out)
	tally, err := out.Write(deadline(t), samples(1, 3))
	if !errors.Is(err, jetstream.ErrNoStreamResponse) || tally.Total() != 0 {
		t.Errorf("%+v, %v", tally, err)
	}
}

// What can never be delivered is counted and holds up nothing.
func TestNATSTooLarge(t *testing.T) {
	large := status(strings.Repeat("x", 4096))
	o := serverOptions(t)
	o.MaxPayload = 2048
	small := newTestNATS(t, NATSOptions{URL: broker.Start(t, o).ClientURL(), Mode: ModeCore})

	s := broker.Start(t, serverOptions(t))
	makeStream(t, client(t, s), jetstream.StreamConfig{Name: "FLATD", Subjects: []string{"flatd.>"}, MaxMsgSize: 2048})
	stream := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: ModeJetStream})

	for what, out := range map[string]*NATS{"server": small, "stream": stream} {
		awaitReady(t, out)
		tally, err := out.Write(deadline(t), []*flows.Event{sample(1), large, sample(2)})
		if err != nil || tally.Delivered != 2 || tally.Failed != 1 || tally.Why == nil {
			t.Errorf("too large for the %s: %+v, %v", what, tally, err)
		}
	}
}

// A subject of which the stream takes no more holds up nothing either.
func TestNATSSubjectFull(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	for _, mode := range []string{ModeAuto, ModeJetStream} {
		out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: mode, Subject: mode + ".{kind}"})
		makeStream(t, client(t, s), jetstream.StreamConfig{Name: "OF-" + mode, Subjects: []string{mode + ".>"},
			MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true})
		awaitReady(t, out)
		tally, err := out.Write(deadline(t), []*flows.Event{sample(1), sample(2), status("another subject")})
		if err != nil || tally.Delivered != 2 || tally.Failed != 1 || tally.Why == nil {
			t.Errorf("%s: %+v, %v", mode, tally, err)
		}
	}
}

// A stream that does not acknowledge is noticed once; then its events are delivered, and
// stored once.
func TestNATSStreamWithoutAcknowledgement(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	for _, mode := range []string{ModeAuto, ModeJetStream} {
		stream := makeStream(t, client(t, s), jetstream.StreamConfig{Name: "OF-" + mode, Subjects: []string{mode + ".>"}, NoAck: true})
		out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: mode, Subject: mode + ".{kind}"})
		awaitReady(t, out)
		events := append(samples(1, 300), status("another subject"))
		ctx, cancel := context.WithTimeout(deadline(t), time.Second)
		tally, err := out.Write(ctx, events)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "does not acknowledge") || tally.Total() != 0 {
			t.Errorf("%s: %+v, %v", mode, tally, err)
		}
		mustWrite(t, out, events...)
		mustWrite(t, out, samples(301, 320)...)
		n := stored(t, stream)
		for wait := deadline(t); n < 321 && wait.Err() == nil; n = stored(t, stream) { // it is the server's to store them
			time.Sleep(10 * time.Millisecond)
		}
		if n != 321 {
			t.Errorf("%s: %d are stored, want 321", mode, n)
		}
	}
}

// What may not be published has failed, and holds up nothing that may.
func TestNATSPermissions(t *testing.T) {
	o := serverOptions(t)
	o.Users = []*server.User{
		{Username: "watcher", Password: "w"},
		{Username: "flatd", Password: "f", Permissions: allowed("flatd.v1.*.tcp.established")},
	}
	s := broker.Start(t, o)
	sub := subscribe(t, client(t, s, nats.UserInfo("watcher", "w")))
	for _, mode := range []string{ModeCore, ModeAuto} {
		out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: mode, User: "flatd", Password: file(t, "f\n")})
		awaitReady(t, out)
		for range 2 {
			tally, err := out.Write(deadline(t), []*flows.Event{status("x"), sample(1), sample(2), refused(3), sample(4)})
			if err != nil || tally.Delivered != 3 || tally.Failed != 2 {
				t.Errorf("%s: %+v, %v; want 3 delivered, 2 failed", mode, tally, err)
			}
			if tally.Why == nil || !strings.Contains(tally.Why.Error(), "tcp.refused") {
				t.Errorf("%s: %v does not name the subject", mode, tally.Why)
			}
		}
		// By now it is sure that it is about that subject alone.
		if tally, err := out.Write(deadline(t), []*flows.Event{refused(5)}); err != nil || tally.Failed != 1 {
			t.Errorf("%s: one that may not be published, by itself: %+v, %v", mode, tally, err)
		}
		mustWrite(t, out, sample(6))
		for {
			m, err := sub.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			if m.Header.Get("Nats-Msg-Id") == "6f1c0d2e-6" {
				break
			}
		}
	}
}

func allowed(subjects ...string) *server.Permissions {
	return &server.Permissions{Publish: &server.SubjectPermission{Allow: subjects}}
}

func file(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A wrong secret is an error that says so, however often it is refused, and a
// corrected file is enough.
func TestNATSWrongToken(t *testing.T) {
	gate := make(doorkeeper, 100)
	o := serverOptions(t)
	o.CustomClientAuthentication = gate
	token := file(t, "wrong")
	out := &watched{newTestNATS(t, NATSOptions{URL: broker.Start(t, o).ClientURL(), Token: token}), make(chan error, 1000)}
	q := NewQueue(out, 10, nil)
	var pool Pool
	q.Offer(item(&pool, 1))
	go q.Run(t.Context())
	for range 4 {
		<-gate
	}
	for err := range out.results {
		if err == nil {
			t.Fatal("delivered with a wrong token")
		}
		if strings.Contains(err.Error(), "Authorization Violation") {
			break
		}
	}
	if err := os.WriteFile(token, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for err := range out.results {
		if err == nil {
			break
		}
	}
	q.Drain(deadline(t))
}

// doorkeeper tells of each client that it turned away.
type doorkeeper chan struct{}

func (d doorkeeper) Check(c server.ClientAuthentication) bool {
	if c.GetOpts().Token == "s3cret" {
		return true
	}
	d <- struct{}{}
	return false
}

// watched shows how each Write of a queue went.
type watched struct {
	*NATS
	results chan error
}

func (w *watched) Write(ctx context.Context, events []*flows.Event) (Tally, error) {
	tally, err := w.NATS.Write(ctx, events)
	w.results <- err
	return tally, err
}

func TestNATSOptionErrors(t *testing.T) {
	const url = "nats://127.0.0.1:4222"
	secret := file(t, "x")
	for _, c := range []struct {
		options NATSOptions
		want    string
	}{
		{NATSOptions{URL: url, Mode: "fast"}, `mode "fast": must be`},
		{NATSOptions{URL: url, Subject: "a.>"}, "wildcard"},
		{NATSOptions{URL: ""}, "names no host"},
		{NATSOptions{URL: "http://x"}, `scheme "http"`},
		{NATSOptions{URL: "nats://u:s3cret@h:x"}, "of the form"},
		{NATSOptions{URL: url, Token: secret, NKey: secret}, "exclude each other"},
		{NATSOptions{URL: url, User: "u"}, "go together"},
		{NATSOptions{URL: url, Cert: secret}, "cert and key"},
		{NATSOptions{URL: url, Token: "/does/not/exist"}, "token: open /does/not/exist"},
		{NATSOptions{URL: url, NKey: secret}, "nkey: "},
	} {
		c.options.Host = thisHost
		_, err := NewNATS(c.options)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%+v: error %v, want one with %q", c.options, err, c.want)
		}
	}
}

// In core mode an event costs two allocations, which the client makes of the
// header. The third is the server's. (JetStream costs about 16, for the client to
// follow the acknowledgement.)
func TestNATSAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	out := newTestNATS(t, NATSOptions{URL: broker.Start(t, serverOptions(t)).ClientURL(), Mode: ModeCore})
	awaitReady(t, out)
	ctx, events := deadline(t), samples(1, 256)
	allocs := testing.AllocsPerRun(50, func() { out.Write(ctx, events) }) / float64(len(events))
	if allocs > 3.5 {
		t.Errorf("%.1f allocations per event, want 3", allocs)
	}
}

func BenchmarkNATS(b *testing.B) {
	for _, mode := range []string{ModeCore, ModeJetStream} {
		b.Run(mode, func(b *testing.B) {
			s := broker.Start(b, serverOptions(b))
			makeStream(b, client(b, s), jetstream.StreamConfig{
				Name: "FLATD", Subjects: []string{"js.>"}, Storage: jetstream.MemoryStorage, MaxBytes: 64 << 20,
			})
			subject := map[string]string{ModeCore: "core.event", ModeJetStream: "js.event"}[mode]
			out := newTestNATS(b, NATSOptions{URL: s.ClientURL(), Mode: mode, Subject: subject})
			awaitReady(b, out)
			events := samples(1, 256)
			b.ReportAllocs()
			var sequence uint64
			for b.Loop() {
				for _, e := range events {
					sequence++
					e.Sequence = sequence
				}
				mustWrite(b, out, events...)
			}
			b.ReportMetric(float64(b.N*len(events))/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(len(events)), "events/op")
		})
	}
}
