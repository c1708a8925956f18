package systemd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/flatd/flatd/packaging/testbed"
)

// patience bounds every wait for something that takes milliseconds.
var patience = 30 * time.Second

// bed is a running systemd with its journal, network and BPF file system.
type bed struct {
	dir      string // on this machine; /bed in the bed
	pid      string // of its PID 1, on this machine
	since    string // the journal is this test's from then on, as journalctl's --since
	watchdog int    // seconds that a daemon at work can be silent
}

// boot boots a bed that stands until the test ends. In a guest, that is the bed.
func boot(t *testing.T) *bed {
	t.Helper()
	testbed.Root(t)
	for _, tool := range []string{"bash", "curl", "ip", "journalctl", "nsenter", "pgrep", "setpriv", "ss", "tc", "useradd"} {
		testbed.Tool(t, tool)
	}
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		testbed.Missing(t, "needs systemd (make setup-test installs it)")
	}
	if inGuest() {
		return guestBed(t)
	}

	b := &bed{dir: t.TempDir(), since: "@0", watchdog: 3}
	// cat ends, and the bed with it, when its standard input does, even if
	// this process is killed.
	cmd := exec.Command("./bed.sh", b.dir, "sh", "-c", "echo up; exec cat")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("take the bed down: %v\n%s", err, complaint.Bytes())
		}
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "up\n" {
		cmd.Wait()
		t.Fatalf("boot the bed: %v\n%s", err, complaint.Bytes())
	}
	pid, err := os.ReadFile(filepath.Join(b.dir, "init.pid"))
	if err != nil {
		t.Fatal(err)
	}
	b.pid = strings.TrimSpace(string(pid))
	return b
}

// command is a command to run in the bed.
func (b *bed) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--all", "--target", b.pid, "--", name}, args...)...)
	cmd.Env = []string{"HOME=/root", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER="}
	return cmd
}

// try runs a command in the bed and returns what it printed.
func (b *bed) try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := b.command(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// step runs one step of a longer test. If it fails, the journal says why.
func (b *bed) step(t *testing.T, name string, f func(*testing.T)) (ok bool) {
	t.Helper()
	return t.Run(name, func(t *testing.T) {
		since := fmt.Sprintf("--since=@%d", time.Now().Unix())
		defer func() {
			if t.Failed() {
				manager, _ := b.try(t, "journalctl", "--no-pager", "-n", "50", since, "_PID=1")
				journal, _ := b.try(t, "journalctl", "--no-pager", "-n", "100", since)
				counted, _ := b.try(t, "flatctl", "status", "--counters")
				t.Logf("systemd:\n%s\njournal:\n%s\nflatd:\n%s", manager, journal, counted)
			}
		}()
		f(t)
	})
}

// run runs a command in the bed that must succeed.
func (b *bed) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := b.try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// write makes a file in the bed.
func (b *bed) write(t *testing.T, path, text string) {
	t.Helper()
	path = filepath.Join("/proc", b.pid, "root", path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// property is a property of a unit.
func (b *bed) property(t *testing.T, unit, name string) string {
	t.Helper()
	return strings.TrimSpace(b.run(t, "systemctl", "show", "--value", "--property="+name, unit))
}

// entry is a journal entry: strings, and lists of them for repeated fields.
type entry map[string]any

func (e entry) String() string {
	return fmt.Sprintf("%v: %v -> %v:%v", e["MESSAGE"], e["SOURCE_IP"], e["DESTINATION_IP"], e["DESTINATION_PORT"])
}

// number is a field that has to be one.
func (e entry) number(t *testing.T, name string) int64 {
	t.Helper()
	text, _ := e[name].(string)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Errorf("%s is %q: %v", name, text, err)
	}
	return n
}

// journal returns the entries that match, oldest first, all that have been
// written so far.
func (b *bed) journal(t *testing.T, matches ...string) []entry {
	t.Helper()
	b.run(t, "journalctl", "--sync")
	text := b.run(t, "journalctl", append([]string{"--quiet", "-o", "json", "-u", "flatd", "--since", b.since}, matches...)...)
	var entries []entry
	decoder := json.NewDecoder(strings.NewReader(text))
	for {
		var e entry
		switch err := decoder.Decode(&e); err {
		case nil:
			entries = append(entries, e)
		case io.EOF:
			return entries
		default:
			t.Fatalf("journalctl -o json: %v\n%s", err, text)
		}
	}
}

// await follows flatd's journal until it has count entries that match.
func (b *bed) await(t *testing.T, count int, matches ...string) []entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := b.command(ctx, "journalctl", append([]string{"-f", "-n", "all", "-o", "json", "-u", "flatd", "--since", b.since}, matches...)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var entries []entry
	shown := make(map[any]bool) // journalctl may show one again while it follows
	decoder := json.NewDecoder(stdout)
	for len(entries) < count {
		var e entry
		if err := decoder.Decode(&e); err != nil {
			break
		}
		if !shown[e["__CURSOR"]] {
			shown[e["__CURSOR"]] = true
			entries = append(entries, e)
		}
	}
	cancel()
	cmd.Wait()
	if len(entries) < count {
		status, _ := b.try(t, "flatctl", "status")
		t.Fatalf("%d journal entries have %v, want %d\nflatctl status:\n%s", len(entries), matches, count, status)
	}
	return entries
}

// in runs f in a network namespace, given by its file, on a thread of its own.
// Sockets that f opens stay there.
func in(file string, f func() error) error {
	done := make(chan error)
	go func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(file)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", file, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// host is one end of the bed's network.
type host struct {
	namespace string // file
	address   string
}

// addPeer gives the bed a neighbour, a namespace of its own behind the new
// interface flat0.
func (b *bed) addPeer(t *testing.T) (self, peer host) {
	t.Helper()
	self = host{namespace: filepath.Join("/proc", b.pid, "ns/net"), address: "192.0.2.1"}
	peer = host{namespace: filepath.Join("/proc", b.pid, "root/run/netns/peer"), address: "192.0.2.2"}
	for _, command := range []string{
		"netns add peer",
		"link add flat0 type veth peer name peer0 netns peer",
		"address add " + self.address + "/24 dev flat0",
		"link set flat0 up",
		"-n peer address add " + peer.address + "/24 dev peer0",
		"-n peer link set peer0 up",
		"-n peer link set lo up",
	} {
		b.run(t, "ip", strings.Fields(command)...)
	}
	return self, peer
}

func (h host) endpoint(port int) string { return net.JoinHostPort(h.address, strconv.Itoa(port)) }

// listen accepts connections on a port of the host until the listener is closed.
func (h host) listen(port int) (listener net.Listener, err error) {
	err = in(h.namespace, func() error {
		listener, err = net.Listen("tcp", h.endpoint(port))
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return listener, nil
}

// dial connects to a port of another host and returns the port it came from.
func (h host) dial(to host, port int) (from int, err error) {
	err = in(h.namespace, func() error {
		conn, err := net.DialTimeout("tcp", to.endpoint(port), patience)
		if err != nil {
			return err
		}
		from = conn.LocalAddr().(*net.TCPAddr).Port
		return conn.Close()
	})
	return from, err
}
