package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/broker"
)

// doorway lets those in a host's namespace reach a server of this process, on
// 127.0.0.1.
func doorway(t *testing.T, h *testbed.Host, s *server.Server) (address string) {
	t.Helper()
	l := h.Listen(t, "127.0.0.1:0")
	go func() {
		for {
			outside, err := l.Accept()
			if err != nil {
				return
			}
			inside, err := s.InProcessConn()
			if err != nil {
				outside.Close()
				return
			}
			go func() { _, _ = io.Copy(inside, outside); inside.Close() }()
			go func() { _, _ = io.Copy(outside, inside); outside.Close() }()
		}
	}()
	return l.Addr().String()
}

// member is a flatd of a fleet, on a host with a name of its own.
type member struct {
	site
	name string
}

func newMember(t *testing.T, name, flatd, flatctl string, s *server.Server) *member {
	t.Helper()
	dir := t.TempDir()
	m := &member{name: name, site: site{
		t: t, flatctl: flatctl, pins: filepath.Join(testbed.BPFFS(t), "flatd"),
		config: filepath.Join(dir, "flatd.toml"), socket: filepath.Join(dir, "sock"),
	}}
	m.client, m.server = testbed.Pair(t)
	text := fmt.Sprintf("interfaces = [\"eth0\"]\npin_path = %q\nsocket = %q\n[outputs.journald]\nenabled = false\n[outputs.nats]\nurl = \"nats://%s\"\n",
		m.pins, m.socket, doorway(t, m.client, s))
	if err := os.WriteFile(m.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m.listener = m.server.Listen(t, net.JoinHostPort(m.server.V4, "7001"))
	m.startFlatd(named(t, name, flatd))
	return m
}

// named is a program that runs another on a host of that name.
func named(t *testing.T, name, binary string) string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "named")
	text := fmt.Sprintf("#!/bin/sh\nexec %s --uts sh -c 'echo %s >/proc/sys/kernel/hostname; exec %s \"$@\"' sh \"$@\"\n", testbed.Tool(t, "unshare"), name, binary)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return script
}

// TestFleet: three hosts are one, their histograms merged; and each has a line in
// the status.
func TestFleet(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	flatd, flatctlBinary := testbed.Build(t, "flatd", ""), testbed.Build(t, "flatctl", "")
	var members []*member
	for _, name := range []string{"web1", "web2", "web3"} {
		members = append(members, newMember(t, name, flatd, flatctlBinary, s))
	}
	url := s.ClientURL()
	awaitFleet(t, url, "web1", "web2", "web3")

	m := newTmux(t, "100", "24", "LC_ALL=C.UTF-8 "+flatctlBinary+" top --window 1h --interval 200ms --group host --nats "+url)
	m.awaitText("3 hosts", "nothing yet")
	for i, one := range members {
		for range 10 * (i + 1) {
			one.connect()
		}
		one.refuse()
	}
	screen := m.awaitText(" 63 in ", "3 failed", "web1", "web2", "web3")
	for i, one := range members {
		if row := rowOfScreen(screen, one.name); !strings.HasPrefix(row, fmt.Sprintf("%d ", 10*(i+1)+1)) {
			t.Errorf("%s: %q in\n%s", one.name, row, screen)
		}
	}
	merged := mergedHistogram(t, members)
	for _, percent := range []float64{50, 99} {
		want := fmt.Sprintf("p%.0f %s", percent, flows.AppendDuration(nil, merged.Percentile(percent)))
		if first := lineWith(screen, "3 hosts"); !strings.Contains(first, want) {
			t.Errorf("%q is not in %q", want, first)
		}
	}
	m.keys("G", "G", "G") // all reach the same address
	m.await("their destination", func(screen string) bool { return strings.HasPrefix(rowOfScreen(screen, "10.99.0.2:7001"), "60 ") })
	m.keys("q")
	m.awaitText("ended with 0")

	members[1].stopFlatd()
	out := awaitFleet(t, url, "web1", "web3")
	for _, line := range []string{"web1", "web3"} {
		if l := lineWith(out, line); !strings.Contains(l, "measuring") || !strings.Contains(l, "nothing") {
			t.Errorf("%s: %q", line, l)
		}
	}
}

