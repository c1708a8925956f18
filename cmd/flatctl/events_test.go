package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
)

// TestEventsOverARestart: who follows is told once that flatd has gone, and then
// of everything since, once.
func TestEventsOverARestart(t *testing.T) {
	s := newSite(t)
	s.connect()
	s.awaitEvents(1)
	r := flatctl(t, "events", "-f", "-o", "json", "--kind", "tcp", "--socket", s.socket)
	lines := []string{r.line()}
	s.connect()
	lines = append(lines, r.line())
	s.stopFlatd()
	r.await("waiting for it")
	s.connect() // the kernel sees it
	s.startFlatd(testbed.Build(t, "flatd", ""))
	lines = append(lines, r.line())
	s.connect()
	lines = append(lines, r.line())
	seen := make(map[uint64]bool)
	for i, line := range lines {
		var e flows.Event
		if _, err := flows.ParseJSON([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if seen[e.Sequence] || e.Replayed != (i == 2) {
			t.Errorf("event %d: %s", i, line)
		}
		seen[e.Sequence] = true
	}
	r.stop()
	if more, err := r.rest(); err != nil || len(more) > 0 {
		t.Errorf("%v, and more: %q", err, more)
	}
	if n := strings.Count(r.said(), "\n"); n != 1 {
		t.Errorf("it said %d lines: %s", n, r.said())
	}
}

// TestEventsOverABrokenConnection: flatd tells again what it remembers, and each
// event is shown once; what was there before is not shown at all.
func TestEventsOverABrokenConnection(t *testing.T) {
	s := newSite(t)
	s.connect()
	s.awaitEvents(1)
	wire := newCable(t, s.socket)
	r := flatctl(t, "events", "-f", "-n", "0", "-o", "json", "--kind", "tcp", "--socket", wire.path)
	wire.await(1)
	ports := make(map[uint16]bool)
	for n := 1; n <= 3; n++ {
		s.connect()
		var e flows.Event
		if _, err := flows.ParseJSON([]byte(r.line()), &e); err != nil {
			t.Fatal(err)
		}
		ports[e.Source.Port()] = true
		wire.cut()
		s.connect() // while nobody follows, perhaps
		if _, err := flows.ParseJSON([]byte(r.line()), &e); err != nil {
			t.Fatal(err)
		}
		ports[e.Source.Port()] = true
	}
	if len(ports) != 6 {
		t.Errorf("of six connections those from %v are told", ports)
	}
	r.stop()
	if more, err := r.rest(); err != nil || len(more) > 0 {
		t.Errorf("%v, and more: %q", err, more)
	}
	if n := strings.Count(r.said(), "waiting for it"); n != 3 {
		t.Errorf("it said %s", r.said())
	}
}

// cable leads to a socket, and can be cut.
type cable struct {
	t    *testing.T
	path string

	mu    sync.Mutex
	more  *sync.Cond
	conns []net.Conn
	made  int
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	c := &cable{t: t, path: filepath.Join(t.TempDir(), "cable")}
	c.more = sync.NewCond(&c.mu)
	l, err := net.Listen("unix", c.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.cut() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			flatd, err := net.Dial("unix", to)
			if err != nil {
				from.Close()
				continue
			}
			go func() { _, _ = io.Copy(flatd, from); flatd.Close() }()
			go func() {
				_, _ = io.Copy(&counted{from, c}, flatd)
				from.Close()
			}()
			c.mu.Lock()
			c.conns = append(c.conns, from, flatd)
			c.mu.Unlock()
		}
	}()
	return c
}

// counted counts the connection once an answer comes.
type counted struct {
	net.Conn
	cable *cable
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if cable := c.cable; cable != nil {
		c.cable = nil
		cable.mu.Lock()
		defer cable.mu.Unlock()
		cable.made++
		cable.more.Broadcast()
	}
	return n, err
}

// await waits until so many requests have been answered, if only begun to be.
func (c *cable) await(n int) {
	c.t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() { c.mu.Lock(); late = true; c.more.Broadcast(); c.mu.Unlock() })
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.made < n {
		if late {
			c.t.Fatalf("%d answers of %d", c.made, n)
		}
		c.more.Wait()
	}
}

