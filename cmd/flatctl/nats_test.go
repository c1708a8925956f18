package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/broker"
)

// patience bounds every wait for something that has to happen.
const patience = 60 * time.Second

func serverOptions(t *testing.T) *server.Options {
	return &server.Options{JetStream: true, StoreDir: t.TempDir()}
}

// publishers publish events of several hosts as flatd does.
type publishers struct {
	t     *testing.T
	hosts map[string]*outputs.NATS
	url   string
	next  uint64
}

func newPublishers(t *testing.T, url string, hosts ...string) *publishers {
	f := &publishers{t: t, url: url, hosts: make(map[string]*outputs.NATS)}
	for i, name := range hosts {
		out, err := outputs.NewNATS(outputs.NATSOptions{URL: url, Host: func() *flows.Host { return &flows.Host{Name: name, BootID: fmt.Sprintf("%08x", i)} }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close() })
		f.hosts[name] = out
	}
	return f
}

// event is an exchange of now with a number of its own.
func (f *publishers) event(change func(*flows.Event)) *flows.Event {
	f.next++
	e := &flows.Event{
		Kind: flows.KindTCP, Side: flows.SideClient, Result: flows.ResultEstablished, Sequence: f.next,
		Time: time.Now(), Duration: time.Duration(f.next) * time.Millisecond,
		Source: netip.MustParseAddrPort("192.0.2.1:40000"), Destination: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(f.next)),
		Interface: flows.Interface{Index: 2, Name: "eth0"},
	}
	if change != nil {
		change(e)
	}
	return e
}

// publish returns when the server has them.
func (f *publishers) publish(host string, events ...*flows.Event) {
	f.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		tally, err := f.hosts[host].Write(f.t.Context(), events)
		if err == nil && tally.Delivered == len(events) {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("publish: %+v, %v", tally, err)
		}
		time.Sleep(10 * time.Millisecond) // the connection comes when it comes
	}
}

// running is a flatctl at work in this process.
type running struct {
	t     *testing.T
	lines chan string
	stop  context.CancelFunc
	ended chan error

	stderr testbed.Transcript
}

func (r *running) said() string { return r.stderr.String() }

func flatctl(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, lines: make(chan string, 1<<16), stop: cancel, ended: make(chan error, 1)}
	reader, writer := io.Pipe()
	root := command()
	root.SetArgs(args)
	root.SetOut(writer)
	root.SetErr(&r.stderr)
	go func() {
		r.ended <- root.ExecuteContext(ctx)
		writer.Close()
	}()
	go func() {
		defer close(r.lines)
		for scanner := bufio.NewScanner(reader); scanner.Scan(); {
			r.lines <- scanner.Text()
		}
	}()
	t.Cleanup(cancel)
	return r
}

// line is the next one.
func (r *running) line() string {
	r.t.Helper()
	select {
	case line, ok := <-r.lines:
		if !ok {
			r.t.Fatalf("it has ended: %v; said %s", <-r.ended, r.said())
		}
		return line
	case <-time.After(patience):
		r.t.Fatalf("no line; said %s", r.said())
	}
	return ""
}

// await waits until it has said something.
func (r *running) await(what string) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(r.said(), what); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("it did not say %q but %q", what, r.said())
		}
	}
}

// rest waits for its end.
func (r *running) rest() (lines []string, err error) {
	for line := range r.lines {
		lines = append(lines, line)
	}
	return lines, <-r.ended
}

// awaitSubscriber waits until somebody listens.
func awaitSubscriber(t *testing.T, s *server.Server, before uint32) {
	t.Helper()
	for deadline := time.Now().Add(patience); s.NumSubscriptions() <= before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody subscribes")
		}
	}
}

