package daemon

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/packaging/testbed"
)

// reconcileVariable makes the test binary be flatd, with that interval.
const reconcileVariable = "FLATD_RECONCILE"

// TestFlatdProcess is not a test but flatd, for newImpatient.
func TestFlatdProcess(*testing.T) {
	every, err := time.ParseDuration(os.Getenv(reconcileVariable))
	if err != nil {
		return
	}
	flags := flag.NewFlagSet("flatd", flag.ExitOnError)
	config := flags.String("config", "", "")
	_ = flags.Parse(flag.Args())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := Run(ctx, Options{ConfigPath: *config, Version: "test", Log: log, Reconcile: every}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0) // without the words of a test that has passed
}

// newImpatient sets up a flatd that looks at the interfaces that often.
func newImpatient(t *testing.T, h *testbed.Host, every time.Duration, config string) *setup {
	t.Helper()
	t.Setenv(reconcileVariable, every.String())
	s := newSetup(t, h, os.Args[0], config)
	s.args = []string{"-test.run=^TestFlatdProcess$", "--"}
	return s
}

// Far beyond the patience of a test: what happens is the kernel's news.
const onlyByNews = time.Hour

func eachAttach(t *testing.T, test func(t *testing.T, mode bpf.Mode)) {
	for _, mode := range []bpf.Mode{bpf.TCX, bpf.Clsact} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == bpf.TCX && bpf.HaveTCX() != nil {
				testbed.Missing(t, "this kernel has no tcx")
			}
			test(t, mode)
		})
	}
}

func attachBy(mode bpf.Mode) string { return fmt.Sprintf("attach = %q\n", mode) }

// filtersOn lists the filters on eth0, in and out.
func filtersOn(t *testing.T, h *testbed.Host, name string) string {
	t.Helper()
	tc := testbed.Tool(t, "tc")
	return testbed.Run(t, tc, "-n", h.Name, "filter", "show", "dev", name, "ingress") +
		testbed.Run(t, tc, "-n", h.Name, "filter", "show", "dev", name, "egress")
}

// attachedTo counts flatd's programs on an interface.
func attachedTo(t *testing.T, h *testbed.Host, mode bpf.Mode, name string) int {
	t.Helper()
	if mode == bpf.Clsact {
		return strings.Count(filtersOn(t, h, name), " flatd_")
	}
	return programsOn(t, h, indexOf(t, h, name))
}

func indexOf(t *testing.T, h *testbed.Host, name string) (index int) {
	t.Helper()
	var links []struct{ Ifindex int }
	if err := json.Unmarshal([]byte(testbed.Run(t, "ip", "-n", h.Name, "-j", "link", "show", "dev", name)), &links); err != nil {
		t.Fatal(err)
	}
	return links[0].Ifindex
}

func (p *process) interfaces() (all []api.InterfaceStatus) {
	p.t.Helper()
	p.ask("/v1/interfaces", &all)
	return all
}

// awaitInterfaces waits until the interfaces are as wanted.
func (p *process) awaitInterfaces(what string, wanted func([]api.InterfaceStatus) bool) []api.InterfaceStatus {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		all := p.interfaces()
		if wanted(all) {
			return all
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain for %s: %d interfaces, %+v", what, len(all), all)
		}
	}
}

// motion moves the interfaces of a host about.
type motion struct {
	t    *testing.T
	host *testbed.Host
	mode bpf.Mode
	p    *process
	told map[string]int // attachments and detachments so far
}

func (m *motion) ip(args ...string) {
	m.t.Helper()
	testbed.Run(m.t, "ip", append([]string{"-n", m.host.Name}, args...)...)
}

// batch runs many ip commands as one.
func (m *motion) batch(lines string) {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "batch")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.ip("-batch", path)
}

// attached waits to be told that name is measured, and looks whether it is.
func (m *motion) attached(name string) {
	m.t.Helper()
	m.told["attach "+name]++
	m.p.waitN("attach of "+name, m.told["attach "+name], isAction("attach", name))
	if n := attachedTo(m.t, m.host, m.mode, name); n != 2 {
		m.t.Errorf("%d programs on %s, want 2", n, name)
	}
}