// cut breaks all connections.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// TestEventsIntoHead: a reader that has enough ends flatctl, also while it has
// nothing to write, and that is no failure.
func TestEventsIntoHead(t *testing.T) {
	s := newSite(t)
	for range 3 {
		s.connect()
	}
	s.awaitEvents(3)
	for _, args := range []string{"events -o json", "events", "events -f", "events -f -o line", "status", "config default"} {
		cmd := exec.Command(s.flatctl, append([]string{"--socket", s.socket}, strings.Fields(args)...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReaderSize(out, 16).ReadString('\n'); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		out.Close()
		timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		timer.Stop()
		if err != nil || said.Len() > 0 {
			t.Errorf("%s into head: %v, %s", args, err, said.String())
		}
	}
}

// TestEventsTellsHowFarBack: what has been forgotten is told on the side.
func TestEventsTellsHowFarBack(t *testing.T) {
	s := newSite(t)
	out, _ := s.run("events", "--since", "1h")
	if strings.Contains(out, "flatd remembers") {
		t.Errorf("nothing is forgotten yet: %s", out)
	}
	for range 1030 {
		s.connect()
	}
	for deadline := time.Now().Add(patience); !strings.Contains(out, "flatd remembers the last 1024 events"); {
		if time.Now().After(deadline) {
			t.Fatal(out)
		}
		out, _ = s.run("events", "--since", "1h", "-o", "line")
	}
	if n := strings.Count(out, "established"); n != 1024 {
		t.Errorf("%d events", n)
	}
}

func sampleReport(host string, port uint16) *source.Report {
	return &source.Report{Host: flows.Host{Name: host, BootID: "6f1c0d2e"}, Event: flows.Event{
		Kind: flows.KindTCP, Side: flows.SideClient, Result: flows.ResultRefused, Time: time.Unix(0, 0), Duration: 81 * time.Microsecond,
		Source: netip.MustParseAddrPort("192.0.2.1:40000"), Destination: netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), port),
		Sequence: uint64(port),
	}}
}

func show(t *testing.T, f form, all ...*source.Report) {
	t.Helper()
	for _, r := range all {
		if err := f.show(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.end(); err != nil {
		t.Fatal(err)
	}
}

func columnsOf(names ...string) (columns []flows.Column) {
	for _, name := range names {
		c, _ := flows.ColumnOf(name)
		columns = append(columns, c)
	}
	return columns
}

func TestTable(t *testing.T) {
	columns := []string{"kind", "result", "duration", "destination"}
	one, two, other := sampleReport("web1", 1), sampleReport("web1", 22222), sampleReport("w\x1b\u00e9b2", 3)
	for name, c := range map[string]struct {
		form form
		want string
	}{
		"held": {&tableForm{columns: columnsOf(columns...)}, `
KIND  RESULT   DURATION  DESTINATION
tcp   refused     81 us  [2001:db8::1]:1
tcp   refused     81 us  [2001:db8::1]:22222
`},
		"live": {&tableForm{columns: columnsOf("kind", "source", "about"), live: true}, `
KIND  SOURCE                 ABOUT
tcp   192.0.2.1:40000
tcp   192.0.2.1:40000
`},
		"coloured": {&tableForm{columns: columnsOf("result", "kind"), terminal: terminal{color: true, utf8: true}}, `
RESULT   KIND
\x1b[33mrefused\x1b[0m  tcp
\x1b[33mrefused\x1b[0m  tcp
`},
	} {
		var out strings.Builder
		c.form.(*tableForm).to = &out
		show(t, c.form, one, two)
		if got := "\n" + out.String(); got != strings.ReplaceAll(c.want, `\x1b`, "\x1b") {
			t.Errorf("%s:%s", name, got)
		}
	}

	// The host comes with the second one, held or live, unless columns were chosen.
	for _, live := range []bool{false, true} {
		var out strings.Builder
		show(t, &tableForm{to: &out, columns: columnsOf("kind", "destination"), live: live}, one, other, two)
		text := out.String()
		if !strings.Contains(text, "HOST") || !strings.Contains(text, `w\u001b?b2  tcp`) || strings.Contains(text, "HOST") != strings.Contains(text, "web1") {
			t.Errorf("live %t:\n%s", live, text)
		}
		if first, _, _ := strings.Cut(text, "\n"); strings.Contains(first, "HOST") == live {
			t.Errorf("live %t begins with %q", live, first)
		}
	}
	var out strings.Builder
	show(t, &tableForm{to: &out, columns: columnsOf("kind"), chosen: true}, one, other)
	if out.String() != "KIND\ntcp\ntcp\n" {
		t.Errorf("chosen columns:\n%s", out.String())
	}
}

// More rows than are held are shown all the same.
func TestTableOfMany(t *testing.T) {
	var out strings.Builder
	f := &tableForm{to: &out, columns: columnsOf("destination")}
	var all []*source.Report
	for i := range 3 * heldMax {
		all = append(all, sampleReport("web1", uint16(i)))
	}
	show(t, f, all...)
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		if want := fmt.Sprintf("[2001:db8::1]:%d", i-1); i > 0 && line != want {
			t.Fatalf("row %d is %q, want %q", i, line, want)
		}
	}
	if n := strings.Count(out.String(), "\n"); n != 3*heldMax+1 {
		t.Errorf("%d lines", n)
	}
}

// What comes from elsewhere is shown and not obeyed, and stays JSON.
func TestJSONForm(t *testing.T) {
	var out strings.Builder
	show(t, jsonForm{&out}, &source.Report{JSON: []byte("{\"a\":\"\u009b2J\u202e\U000e0001\"}\n")})
	if want := `{"a":"\u009b2J\u202e\udb40\udc01"}` + "\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