// New events of two hosts: with the second host comes its column, and the
// filters are those of the socket.
func TestNATSLive(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	f := newPublishers(t, s.ClientURL(), "web1", "web2")
	before := s.NumSubscriptions()
	all := flatctl(t, "events", "--nats", s.ClientURL())
	awaitSubscriber(t, s, before)
	before = s.NumSubscriptions()
	some := flatctl(t, "events", "--nats", s.ClientURL(), "-o", "line", "--port", "2,4", "--slower", "3ms")
	awaitSubscriber(t, s, before)

	conn, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range []string{"", "not an event", `{"event":{"dataset":"flatd.tcp"}}`} {
		if err := conn.Publish("flatd.v1.web1.\u202e.x", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	f.publish("web1", f.event(nil), f.event(nil))
	f.publish("web2", f.event(nil), f.event(func(e *flows.Event) { e.Result = flows.ResultRefused }))
	again := f.event(nil)
	f.publish("web2", again)
	f.publish("web2", again, f.event(nil)) // as after a failure whose extent is not known
	for i, want := range []string{
		"TIME          KIND  RESULT", "192.0.2.2:1 ", "192.0.2.2:2 ",
		"HOST      TIME", "web2      ", "web2      ", "web2 ", "web2 ",
	} {
		line := all.line()
		if !strings.Contains(line, want) || i == 0 && strings.Contains(line, "HOST") {
			t.Errorf("line %d is %q, want %q in it", i, line, want)
		}
		if i == len("........")-1 && !strings.Contains(line, "192.0.2.2:6 ") {
			t.Errorf("after an event that was published twice comes %q", line)
		}
	}
	if line := some.line(); !strings.Contains(line, "192.0.2.2:4") || !strings.Contains(line, "refused") || strings.Contains(line, "web2") {
		t.Errorf("filtered: %q", line)
	}
	all.await("left out a message on flatd.v1.web1.\\u202e.x")
	all.stop()
	if _, err := all.rest(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(all.said(), "\n"); n != 1 {
		t.Errorf("it said %d lines: %s", n, all.said())
	}
}

// The server goes away and comes back: that is said once, and events go on.
func TestNATSServerRestarts(t *testing.T) {
	o := serverOptions(t)
	s := broker.Start(t, o)
	f := newPublishers(t, s.ClientURL(), "web1")
	before := s.NumSubscriptions()
	r := flatctl(t, "events", "--nats", s.ClientURL(), "-o", "line")
	awaitSubscriber(t, s, before)
	f.publish("web1", f.event(nil))
	if line := r.line(); !strings.Contains(line, "192.0.2.2:1 ") {
		t.Errorf("before: %q", line)
	}
	again := o.Clone()
	fmt.Sscanf(s.Addr().String(), "127.0.0.1:%d", &again.Port)
	broker.Stop(s)
	r.await("waiting for it")
	s = broker.Start(t, again)
	awaitSubscriber(t, s, before)
	for line := ""; line == ""; { // the subscription is one of several that come back
		f.publish("web1", f.event(nil))
		select {
		case line = <-r.lines:
		case <-time.After(50 * time.Millisecond):
		}
	}
	r.stop()
	if _, err := r.rest(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(r.said(), "waiting"); n != 1 {
		t.Errorf("said %d times: %s", n, r.said())
	}
}

func makeStream(t *testing.T, s *server.Server, name string, subjects ...string) {
	t.Helper()
	conn, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: subjects}); err != nil {
		t.Fatal(err)
	}
}

// destinations are the ports, which number the events, in lines of JSON.
func destinations(t *testing.T, lines []string) (ports []int) {
	t.Helper()
	for _, line := range lines {
		var e flows.Event
		if _, err := flows.ParseJSON([]byte(line), &e); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		ports = append(ports, int(e.Destination.Port()))
	}
	return ports
}

// The past of a stream, from a time on, all or the latest of it; then what comes,
// over a restart of the server.
func TestNATSPast(t *testing.T) {
	o := serverOptions(t)
	s := broker.Start(t, o)
	makeStream(t, s, "FLATD", "flatd.>")
	f := newPublishers(t, s.ClientURL(), "web1")
	old := func(e *flows.Event) { e.Time = time.Now().Add(-2 * time.Hour) }
	f.publish("web1", f.event(old), f.event(nil), f.event(nil), f.event(nil), f.event(old))

	for args, want := range map[string][]int{
		"--since 1h":                        {2, 3, 4},
		"--since 5h":                        {1, 2, 3, 4, 5},
		"--since 1h -n 2":                   {3, 4},
		"--since 1h -n 0":                   nil,
		"--since 1h --port 3":               {3},
		"--since 1h --result timeout":       nil,
		"--since 1h --subject flatd.v1.x.>": nil,
	} {
		lines, err := flatctl(t, append([]string{"events", "-o", "json", "--nats", s.ClientURL()}, strings.Fields(args)...)...).rest()
		if got := destinations(t, lines); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", args, got, err, want)
		}
	}

	follow := flatctl(t, "events", "-f", "-o", "json", "--since", "1h", "-n", "1", "--nats", s.ClientURL())
	got := []string{follow.line()}
	f.publish("web1", f.event(nil))
	got = append(got, follow.line())
	again := o.Clone()
	fmt.Sscanf(s.Addr().String(), "127.0.0.1:%d", &again.Port)
	broker.Stop(s)
	follow.await("waiting for it")
	broker.Start(t, again)
	f.publish("web1", f.event(nil), f.event(nil))
	got = append(got, follow.line(), follow.line())
	if ports := destinations(t, got); !slices.Equal(ports, []int{4, 6, 7, 8}) {
		t.Errorf("followed %v", ports)
	}
}

func TestNATSRefusals(t *testing.T) {
	o := serverOptions(t)
	o.Users = []*server.User{
		{Username: "flatctl", Password: "right"},
		{Username: "nobody", Password: "right", Permissions: &server.Permissions{Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}}}},
	}
	s := broker.Start(t, o)
	right, wrong := secretFile(t, "right\n"), secretFile(t, "wrong\n")
	gone := broker.Start(t, serverOptions(t))
	broker.Stop(gone)
	for _, c := range []struct{ args, want string }{
		{"--nats " + gone.ClientURL(), "connect to nats://127.0.0.1"},
		{"--nats http://x", `scheme "http"`},
		{"--nats " + s.ClientURL(), "Authorization Violation"},
		{"--nats-user flatctl --nats-password " + wrong + " --nats " + s.ClientURL(), wrong},
		{"--nats-user nobody --nats-password " + right + " --nats " + s.ClientURL(), "ermissions"},
		{"--nats-user flatctl --nats " + s.ClientURL(), "password"},
		{"--nats-user flatctl --nats-token x --nats-password " + right + " --nats " + s.ClientURL(), "exclude each other"},
		{"--nats-token /nonexistent --nats " + s.ClientURL(), "/nonexistent"},
		{"--since 1h --nats-user flatctl --nats-password " + right + " --nats " + s.ClientURL(), "no stream has flatd.>"},
		{"-n 5 --nats-user flatctl --nats-password " + right + " --nats " + s.ClientURL(), "say --since"},
		{"--nats-token x", "--nats-token is for a NATS server"},
		{"--subject x", "--subject is for a NATS server"},
		{"--port http", `--port http: "http" is not a port number`},
		{"--result timout", "must be one of established"},
		{"--columns colour", `no column "colour"`},
		{"--columns time -o json", "--columns is for -o table"},
		{"-n -1", "must be from 0 to 1024"},
	} {
		_, err := flatctl(t, append([]string{"events"}, strings.Fields(c.args)...)...).rest()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.args, err, c.want)
		}
	}

	// With the right one, and the URL from the environment.
	t.Setenv(urlVariable, s.ClientURL())
	before := s.NumSubscriptions()
	r := flatctl(t, "events", "--nats-user", "flatctl", "--nats-password", right)
	awaitSubscriber(t, s, before)
	r.stop()
	if _, err := r.rest(); err != nil || r.said() != "" {
		t.Errorf("%v; said %q", err, r.said())
	}
	_, err := flatctl(t, "events", "--socket", "/nonexistent").rest()
	if err == nil || !strings.Contains(err.Error(), "no socket /nonexistent") {
		t.Errorf("--socket does not prevail over the variable: %v", err)
	}
}