func (m *motion) detached(name string) {
	m.t.Helper()
	m.told["detach "+name]++
	m.p.waitN("detach of "+name, m.told["detach "+name], isAction("detach", name))
}

// toldNoMore wants no more attachments and detachments than were waited for.
func (m *motion) toldNoMore() {
	m.t.Helper()
	for what, n := range m.told {
		action, name, _ := strings.Cut(what, " ")
		if got := m.p.waitN(what, n, isAction(action, name)); len(got) != n {
			m.t.Errorf("%s told %d times, want %d", what, len(got), n)
		}
	}
}

// stopped is what happens while flatd does not run: SIGSTOP.
func (m *motion) stopped(do func()) {
	m.t.Helper()
	pid := m.p.cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	do()
}

func TestInterfacesInMotion(t *testing.T) {
	eachAttach(t, func(t *testing.T, mode bpf.Mode) {
		client, server := testbed.Pair(t)
		s := newImpatient(t, client, onlyByNews, attachBy(mode))
		s.interfaces = `"eth0", "m*"`
		m := &motion{t: t, host: client, mode: mode, p: s.start(t), told: map[string]int{"attach eth0": 1}}

		m.ip("link", "add", "x0", "type", "veth", "peer", "name", "peer0")
		m.ip("link", "set", "x0", "name", "m0")
		m.attached("m0")
		m.ip("link", "set", "m0", "up")
		m.ip("link", "set", "m0", "down")
		m.ip("link", "set", "m0", "name", "m1") // wanted under both names
		m.p.awaitInterfaces("the new name", func(all []api.InterfaceStatus) bool {
			return slices.ContainsFunc(all, func(i api.InterfaceStatus) bool { return i.Name == "m1" })
		})
		m.ip("link", "set", "m1", "name", "x1")
		m.detached("x1")
		if n := attachedTo(t, client, mode, "x1"); n != 0 {
			t.Errorf("%d programs on an interface that is not wanted any more", n)
		}
		m.ip("link", "set", "x1", "name", "m1")
		m.attached("m1")

		// A port of a bridge, and no longer.
		m.ip("link", "add", "bridge0", "type", "bridge")
		m.ip("link", "set", "m1", "master", "bridge0")
		m.detached("m1")
		m.ip("link", "set", "m1", "nomaster")
		m.attached("m1")

		// To another namespace and back.
		m.ip("link", "set", "m1", "netns", server.Name)
		m.detached("m1")
		if n := attachedTo(t, server, mode, "m1"); n != 0 {
			t.Errorf("%d programs went with the interface to another namespace", n)
		}
		testbed.Run(t, "ip", "-n", server.Name, "link", "set", "m1", "netns", client.Name)
		m.attached("m1")

		// To another namespace, and another one comes in its place.
		index := indexOf(t, client, "m1")
		m.stopped(func() {
			m.ip("link", "set", "m1", "netns", server.Name)
			m.ip("link", "add", "m2", "index", fmt.Sprint(index), "type", "bridge")
		})
		m.attached("m2")
		if n := attachedTo(t, server, mode, "m1"); n != 0 {
			t.Errorf("%d programs went with the interface to another namespace", n)
		}
		m.ip("link", "delete", "m2")
		m.detached("m2")
		m.toldNoMore()

		newTraffic(t, client, server).connect(server.V4)
		m.p.wait("a handshake", isResult("established", "client"))
		booksBalance(t, m.p)
	})
}

// TestLoopbackOnlyIfNamed: no glob takes lo.
func TestLoopbackOnlyIfNamed(t *testing.T) {
	client, _ := testbed.Pair(t)
	for interfaces, want := range map[string][]string{`"*"`: {"eth0"}, `"*", "lo"`: {"lo", "eth0"}} {
		s := newImpatient(t, client, onlyByNews, "")
		s.interfaces = interfaces
		p := s.start(t)
		var names []string
		for _, i := range p.interfaces() {
			names = append(names, i.Name)
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s measures %v, want %v", interfaces, names, want)
		}
		p.end(syscall.SIGTERM)
	}
}

