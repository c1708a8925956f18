package daemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sync/errgroup"

	"github.com/flatd/flatd/packaging/testbed"
)

// hierarchy is a slice of cgroups of the test's own, in which processes run as
// they would in units.
type hierarchy struct {
	t     *testing.T
	mount string
	slice string // below mount
}

func newHierarchy(t *testing.T) *hierarchy {
	t.Helper()
	h := &hierarchy{t: t, mount: testbed.Cgroups(t), slice: fmt.Sprintf("/flatdtest%d.slice", os.Getpid())}
	if err := os.Mkdir(h.mount+h.slice, 0o755); err != nil {
		testbed.Missing(t, "make a cgroup: %v", err)
	}
	t.Cleanup(func() { h.remove("") })
	return h
}

// unit is a cgroup that looks like one of systemd's, and a user.
type unit struct {
	h    *hierarchy
	name string // of the directory, below the slice
	uid  int
}

func (h *hierarchy) unit(name string, uid int) *unit {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.mount+h.slice, name), 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { h.remove(name) })
	return &unit{h: h, name: name, uid: uid}
}

// remove removes a cgroup, as soon as its last process has gone.
func (h *hierarchy) remove(name string) {
	h.t.Helper()
	dir := filepath.Join(h.mount+h.slice, name)
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("remove a cgroup: %v", err)
			return
		}
	}
}

// path is what flatd.cgroup should be.
func (u *unit) path() string { return filepath.Join(u.h.slice, u.name) }

