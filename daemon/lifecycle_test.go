package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/packaging/testbed"
)

func isResult(result, side string) func(event) bool {
	return func(e event) bool { return e.Flatd.Result == result && e.Flatd.Side == side }
}

func isAction(action, iface string) func(event) bool {
	return func(e event) bool { return e.Event.Action == action && e.Observer.Interface.Name == iface }
}

// programsOn counts the tcx programs on an interface, in and out.
func programsOn(t *testing.T, h *testbed.Host, index int) int {
	t.Helper()
	count := 0
	var err error
	h.Do(func() {
		for _, attach := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			var found *link.QueryResult
			if found, err = link.QueryPrograms(link.QueryOptions{Target: index, Attach: attach}); err != nil {
				return
			}
			count += len(found.Programs)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestMeasuringOutlivesTheDaemon ends flatd under known traffic, kindly and
// not, and wants every handshake in the end: those made while it was away too,
// with the time they happened.
func TestMeasuringOutlivesTheDaemon(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	tr := newTraffic(t, client, server)
	const each = 20
	connections := func() {
		for range each / 2 {
			tr.connect(server.V4)
			tr.connect(server.V6)
		}
	}
	established := isResult("established", "client")

	var all []event
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		p := s.start(t)
		connections()
		p.waitN("the handshakes", each, established)
		all = append(all, p.end(signal)...)
		if n := programsOn(t, client, 2); n != 2 {
			t.Fatalf("%d programs on eth0 while flatd is away, want 2", n)
		}

		before := time.Now()
		connections() // nobody is there to read of these
		after := time.Now()
		p = s.start(t)
		missed := p.waitN("the handshakes made without flatd", each, func(e event) bool { return established(e) && e.Flatd.Replayed })
		for _, e := range missed {
			if e.Timestamp.Before(before) && !slices.ContainsFunc(all, func(o event) bool { return o.Event.ID == e.Event.ID }) {
				t.Errorf("%s at %s, which is before %s", e, e.Timestamp, before)
			}
			if e.Timestamp.After(after) {
				t.Errorf("%s at %s, when it had long been over (%s)", e, e.Timestamp, after)
			}
		}
		if n := programsOn(t, client, 2); n != 2 {
			t.Errorf("%d programs on eth0 after the start, want 2", n)
		}
		if s := booksBalance(t, p); s.Start != "adopt" {
			t.Errorf("start %q, want adopt", s.Start)
		}
		all = append(all, p.end(syscall.SIGTERM)...)
	}

	ids := make(map[string]int)
	var sequences []uint64
	for _, e := range all {
		if established(e) {
			if ids[e.Event.ID]++; ids[e.Event.ID] == 1 {
				sequences = append(sequences, e.Event.Sequence)
			}
		}
	}
	if len(ids) != 4*each {
		t.Errorf("%d handshakes reported, %d made", len(ids), 4*each)
	}
	slices.Sort(sequences)
	if span := sequences[len(sequences)-1] - sequences[0] + 1; span != uint64(len(sequences)) {
		t.Errorf("%d sequence numbers span %d: a gap", len(sequences), span)
	}
}

// state is what the tests look at of /v1/status.
type state struct {
	Host       string
	Start      string
	Measuring  bool
	Programs   string
	Refused    string `json:"programs_refused"`
	TakingOver bool   `json:"taking_over"`
	Problems   []string
	Books      api.Books
	Ring       api.RingStatus
	Outputs    []api.OutputStatus
}

// get asks on the control socket.
func (p *process) get(method, path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
	}}}
	request, err := http.NewRequest(method, "http://flatd"+path, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(request)
}

// ask fills in what the control socket answers.
func (p *process) ask(path string, answer any) {
	p.t.Helper()
	response, err := p.get(http.MethodGet, path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) status() (s state) {
	p.t.Helper()
	p.ask("/v1/status", &s)
	return s
}

func TestTheBooksBalance(t *testing.T) {
	client, server := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"1s\"\n").start(t)
	newTraffic(t, client, server).everything()
	p.waitN("everything", answeredOfEverything+silentOnClient, func(e event) bool { return e.Flatd.Side != "" })

	b := booksBalance(t, p).Books
	if b.Finished != answeredOfEverything || b.TimedOut != silentOnClient || b.DecodeErrors != 0 {
		t.Errorf("%d answered and %d silent exchanges were made: %+v", answeredOfEverything, silentOnClient, b)
	}
}