func linkBatch(command string, from, to int) string {
	var lines strings.Builder
	for i := from; i < to; i += 2 { // both ends of each
		switch command {
		case "add":
			fmt.Fprintf(&lines, "link add many%d type veth peer name many%d\n", i, i+1)
		case "delete":
			fmt.Fprintf(&lines, "link delete many%d\n", i)
		}
	}
	return lines.String()
}

// descriptors counts those of a process that are open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestManyInterfacesAtOnce: 200 come and go, then more come and half of them go
// while flatd does not read, so that the kernel drops its messages.
func TestManyInterfacesAtOnce(t *testing.T) {
	eachAttach(t, func(t *testing.T, mode bpf.Mode) {
		const many, unread = 200, 80
		client, server := testbed.Pair(t)
		s := newImpatient(t, client, onlyByNews, attachBy(mode))
		s.interfaces = `"eth0", "many*"`
		m := &motion{t: t, host: client, mode: mode, p: s.start(t)}
		measured := func(n int) {
			t.Helper()
			all := m.p.awaitInterfaces(fmt.Sprintf("%d interfaces and eth0", n), func(all []api.InterfaceStatus) bool { return len(all) == n+1 })
			for _, i := range all {
				if i.Error != "" {
					t.Errorf("%s: %s", i.Name, i.Error)
				}
			}
			pins, err := os.ReadDir(s.pinned("links"))
			want := 0
			if mode == bpf.TCX {
				want = 2 * (n + 1)
			}
			if err != nil || len(pins) != want {
				t.Errorf("%d links pinned for %d interfaces, want %d (%v)", len(pins), n+1, want, err)
			}
		}
		before := descriptors(t, m.p.cmd.Process.Pid)
		m.batch(linkBatch("add", 0, many))
		measured(many)
		m.batch(linkBatch("delete", 0, many))
		measured(0)

		m.stopped(func() {
			m.batch(linkBatch("add", 0, unread))
			m.batch(linkBatch("delete", 0, unread/2))
			if dropped(t, client) == 0 {
				t.Error("no message was dropped, so this shows nothing")
			}
		})
		measured(unread / 2)
		if n := attachedTo(t, client, mode, fmt.Sprintf("many%d", unread-1)); n != 2 {
			t.Errorf("%d programs on the last one, want 2", n)
		}
		m.batch(linkBatch("delete", unread/2, unread))
		measured(0)

		newTraffic(t, client, server).connect(server.V4)
		m.p.wait("a handshake", isResult("established", "client"))
		booksBalance(t, m.p)
		if after := descriptors(t, m.p.cmd.Process.Pid); after > before+2 { // those of the control socket's clients
			t.Errorf("%d descriptors are open, before %d", after, before)
		}
		m.p.end(syscall.SIGTERM)
		for _, sign := range []string{"could not be", "not measured", "not detached"} {
			if said := m.p.stderr.String(); strings.Contains(said, sign) {
				t.Errorf("flatd complains %q", sign)
			}
		}
	})
}

// TestChangesThatAreDroppedAreLookedFor: while flatd does not read, routes that
// are no news for it leave no room for the news. That some was dropped is all
// that it hears of the new interface.
func TestChangesThatAreDroppedAreLookedFor(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newImpatient(t, client, onlyByNews, "")
	s.interfaces = `"eth0", "m*"`
	m := &motion{t: t, host: client, mode: bpf.TCX, p: s.start(t), told: make(map[string]int)}
	if bpf.HaveTCX() != nil {
		m.mode = bpf.Clsact
	}
	m.stopped(func() {
		var routes strings.Builder
		for i := range 2000 {
			fmt.Fprintf(&routes, "route add 198.18.%d.%d/32 dev eth0\n", i>>8, i&255)
		}
		m.batch(routes.String())
		before := dropped(t, client)
		m.ip("link", "add", "m0", "type", "veth", "peer", "name", "peer0")
		if before == 0 || dropped(t, client) == before {
			t.Error("the messages about the interface were not dropped, so this shows nothing")
		}
	})
	m.attached("m0")
}