// command is a command that begins its life in the unit, on a host.
func (u *unit) command(host *testbed.Host, name string, args ...string) *exec.Cmd {
	t := u.h.t
	t.Helper()
	as := []string{"--reuid=" + fmt.Sprint(u.uid), "--clear-groups", name}
	cmd := host.Command("setpriv", append(as, args...)...)
	dir, err := os.Open(u.h.mount + u.path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd
}

// run runs a command, whatever it comes to.
func (u *unit) run(host *testbed.Host, name string, args ...string) {
	_ = u.command(host, name, args...).Run()
}

// start starts a command that ends with the test.
func (u *unit) start(host *testbed.Host, name string, args ...string) {
	t := u.h.t
	t.Helper()
	cmd := u.command(host, testbed.Tool(t, name), args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// serve runs dnsmasq on a port, over UDP and TCP, until the test ends.
func (u *unit) serve(host *testbed.Host, port int) {
	t := u.h.t
	t.Helper()
	u.start(host, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
		"--user=root", "--pid-file=", "--local=/test/", "--address=/example.test/192.0.2.7", "--log-facility=-", fmt.Sprintf("--port=%d", port))
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		conn, err := dial(host, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("dnsmasq does not start: %v", err)
		}
	}
}

// whose is what an event says of that.
type whose struct {
	service, cgroup, container string
	uid                        int
}

const noUser = -1 // no user.id

func (e event) whose() whose {
	w := whose{e.Service.Name, e.Flatd.Cgroup, e.Container.ID, noUser}
	if e.User.ID != nil {
		w.uid = *e.User.ID
	}
	return w
}

// TestOwners: each end names its own unit, for every kind and result, and never
// the other's; of what the kernel answers by itself it names none.
func TestOwners(t *testing.T) {
	testbed.Tool(t, "setpriv")
	h := newHierarchy(t)
	client, server := testbed.Pair(t)
	asks := h.unit("client-1234.service", 12345)
	names := h.unit("names-1.service", 0)
	plain := h.unit("plain@udp.service", 0)
	names.serve(server, 53)
	plain.serve(server, 5300)
	silence := &traffic{t: t, client: client, server: server}
	silence.silence()

	binary := testbed.Build(t, "flatd", "")
	const config = "measure.timeout = \"1500ms\"\n"
	near, far := newSetup(t, client, binary, config).start(t), newSetup(t, server, binary, config).start(t)

	dig, ping := testbed.Tool(t, "dig"), testbed.Tool(t, "ping")
	connect := func(address string, port int) {
		asks.run(client, testbed.Tool(t, "bash"), "-c", fmt.Sprintf("timeout 0.2 bash -c 'exec 3<>/dev/tcp/%s/%d'", address, port))
	}
	for _, address := range addresses(server) {
		asks.run(client, dig, "+tries=1", "+time=20", "@"+address, "example.test", "A")
		asks.run(client, dig, "+tries=1", "+time=20", "@"+address, "nothing.test", "AAAA")
		asks.run(client, dig, "+tries=1", "+time=20", "-p", "5300", "@"+address, "example.test", "A")
		asks.run(client, ping, "-c", "1", "-W", "20", address)
		connect(address, 53)
		connect(address, 5300)
		connect(address, closedPort)
	}
	for _, address := range []string{silentV4, silentV6} {
		connect(address, 53)
		asks.run(client, dig, "+tries=1", "+time=1", "@"+address, "example.test", "A")
	}
	h.remove(asks.name) // before its requests time out

	const answered, silent = 2 * 7, 2 * 2
	near.waitN("the client's exchanges", answered+silent, func(e event) bool { return e.Flatd.Side == "client" })
	far.waitN("the server's exchanges", answered, func(e event) bool { return e.Flatd.Side == "server" && e.Flatd.Result != "timeout" })

	results := make(map[string]int)
	for _, e := range near.end(syscall.SIGINT) {
		if e.Flatd.Side == "client" {
			results[e.Event.Dataset+" "+e.Flatd.Result]++
			wantWhose(t, e, whose{"client-1234.service", asks.path(), "", 12345})
		}
	}
	for result, want := range map[string]int{
		"flatd.tcp established": 4, "flatd.tcp refused": 2, "flatd.tcp timeout": 2, "flatd.dns timeout": 2,
		"flatd.dns noerror": 2, "flatd.dns nxdomain": 2, "flatd.udp answered": 2, "flatd.icmp answered": 2,
	} {
		if results[result] != want {
			t.Errorf("%d %s, want %d of %v", results[result], result, want, results)
		}
	}
	seen := 0
	for _, e := range far.end(syscall.SIGINT) {
		if e.Flatd.Side == "server" && e.Flatd.Result != "timeout" {
			seen++
		}
		switch {
		case e.Flatd.Side != "server":
		case e.Flatd.Result == "timeout": // nobody was asked
			wantWhose(t, e, whose{uid: noUser})
		case e.Destination.Port == 53:
			wantWhose(t, e, whose{"names-1.service", names.path(), "", 0})
		case e.Destination.Port == 5300:
			wantWhose(t, e, whose{"plain@udp.service", plain.path(), "", 0})
		default: // the kernel itself refuses and echoes
			wantWhose(t, e, whose{uid: noUser})
		}
	}
	if seen != answered {
		t.Errorf("the server reports %d answers, want %d", seen, answered)
	}
}

func wantWhose(t *testing.T, e event, want whose) {
	t.Helper()
	if got := e.whose(); got != want {
		t.Errorf("%s is %+v's, want %+v", e, got, want)
	}
}

// TestOwnersOnLoopback: one device sees both ends, one after the other.
func TestOwnersOnLoopback(t *testing.T) {
	testbed.Tool(t, "setpriv")
	h := newHierarchy(t)
	host, _ := testbed.Pair(t)
	asks, names := h.unit("client-1.service", 12345), h.unit("names-1.service", 0)
	names.serve(host, 53)
	s := newSetup(t, host, testbed.Build(t, "flatd", ""), "")
	s.interfaces = `"lo"`
	p := s.start(t)
	asks.run(host, testbed.Tool(t, "dig"), "+tries=1", "+time=20", "@127.0.0.1", "example.test", "A")
	for side, want := range map[string]whose{
		"client": {"client-1.service", asks.path(), "", 12345},
		"server": {"names-1.service", names.path(), "", 0},
	} {
		e := p.wait("the "+side+"'s side", func(e event) bool { return e.Event.Dataset == "flatd.dns" && e.Flatd.Side == side })
		wantWhose(t, e, want)
	}
}

// TestOwnerGone: the unit has asked, ended and been removed when the answer
// comes. Another of its name has taken its place.
func TestOwnerGone(t *testing.T) {
	testbed.Tool(t, "setpriv")
	bash := testbed.Tool(t, "bash")
	h := newHierarchy(t)
	client, server := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "").start(t)
	var conn *net.UDPConn
	var err error
	server.Do(func() { conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: udpPort}) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	asks := h.unit("short.service", 12345)
	// One exchange before, so that flatd is known to have seen the unit.
	asks.run(client, testbed.Tool(t, "ping"), "-c", "1", "-W", "20", server.V4)
	p.wait("the echo", func(e event) bool { return e.Event.Dataset == "flatd.icmp" })
	asks.run(client, bash, "-c", fmt.Sprintf("echo ask >/dev/udp/%s/%d", server.V4, udpPort))
	buffer := make([]byte, 64)
	_, from, err := conn.ReadFromUDP(buffer)
	if err != nil {
		t.Fatal(err)
	}
	h.remove(asks.name)
	other := h.unit("short.service", 54321)
	other.run(client, testbed.Tool(t, "ping"), "-c", "1", "-W", "20", server.V4)
	if _, err := conn.WriteToUDP([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	e := p.wait("the late answer", func(e event) bool { return e.Event.Dataset == "flatd.udp" })
	wantWhose(t, e, whose{"short.service", asks.path(), "", 12345})
}

// TestOwnersShortLived: many units in a row, each there for one connection. A
// unit that is gone before flatd gets to run may be missing; none is taken for
// another.
func TestOwnersShortLived(t *testing.T) {
	testbed.Tool(t, "setpriv")
	bash := testbed.Tool(t, "bash")
	h := newHierarchy(t)
	client, server := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "").start(t)
	const count, firstPort = 40, 20000
	for i := range count {
		u := h.unit(fmt.Sprintf("job-%d.scope", i), 0)
		u.run(client, bash, "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", server.V4, firstPort+i))
		h.remove(u.name)
	}
	missing := 0
	for _, e := range p.waitN("the connections", count, func(e event) bool { return e.Flatd.Result == "refused" }) {
		want := fmt.Sprintf("job-%d.scope", e.Destination.Port-firstPort)
		switch e.Service.Name {
		case want:
		case "":
			missing++
		default:
			t.Errorf("%s is %s's, want %s", e, e.Service.Name, want)
		}
	}
	t.Logf("%d of %d units were gone too soon", missing, count)
	if missing > count/2 {
		t.Errorf("%d of %d units are not named", missing, count)
	}
}

// TestOwnerInContainer: the unit of a container and its id, and the unit of a
// user's manager.
func TestOwnerInContainer(t *testing.T) {
	testbed.Tool(t, "setpriv")
	h := newHierarchy(t)
	client, server := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "").start(t)
	id := strings.Repeat("0123456789abcdef", 4)
	for i, c := range []struct{ cgroup, service, container string }{
		{"docker-" + id + ".scope", "docker-" + id + ".scope", id},
		{"user-1000.slice", "", ""},
		{"user-1000.slice/user@1000.service", "user@1000.service", ""},
		{"user-1000.slice/user@1000.service/app.slice", "user@1000.service", ""},
		{"user-1000.slice/user@1000.service/app.slice/foo.service", "foo.service", ""},
		{"payload", "", ""},
		{"payload/nginx.service", "", ""},
	} {
		u := h.unit(c.cgroup, 1000)
		u.run(client, testbed.Tool(t, "bash"), "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", server.V4, 20000+i))
		e := p.wait(c.cgroup, func(e event) bool { return e.Destination.Port == 20000+i })
		wantWhose(t, e, whose{c.service, u.path(), c.container, 1000})
	}
}