func TestInterfacesComeAndGo(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	s.interfaces = `"eth0", "late0", "glob*"`
	p := s.start(t)
	add := func(name string) {
		testbed.Run(t, "ip", "-n", client.Name, "link", "add", name, "type", "veth", "peer", "name", "p-"+name)
		testbed.Run(t, "ip", "-n", client.Name, "link", "set", name, "up")
	}
	remove := func(name string) { testbed.Run(t, "ip", "-n", client.Name, "link", "delete", name) }

	for round := 1; round <= 2; round++ { // the second under another index
		for _, name := range []string{"late0", "glob7"} {
			add(name)
			p.waitN("attach of "+name, round, isAction("attach", name))
		}
		for _, name := range []string{"late0", "glob7"} {
			remove(name)
			p.waitN("detach of "+name, round, isAction("detach", name))
		}
	}
	// What was there all the time is measured all the time.
	newTraffic(t, client, server).connect(server.V4)
	p.wait("a handshake", isResult("established", "client"))

	// eth0 itself is made anew.
	testbed.Run(t, "ip", "-n", client.Name, "link", "delete", "eth0")
	p.wait("detach of eth0", isAction("detach", "eth0"))
	add("eth0")
	p.waitN("attach of the new eth0", 2, isAction("attach", "eth0"))
	if pins, err := os.ReadDir(s.pinned("links")); err != nil || len(pins) != 2 {
		t.Errorf("link pins %v, want the two of the new eth0 (%v)", pins, err)
	}
}

func TestAutoFollowsTheDefaultRoute(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	s.interfaces = `"auto"`
	p := s.start(t)
	if p.status().Measuring {
		t.Error("measuring without a default route")
	}
	testbed.Run(t, "ip", "-n", client.Name, "route", "add", "default", "via", "10.99.0.2")
	p.wait("attach", isAction("attach", "eth0"))
	testbed.Run(t, "ip", "-n", client.Name, "route", "delete", "default")
	p.wait("detach", isAction("detach", "eth0"))
	testbed.Run(t, "ip", "-n", client.Name, "-6", "route", "add", "default", "via", "fd99::2")
	p.waitN("attach", 2, isAction("attach", "eth0"))
}

func TestASecondDaemonIsTurnedAway(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	s.start(t)
	out, err := client.Command(s.binary, "--config", s.write(t)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another flatd") || !strings.Contains(string(out), "systemctl stop flatd") {
		t.Errorf("a second daemon ended with %v: %s", err, out)
	}
	other := *s // with a socket of its own it still may not share the pins
	other.dir = t.TempDir()
	out, err = client.Command(s.binary, "--config", other.write(t)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), s.pins) || !strings.Contains(string(out), "another flatd") {
		t.Errorf("a second daemon on the same pins ended with %v: %s", err, out)
	}
}

// One that is turned away leaves alone what it finds where its socket would be.
func TestTheLoserOfAStartTakesNoSocket(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	s.start(t)
	other := *s
	other.dir = t.TempDir()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: other.socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if out, err := client.Command(s.binary, "--config", other.write(t)).CombinedOutput(); err == nil {
		t.Errorf("two at once: %s", out)
	}
	if info, err := os.Lstat(other.socket()); err != nil || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket is gone: %v, %v", info, err)
	}
}

func TestTheHostGetsAnotherName(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	command := fmt.Sprintf("hostname localhost && exec %q --config %q", s.binary, s.write(t))
	s.binary, s.args = "unshare", []string{"--uts", "--", "sh", "-c", command}
	p := s.start(t)
	tr := newTraffic(t, client, server)
	named := func(result, name string) func(event) bool {
		return func(e event) bool { return isResult(result, "client")(e) && e.Observer.Hostname == name }
	}
	tr.connect(server.V4)
	p.wait("a handshake", named("established", "localhost"))
	testbed.Run(t, "nsenter", "-t", fmt.Sprint(p.cmd.Process.Pid), "--uts", "hostname", "web1.example.com")
	p.wait("the news", func(e event) bool { return e.Event.Action == "config" && e.Observer.Hostname == "web1.example.com" })
	tr.connect(server.V4)
	p.wait("a handshake after it", named("established", "web1.example.com"))
	if got := p.status().Host; got != "web1.example.com" {
		t.Errorf("the status is of %s", got)
	}
}

func TestATimeNamespaceIsRefused(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	out, err := client.Command("unshare", "--time", "--boottime", "5000", "--", s.binary, "--config", s.write(t)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "time namespace") || !strings.Contains(string(out), "boottime clock is 5000 s off") {
		t.Errorf("flatd ended with %v: %s", err, out)
	}
}

// Whoever may read the directory of the socket may lock that.
func TestALockOnTheDirectoryHoldsUpNoStart(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	dir, err := os.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s.start(t)
}

// What is no socket may be somebody's data.
func TestNothingButASocketIsRemoved(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	if err := os.WriteFile(s.socket(), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := client.Command(s.binary, "--config", s.write(t)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), s.socket()) || !strings.Contains(string(out), "no socket") {
		t.Errorf("flatd ended with %v: %s", err, out)
	}
	if text, err := os.ReadFile(s.socket()); err != nil || string(text) != "data" {
		t.Errorf("the file has %q, %v", text, err)
	}
}