// awaitFleet waits until the status has these hosts and no others, all well, and
// returns it.
func awaitFleet(t *testing.T, url string, names ...string) string {
	t.Helper()
	var out string
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		var lines []string
		lines, err = flatctl(t, "status", "--interval", "10ms", "--nats", url).rest()
		out = strings.Join(lines, "\n")
		var found []string
		for _, line := range lines[min(1, len(lines)):] {
			found = append(found, strings.Fields(line)[0])
		}
		if err == nil && strings.Join(found, " ") == strings.Join(names, " ") {
			return out
		}
	}
	t.Fatalf("want %v: %v\n%s", names, err, out)
	return ""
}

func mergedHistogram(t *testing.T, members []*member) *flows.Histogram {
	t.Helper()
	var merged flows.Histogram
	for _, one := range members {
		out, status := one.run("histogram", "--kind", "tcp", "-o", "json")
		if status != 0 {
			t.Fatal(out)
		}
		d := decodeHistograms(t, []string{out})[0].Distribution
		h, err := d.Histogram()
		if err != nil {
			t.Fatal(err)
		}
		merged.Merge(&h)
	}
	return &merged
}

// TestFleetOfNone: who finds nobody is told what to look at.
func TestFleetOfNone(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	if _, err := flatctl(t, "status", "--nats", s.ClientURL()).rest(); err == nil || !strings.Contains(err.Error(), "service = true") {
		t.Error(err)
	}
}

// TestFleetLines: events a second are of one daemon's life.
func TestFleetLines(t *testing.T) {
	began := time.Unix(1000, 0)
	host := func(name string, since time.Time, read uint64, at time.Time) source.HostStatus {
		return source.HostStatus{Host: name, At: at, Status: api.Status{Host: name, Since: since, Measuring: true, Books: api.Books{Read: read}}}
	}
	later := began.Add(2 * time.Second)
	lines := fleetLines(
		[]source.HostStatus{host("a", began, 5, began), host("b", began, 5, began), host("c", began, 0, began)},
		[]source.HostStatus{host("a", began, 25, later), host("b", later, 1, later), {Host: "d", Err: io.EOF}})
	var out bytes.Buffer
	if err := printFleet(&out, lines); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a ": "10.0", "b ": "  -  ", "c ": "has gone away", "d ": "EOF"} {
		if line := lineWith(out.String(), "\n"); line == "" || !strings.Contains(lineWith(out.String(), name), want) {
			t.Errorf("%s lacks %q:\n%s", name, want, out.String())
		}
	}
	if err := fleetVerdict(lines); err == nil || !strings.Contains(err.Error(), "2 of 4 hosts") {
		t.Error(err)
	}
}

// TestTopOnce: the table and the JSON of an interval have the connections that
// were made in it.
func TestTopOnce(t *testing.T) {
	s := newSite(t)
	const n = 5
	for deadline := time.Now().Add(patience); ; {
		r := flatctl(t, "top", "--once", "--interval", "2s", "-o", "json", "--kind", "tcp", "--socket", s.socket)
		r.await("counting for")
		for range n {
			s.connect()
		}
		s.refuse()
		lines, err := r.rest()
		var d topDocument
		if err := json.Unmarshal([]byte(strings.Join(lines, "\n")), &d); err != nil {
			t.Fatalf("%v: %q", err, lines)
		}
		if err != nil || d.Total.Exchanges > n+1 {
			t.Fatalf("%v: %+v", err, d)
		}
		if d.Total.Exchanges == n+1 {
			checkOnce(t, s, &d)
			break
		}
		if time.Now().After(deadline) { // the machine is so slow that they came later
			t.Fatalf("%+v", d)
		}
	}
	r := flatctl(t, "top", "--once", "--interval", "1h", "--socket", s.socket)
	r.await("counting for")
	r.stop()
	if lines, err := r.rest(); err != nil || len(lines) == 0 || !strings.HasPrefix(lines[0], "DESTINATION") {
		t.Errorf("interrupted: %v, %q", err, lines)
	}
}

func checkOnce(t *testing.T, s *site, d *topDocument) {
	t.Helper()
	if d.Total.Failed != 1 || d.Others.Exchanges != 0 || d.Lost != 0 || d.LeftOut != 0 || len(d.Hosts) != 1 || d.Interval < 2*time.Second {
		t.Errorf("%+v", d)
	}
	if len(d.Rows) != 2 || d.Rows[0].Exchanges != 5 || d.Rows[1].Results["refused"] != 1 || d.Rows[0].Durations.P50 == 0 {
		t.Fatalf("%+v", d.Rows)
	}
	if end := net.JoinHostPort(d.Rows[0].Destination.IP, fmt.Sprint(d.Rows[0].Destination.Port)); end != s.listener.Addr().String() {
		t.Errorf("the busiest is %s", end)
	}
}