// dropped is how many messages the kernel has dropped for the netlink sockets of
// the namespace.
func dropped(t *testing.T, h *testbed.Host) (sum int) {
	t.Helper()
	out, err := h.Command("cat", "/proc/net/netlink").Output()
	if err != nil {
		t.Fatal(err)
	}
	const protocol, drops = 1, 8 // columns
	for line := range strings.Lines(string(out)) {
		columns := strings.Fields(line)
		if len(columns) > drops && columns[protocol] == fmt.Sprint(unix.NETLINK_ROUTE) {
			n, err := strconv.Atoi(columns[drops])
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// TestRemovedProgramsArePutBack: at once where the kernel tells of the removal,
// as it does of filters and qdiscs, otherwise at the next look.
func TestRemovedProgramsArePutBack(t *testing.T) {
	removals := map[string]struct {
		mode   bpf.Mode
		every  time.Duration
		remove func(t *testing.T, h *testbed.Host, s *setup)
	}{
		"filter": {bpf.Clsact, onlyByNews, func(t *testing.T, h *testbed.Host, _ *setup) {
			testbed.Run(t, testbed.Tool(t, "tc"), "-n", h.Name, "filter", "delete", "dev", "eth0", "ingress", "prio", "10")
		}},
		"qdisc": {bpf.Clsact, onlyByNews, func(t *testing.T, h *testbed.Host, _ *setup) {
			testbed.Run(t, testbed.Tool(t, "tc"), "-n", h.Name, "qdisc", "delete", "dev", "eth0", "clsact")
		}},
		"filter, at the next look": {bpf.Clsact, 100 * time.Millisecond, func(t *testing.T, h *testbed.Host, _ *setup) {
			testbed.Run(t, testbed.Tool(t, "tc"), "-n", h.Name, "filter", "delete", "dev", "eth0", "egress", "prio", "10")
		}},
		"link": {bpf.TCX, 100 * time.Millisecond, func(t *testing.T, _ *testbed.Host, s *setup) {
			l, err := link.LoadPinnedLink(s.pinned("links/2-egress"), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
		}},
		"pins": {bpf.TCX, 100 * time.Millisecond, func(t *testing.T, _ *testbed.Host, s *setup) {
			for _, name := range []string{"2-ingress", "2-egress"} {
				if err := os.Remove(s.pinned("links/" + name)); err != nil {
					t.Fatal(err)
				}
			}
		}},
	}
	for name, r := range removals {
		t.Run(name, func(t *testing.T) {
			if r.mode == bpf.TCX && bpf.HaveTCX() != nil {
				testbed.Missing(t, "this kernel has no tcx")
			}
			client, server := testbed.Pair(t)
			s := newImpatient(t, client, r.every, attachBy(r.mode))
			p := s.start(t)
			r.remove(t, client, s)
			again := p.waitN("the return of the programs", 2, isAction("attach", "eth0"))
			if !strings.Contains(again[1].Message, "somebody had removed the programs") {
				t.Errorf("told so: %s", again[1].Message)
			}
			if n := attachedTo(t, client, r.mode, "eth0"); n != 2 {
				t.Errorf("%d programs on eth0, want 2", n)
			}
			newTraffic(t, client, server).connect(server.V4)
			p.wait("a handshake", isResult("established", "client"))
			booksBalance(t, p)
		})
	}
}

// bystander is somebody else's program, put where it can see packets.
type bystander struct {
	*testbed.Bystander
	t    *testing.T
	last uint64
}

func newBystander(t *testing.T) *bystander {
	t.Helper()
	return &bystander{testbed.NewBystander(t), t, 0}
}

// link puts it into a tcx chain of eth0.
func (b *bystander) link(h *testbed.Host, attach ebpf.AttachType, anchor link.Anchor) {
	b.t.Helper()
	index := indexOf(b.t, h, "eth0")
	var l link.Link
	var err error
	h.Do(func() {
		l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: b.Program, Attach: attach, Anchor: anchor})
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
}

// filter makes a filter of it.
func (b *bystander) filter(h *testbed.Host, hook, priority, dir string) {
	b.t.Helper()
	path := filepath.Join(dir, "bystander-"+hook+"-"+priority)
	if err := b.Pin(path); err != nil {
		b.t.Fatal(err)
	}
	testbed.Run(b.t, testbed.Tool(b.t, "tc"), "-n", h.Name, "filter", "add", "dev", "eth0", hook, "prio", priority,
		"bpf", "direct-action", "pinned", path)
}

// seesMore wants it to have seen packets since it was last asked.
func (b *bystander) seesMore(when string) {
	b.t.Helper()
	n := b.Packets()
	if n <= b.last {
		b.t.Errorf("%s somebody else's program sees no packets: %d, before %d", when, n, b.last)
	}
	b.last = n
}

// TestOthersOnTheHookKeepWorking, ahead of flatd's programs and behind them,
// whatever becomes of flatd. Of those ahead it warns, once.
func TestOthersOnTheHookKeepWorking(t *testing.T) {
	eachAttach(t, func(t *testing.T, mode bpf.Mode) {
		client, server := testbed.Pair(t)
		s := newImpatient(t, client, 100*time.Millisecond, attachBy(mode))
		tr := newTraffic(t, client, server)
		p := s.start(t)
		var others []*bystander
		for _, hook := range []string{"ingress", "egress"} {
			ahead, behind := newBystander(t), newBystander(t)
			if mode == bpf.TCX {
				attach := map[string]ebpf.AttachType{"ingress": ebpf.AttachTCXIngress, "egress": ebpf.AttachTCXEgress}[hook]
				ahead.link(client, attach, link.Head())
				behind.link(client, attach, link.Tail())
			} else {
				ahead.filter(client, hook, "1", filepath.Dir(s.pins))
				behind.filter(client, hook, "100", filepath.Dir(s.pins))
			}
			others = append(others, ahead, behind)
		}
		allSeeMore := func(when string) {
			t.Helper()
			tr.connect(server.V4)
			for _, b := range others {
				b.seesMore(when)
			}
		}
		all := p.awaitInterfaces("the warning", func(all []api.InterfaceStatus) bool { return len(all[0].Ahead) == 2 })
		if list := strings.Join(all[0].Ahead, "\n"); !strings.Contains(list, "ingress: t") || !strings.Contains(list, "egress: t") {
			t.Errorf("ahead are %s", list)
		}
		allSeeMore("beside flatd")
		p.wait("a handshake", isResult("established", "client"))
		booksBalance(t, p)
		for _, e := range p.end(syscall.SIGKILL) {
			if e.Event.Action == "preceded" && !strings.Contains(e.Message, "eth0") {
				t.Errorf("warned so: %s", e.Message)
			}
		}
		allSeeMore("after flatd was killed")

		p = s.start(t)
		p.wait("a handshake made without flatd", func(e event) bool { return e.Flatd.Replayed && e.Flatd.Result == "established" })
		booksBalance(t, p)
		p.wait("the warning again", isAction("preceded", "eth0"))
		warned := 0
		for _, e := range p.end(syscall.SIGTERM) {
			if e.Event.Action == "preceded" {
				warned++
			}
		}
		if warned != 1 {
			t.Errorf("warned %d times, want once", warned)
		}
		remove := client.Command(testbed.Build(t, "flatctl", ""), "detach", "--config", s.write(t))
		if out, err := remove.CombinedOutput(); err != nil {
			t.Fatalf("detach: %v\n%s", err, out)
		}
		allSeeMore("after flatd's programs were removed")
		if n := attachedTo(t, client, mode, "eth0"); mode == bpf.Clsact && n != 0 || mode == bpf.TCX && n != len(others) {
			t.Errorf("%d programs are left", n)
		}
	})
}

// TestWhoIsAheadIsTold once for each change, in the log and as an event, which
// say how to find the program.
func TestWhoIsAheadIsTold(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newImpatient(t, client, 100*time.Millisecond, attachBy(bpf.Clsact))
	p := s.start(t)
	const first, second = "ingress: tc filter of priority 1, u32 (`tc filter show`)", "ingress: tc filter of priority 2, u32 (`tc filter show`)"
	filter := func(command, priority string) {
		t.Helper()
		args := []string{"-n", client.Name, "filter", command, "dev", "eth0", "ingress", "prio", priority}
		if command == "add" {
			args = append(args, "protocol", "ip", "u32", "match", "ip", "src", "192.0.2.1")
		}
		testbed.Run(t, testbed.Tool(t, "tc"), args...)
	}
	ahead := func(what string, want ...string) {
		t.Helper()
		p.awaitInterfaces(what, func(all []api.InterfaceStatus) bool { return slices.Equal(all[0].Ahead, want) })
	}
	filter("add", "1")
	ahead("the first filter", first)
	(&motion{t: t, p: p}).stopped(func() { filter("delete", "1"); filter("add", "2") })
	ahead("the second filter in its place", second)
	filter("add", "1")
	ahead("both filters", first, second)
	(&motion{t: t, p: p}).stopped(func() { filter("delete", "1"); filter("delete", "2") })
	ahead("no filter")
	filter("add", "1")
	ahead("the first filter again", first)

	var told []string
	for _, e := range p.end(syscall.SIGTERM) {
		if isAction("preceded", "eth0")(e) {
			told = append(told, e.Message)
		}
	}
	want := []string{first, second, first + "; " + second, first}
	if !slices.EqualFunc(told, want, strings.HasSuffix) {
		t.Errorf("told %q, want %q", told, want)
	}
	for i, list := range []string{first, second, first + "; " + second} {
		logged := strings.Count(p.stderr.String(), fmt.Sprintf("interface=eth0 ahead=%q", list))
		if want := []int{2, 1, 1}[i]; logged != want {
			t.Errorf("the log warns %d times of %q, want %d", logged, list, want)
		}
	}
}

// A filter that is not a program can swallow packets as well, and what tcx runs
// comes before any filter.
func TestOtherKindsAhead(t *testing.T) {
	client, _ := testbed.Pair(t)
	s := newImpatient(t, client, onlyByNews, attachBy(bpf.Clsact))
	p := s.start(t)
	testbed.Run(t, testbed.Tool(t, "tc"), "-n", client.Name, "filter", "add", "dev", "eth0", "egress", "prio", "3",
		"protocol", "ip", "u32", "match", "ip", "dst", "192.0.2.0/24")
	all := p.awaitInterfaces("the filter", func(all []api.InterfaceStatus) bool { return len(all[0].Ahead) > 0 })
	if got := all[0].Ahead; len(got) != 1 || !strings.Contains(got[0], "egress: tc filter of priority 3, u32") {
		t.Errorf("ahead: %q", got)
	}
	if bpf.HaveTCX() == nil {
		newBystander(t).link(client, ebpf.AttachTCXIngress, link.Head())
		// Nobody tells of it; a filter behind ours is news, and no warning.
		testbed.Run(t, "tc", "-n", client.Name, "filter", "add", "dev", "eth0", "egress", "prio", "99",
			"protocol", "ip", "u32", "match", "ip", "dst", "192.0.2.0/24")
		all = p.awaitInterfaces("the program", func(all []api.InterfaceStatus) bool { return len(all[0].Ahead) == 2 })
		if got := all[0].Ahead; !strings.Contains(got[0], "ingress: tcx program ") {
			t.Errorf("ahead: %q", got)
		}
	}
	testbed.Run(t, "tc", "-n", client.Name, "filter", "delete", "dev", "eth0", "egress", "prio", "3")
	p.awaitInterfaces("its removal", func(all []api.InterfaceStatus) bool {
		return !slices.ContainsFunc(all[0].Ahead, func(s string) bool { return strings.Contains(s, "egress") })
	})
	booksBalance(t, p)
}