// Measuring does not depend on whoever reads the diagnostics.
func TestDiagnosticsThatNobodyReads(t *testing.T) {
	for name, spoil := range map[string]func(reader, writer *os.File) error{
		"broken": func(reader, _ *os.File) error { return reader.Close() },
		"full": func(_, writer *os.File) error {
			fd := int(writer.Fd()) // it makes the pipe one that blocks
			if err := unix.SetNonblock(fd, true); err != nil {
				return err
			}
			for block := make([]byte, 4096); ; {
				if _, err := unix.Write(fd, block); err != nil {
					return unix.SetNonblock(fd, false)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := testbed.Pair(t)
			s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
			reader, writer, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { reader.Close(); writer.Close() })
			if err := spoil(reader, writer); err != nil {
				t.Fatal(err)
			}
			s.stderr = writer
			p := s.start(t)
			newTraffic(t, client, server).connect(server.V4)
			p.wait("a handshake", isResult("established", "client"))
			booksBalance(t, p)
			p.end(syscall.SIGTERM)
		})
	}
}

// Both signals at once; see also TestConfigureEndsWithRun.
func TestAStopAndAReloadAtOnce(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	for range 5 {
		p := s.start(t)
		for range 3 {
			if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		p.end(syscall.SIGTERM)
	}
}

func TestReload(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "")
	p := s.start(t)
	tr := newTraffic(t, client, server)
	reload := func() (int, string) {
		response, err := p.get(http.MethodPost, "/v1/reload")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		var answer struct{ Error string }
		_ = json.NewDecoder(response.Body).Decode(&answer)
		return response.StatusCode, answer.Error
	}

	s.config = "measure.timout = \"1s\"\n"
	s.write(t)
	if code, text := reload(); code != http.StatusUnprocessableEntity || !strings.Contains(text, "timout") || !strings.Contains(text, "nothing changed") {
		t.Errorf("reload of a bad file: %d %s", code, text)
	}
	tr.connect(server.V4)
	p.wait("a handshake under the old configuration", isResult("established", "client"))

	s.config = fmt.Sprintf("filter.exclude = [\"%s\"]\n", server.V4)
	s.write(t)
	if code, text := reload(); code != http.StatusOK {
		t.Errorf("reload of a good file: %d %s", code, text)
	}
	tr.connect(server.V4)
	tr.connect(server.V6)
	both := p.waitN("two handshakes", 2, isResult("established", "client"))
	if both[1].Destination.IP != server.V6 {
		t.Errorf("%s, though it is excluded", both[1])
	}
}

// TestNATSSubscribersSeeTheSame has a subscriber compare with standard output.
func TestNATSSubscribersSeeTheSame(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", "natsserver"), "measure.timeout = \"1s\"\nsummary.interval = \"0s\"\n[outputs.nats]\nurl = \"nats://127.0.0.1:4222\"\n")
	s.args = []string{"--nats-server", "127.0.0.1:4222"}
	p := s.start(t)
	conn, err := nats.Connect("nats://127.0.0.1:4222", nats.SetCustomDialer(inside{client}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	messages, err := conn.SubscribeSync("flatd.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}

	newTraffic(t, client, server).everything()
	const n = answeredOfEverything + silentOnClient
	want := make(map[string]bool)
	for _, e := range p.waitN("everything", n, func(e event) bool { return e.Flatd.Side != "" }) {
		want[e.Event.ID] = true
	}
	for len(want) > 0 {
		m, err := messages.NextMsg(patience)
		if err != nil {
			t.Fatalf("of %d messages %d did not come: %v", n, len(want), err)
		}
		if strings.Contains(m.Subject, ".status.") {
			continue // the subscriber may have come before the output
		}
		var e event
		if err := json.Unmarshal(m.Data, &e); err != nil {
			t.Fatal(err)
		}
		if !want[e.Event.ID] || m.Header.Get("Nats-Msg-Id") != e.Event.ID {
			t.Errorf("%s on %s with id %q: not on standard output, or twice", e, m.Subject, m.Header.Get("Nats-Msg-Id"))
		}
		delete(want, e.Event.ID)
		kind := strings.TrimPrefix(e.Event.Dataset, "flatd.")
		if !strings.HasPrefix(m.Subject, "flatd.v1.") || !strings.HasSuffix(m.Subject, "."+kind+"."+e.Flatd.Result) {
			t.Errorf("subject %s for %s", m.Subject, e)
		}
	}
}

// inside dials from a namespace.
type inside struct{ host *testbed.Host }

func (i inside) Dial(network, address string) (net.Conn, error) {
	return dial(i.host, network, address)
}