// TestProcesses: of many processes of one unit that connect at the same time,
// each event names the one that did, or none; also where SYNs wait for the
// neighbour's address and go out in another's time.
func TestProcesses(t *testing.T) {
	needProcesses(t)
	h := newHierarchy(t)
	client, server := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "").start(t)
	asks := h.unit("client-1.service", 12345)
	const waves, processes = 48, 8
	ports := make(map[int]int) // of each process the one it is refused at
	var mu sync.Mutex
	for wave := range waves {
		testbed.Run(t, "ip", "-n", client.Name, "neighbour", "flush", "dev", "eth0")
		var all errgroup.Group
		for i := range processes {
			port := 20000 + processes*wave + i
			cmd := asks.command(client, testbed.Tool(t, "bash"), "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", addresses(server)[i%2], port))
			all.Go(func() error {
				if err := cmd.Start(); err != nil {
					return err
				}
				_ = cmd.Wait() // it is refused
				mu.Lock()
				defer mu.Unlock()
				ports[port] = cmd.Process.Pid
				return nil
			})
		}
		if err := all.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	p.waitN("the refusals", waves*processes, func(e event) bool { return e.Flatd.Result == "refused" })
	named := 0
	for _, e := range p.end(syscall.SIGINT) {
		switch {
		case e.Flatd.Result != "refused" || e.Process.PID == 0:
		case e.Process.PID != ports[e.Destination.Port] || e.Process.Name != "bash" && e.Process.Name != "":
			t.Errorf("%s: process %+v, want %d", e, e.Process, ports[e.Destination.Port])
		default:
			named++
		}
	}
	t.Logf("%d of %d named their process", named, waves*processes)
	if named < waves*processes/4 { // some wait for the address, and some are slow
		t.Errorf("%d of %d named their process", named, waves*processes)
	}
}

// TestRetransmissionsNameNoProcess: a SYN that flatd sees only when TCP's timer
// sends it again goes out in the time of whoever has the CPU, here another
// process of the unit.
func TestRetransmissionsNameNoProcess(t *testing.T) {
	needProcesses(t)
	h := newHierarchy(t)
	client, server := testbed.Pair(t)
	(&traffic{t: t, client: client, server: server}).silence()
	asks := h.unit("client-1.service", 12345)
	const processes = 8
	for i := range processes {
		asks.start(client, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", silentV4, 20000+i))
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		sockets := string(must(client.Command("cat", "/proc/net/tcp").Output()))
		if strings.Count(sockets, " 02 ") == processes { // SYN_SENT
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d SYNs were sent:\n%s", processes, sockets)
		}
	}
	for range runtime.NumCPU() {
		asks.start(client, "nice", "-n", "19", testbed.Tool(t, "bash"), "-c", "while ((SECONDS < 15)); do :; done")
	}
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"1s\"\n").start(t)
	for _, e := range p.waitN("the timeouts", processes, func(e event) bool { return e.Flatd.Result == "timeout" }) {
		if e.Service.Name != asks.name || e.Process.PID != 0 {
			t.Errorf("%s: service %q, process %+v; want %q and none", e, e.Service.Name, e.Process, asks.name)
		}
	}
	p.end(syscall.SIGINT)
}

// needProcesses skips a test where the kernel does not tell who asks.
func needProcesses(t *testing.T) {
	t.Helper()
	if err := features.HaveProgramHelper(ebpf.SchedCLS, asm.FnGetCurrentPidTgid); err != nil {
		t.Skipf("the kernel does not tell programs of tc who is running: %v", err)
	}
	testbed.Tool(t, "setpriv")
}