// Several streams have parts of the subject, or one has a part.
func TestNATSPartsOfTheSubject(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	makeStream(t, s, "ONE", "flatd.v1.web1.>")
	f := newPublishers(t, s.ClientURL(), "web1")
	f.publish("web1", f.event(nil))
	r := flatctl(t, "events", "--since", "1h", "-o", "json", "--nats", s.ClientURL())
	if lines, err := r.rest(); err != nil || len(lines) != 1 || !strings.Contains(r.said(), "stream ONE has only flatd.v1.web1.> of flatd.>") {
		t.Errorf("%v, %q; said %q", err, lines, r.said())
	}
	makeStream(t, s, "TWO", "flatd.v1.web2.>")
	if _, err := flatctl(t, "events", "--since", "1h", "--nats", s.ClientURL()).rest(); err == nil || !strings.Contains(err.Error(), "ONE, TWO") {
		t.Errorf("%v", err)
	}
}

// A histogram of a stream's events, and one of those that come.
func TestNATSHistogram(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	makeStream(t, s, "FLATD", "flatd.>")
	f := newPublishers(t, s.ClientURL(), "web1")
	var want flows.Histogram
	for range 9 {
		e := f.event(nil)
		want.Add(e.Duration)
		f.publish("web1", e)
	}
	f.publish("web1", f.event(func(e *flows.Event) {
		e.Result, e.Duration, e.Limit, e.Request, e.Sequence = flows.ResultTimeout, 0, time.Second, 7, 0
	}))
	lines, err := flatctl(t, "histogram", "-o", "json", "--since", "1h", "--nats", s.ClientURL()).rest()
	got := decodeHistograms(t, lines)
	if err != nil || len(got) != 1 || got[0].Source != "events" {
		t.Fatalf("%v: %q", err, lines)
	}
	sameDistribution(t, "of the stream", got[0].Distribution, &want)

	if _, err := flatctl(t, "histogram", "--nats", s.ClientURL()).rest(); err == nil || !strings.Contains(err.Error(), "--interval") {
		t.Errorf("without --since: %v", err)
	}

	r := flatctl(t, "histogram", "-o", "json", "--interval", "2s", "--nats", s.ClientURL())
	r.await("counting for 2s")
	e := f.event(nil)
	f.publish("web1", e)
	lines, err = r.rest()
	got = decodeHistograms(t, lines)
	if err != nil || len(got) != 1 || got[0].Interval != 2*time.Second {
		t.Fatalf("%v: %q", err, lines)
	}
	var one flows.Histogram
	one.Add(e.Duration)
	sameDistribution(t, "of the interval", got[0].Distribution, &one)
}

func secretFile(t *testing.T, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
