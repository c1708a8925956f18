package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/daemon/pipeline"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
)

// What the tests take for an unprivileged user and flatd's group.
const (
	strangerUID = 65534
	memberGID   = 65533
)

// as runs f on a thread of its own with the rights of a user and a group: the
// kernel tells the other end of a Unix socket who connected, thread by thread.
func as(t *testing.T, uid, gid int, f func()) {
	t.Helper()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		var errno syscall.Errno
		if _, _, errno = syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0); errno == 0 {
			if _, _, errno = syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno == 0 {
				_, _, errno = syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
			}
		}
		if errno != 0 {
			failed <- errno
			return
		}
		f()
		failed <- nil
	}()
	if err := <-failed; err != nil {
		t.Fatalf("become user %d: %v", uid, err)
	}
}

// open lets the group reach flatd's socket, as the unit does.
func (p *process) open(t *testing.T) {
	t.Helper()
	if err := os.Chown(p.socket, 0, memberGID); err != nil {
		t.Fatal(err)
	}
	// The directories of a test are for its user alone.
	for dir := filepath.Dir(p.socket); dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func connectTo(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ask sends bytes, which may be any, and returns the status of the answer; 0 if
// the connection is closed without one.
func ask(conn net.Conn, request string) int {
	go func() { _, _ = io.WriteString(conn, request) }() // which nobody may read
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	return response.StatusCode
}

// memory is the resident set of a process, in bytes.
func memory(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// saidOnce wants flatd to have said something exactly once. It must have ended.
func (p *process) saidOnce(text string) {
	p.t.Helper()
	if n := strings.Count(p.stderr.String(), text); n != 1 {
		p.t.Errorf("flatd says %d times %q", n, text)
	}
}

// TestOnlyRootChangesAnything: the group reads, others do not get in.
func TestOnlyRootChangesAnything(t *testing.T) {
	client, _ := testbed.Pair(t)
	p := newImpatient(t, client, onlyByNews, "").start(t)
	p.open(t)
	const reload = "POST /v1/reload HTTP/1.1\r\nHost: flatd\r\n\r\n"
	as(t, strangerUID, memberGID, func() {
		if got := ask(connectTo(t, p.socket), "GET /v1/status HTTP/1.1\r\nHost: flatd\r\n\r\n"); got != http.StatusOK {
			t.Errorf("a member of the group reads the status: %d", got)
		}
		for range 5 {
			if got := ask(connectTo(t, p.socket), reload); got != http.StatusForbidden {
				t.Errorf("a member of the group reloads: %d", got)
			}
		}
	})
	as(t, strangerUID, strangerUID, func() {
		if _, err := net.Dial("unix", p.socket); !errors.Is(err, os.ErrPermission) {
			t.Errorf("somebody else gets in: %v", err)
		}
	})
	if got := ask(connectTo(t, p.socket), reload); got != http.StatusOK {
		t.Errorf("root reloads: %d", got)
	}
	booksBalance(t, p)
	p.end(syscall.SIGTERM)
	p.saidOnce("refused a change")
}

// TestOddRequestsAreRefused and leave nothing behind.
func TestOddRequestsAreRefused(t *testing.T) {
	client, _ := testbed.Pair(t)
	p := newImpatient(t, client, onlyByNews, "").start(t)
	const get, end = "GET /v1/events HTTP/1.1\r\nHost: flatd\r\n", "\r\n"
	large := strings.Repeat("x", 1<<20)
	for name, c := range map[string]struct {
		request string
		want    []int
	}{
		"noise":               {"\x00\xff\x1b[2J\r\n\r\n", []int{400}},
		"another protocol":    {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}},
		"an unknown version":  {"GET / HTTP/9.9\r\n\r\n", []int{505}},
		"no host":             {"GET /v1/events HTTP/1.1\r\n\r\n", []int{400}},
		"two hosts":           {get + "Host: other\r\n" + end, []int{400}},
		"a header of a MB":    {get + "X: " + large + end, []int{431, 0}},
		"a thousand headers":  {get + strings.Repeat("X: y\r\n", 10000) + end, []int{431, 0}},
		"an address of a MB":  {"GET /" + large + " HTTP/1.1\r\nHost: flatd\r\n\r\n", []int{431, 0}},
		"a body":              {get + "Content-Length: 3\r\n" + end + "abc", []int{413}},
		"a body without end":  {get + "Transfer-Encoding: chunked\r\n" + end + "100000\r\n" + large, []int{413}},
		"two lengths":         {get + "Content-Length: 3\r\nContent-Length: 4\r\n" + end + "abcd", []int{400}},
		"length and chunks":   {get + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n" + end + "0\r\n\r\n", []int{400, 413, 200}},
		"a negative length":   {get + "Content-Length: -1\r\n" + end, []int{400}},
		"an unknown coding":   {get + "Transfer-Encoding: gzip\r\n" + end, []int{501}},
		"an unknown path":     {"GET /../../etc/passwd HTTP/1.1\r\nHost: flatd\r\n\r\n", []int{301, 307, 404}},
		"an unknown method":   {"DELETE /v1/events HTTP/1.1\r\nHost: flatd\r\n\r\n", []int{405}},
		"a proxy's request":   {"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", []int{404, 405}},
		"a semicolon":         {"GET /v1/events?limit=1;2 HTTP/1.1\r\nHost: flatd\r\n\r\n", []int{400}},
		"an unknown question": {"GET /v1/events?%1b%5b2J=1 HTTP/1.1\r\nHost: flatd\r\n\r\n", []int{400}},
		"too many values":     {"GET /v1/events?result=" + strings.Repeat("a,", 1000) + " HTTP/1.1\r\nHost: flatd\r\n\r\n", []int{400}},
		"many events":         {"GET /v1/events?limit=99999999999999999999 HTTP/1.1\r\nHost: flatd\r\n\r\n", []int{400}},
	} {
		got := ask(connectTo(t, p.socket), c.request)
		found := false
		for _, want := range c.want {
			found = found || got == want
		}
		if !found {
			t.Errorf("%s: status %d, want %v", name, got, c.want)
		}
	}
	booksBalance(t, p)
	p.end(syscall.SIGTERM)
	if said := p.stderr.String(); strings.Contains(said, "WARN") || strings.Contains(said, "ERROR") {
		t.Error("clients can make flatd complain")
	}
}

// TestAFloodOfConnections crowds out itself. Who was there before, who comes
// later, and the memory are not touched by it.
func TestAFloodOfConnections(t *testing.T) {
	const flood = 2000
	client, server := testbed.Pair(t)
	s := newImpatient(t, client, onlyByNews, "")
	p := s.start(t)
	p.open(t)
	tr := newTraffic(t, client, server)
	early := connectTo(t, p.socket)
	if got := ask(early, "GET /healthz HTTP/1.1\r\nHost: flatd\r\n\r\n"); got != http.StatusOK {
		t.Fatalf("health: %d", got)
	}
	pid := p.cmd.Process.Pid
	before, open := memory(t, pid), descriptors(t, pid)

	as(t, strangerUID, memberGID, func() {
		for i := range flood {
			conn, err := net.Dial("unix", p.socket)
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			t.Cleanup(func() { conn.Close() })
			if i%2 == 0 { // the other half says nothing
				_, _ = io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nX: ")
			}
			if i%100 == 0 {
				p.status()
			}
		}
	})
	if got := ask(early, "GET /healthz HTTP/1.1\r\nHost: flatd\r\n\r\n"); got != http.StatusOK {
		t.Errorf("whoever was there before gets %d", got)
	}
	if grown := memory(t, pid) - before; grown > 32<<20 && !testbed.Raced() {
		t.Errorf("memory grew by %d bytes", grown)
	}
	if more := descriptors(t, pid) - open; more > usualLimits.connections {
		t.Errorf("%d descriptors more are open, want %d at most", more, usualLimits.connections)
	}
	tr.connect(server.V4)
	p.wait("a handshake", isResult("established", "client"))
	booksBalance(t, p)
	p.end(syscall.SIGTERM)
	p.saidOnce("too many connections")
}

// TestFollowersThatNeverRead hold up nothing and nobody, and are told what they
// missed, once they read, to the last event.
func TestFollowersThatNeverRead(t *testing.T) {
	const rounds = 3000 // several times what a follower's queue and socket hold
	client, server := testbed.Pair(t)
	p := newImpatient(t, client, onlyByNews, "").start(t)
	tr := newTraffic(t, client, server)
	const follow = "GET /v1/events?follow=true&limit=0&kind=tcp,status HTTP/1.1\r\nHost: flatd\r\n\r\n"
	var followers []net.Conn
	var first *http.Response
	for range pipeline.FollowersMax {
		conn := connectTo(t, p.socket)
		if _, err := io.WriteString(conn, follow); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil) // and no more than fits its buffer
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("follow: %v %v", response, err)
		}
		if followers = append(followers, conn); first == nil {
			first = response
		}
	}
	if got := ask(connectTo(t, p.socket), follow); got != http.StatusTooManyRequests {
		t.Errorf("one follower too many gets %d", got)
	}
	pid := p.cmd.Process.Pid
	before := memory(t, pid)
	for range rounds {
		tr.connect(server.V4)
	}
	p.waitN("every handshake", rounds, isResult("established", "client"))
	if grown := memory(t, pid) - before; grown > 64<<20 && !testbed.Raced() {
		t.Errorf("memory grew by %d bytes", grown)
	}

	// One reads after all.
	lines := json.NewDecoder(first.Body)
	seen, missed := 0, uint64(0)
	for seen+int(missed) < rounds {
		var e event
		if err := lines.Decode(&e); err != nil {
			t.Fatalf("after %d events and %d missed: %v", seen, missed, err)
		}
		missed += e.Flatd.Lost
		if e.Flatd.Result == "established" {
			seen++
		}
	}
	if seen+int(missed) != rounds || missed == 0 {
		t.Errorf("a slow follower got %d events and was told of %d missed, together not %d", seen, missed, rounds)
	}
	for _, conn := range followers {
		conn.Close()
	}
	for deadline := time.Now().Add(patience); ask(connectTo(t, p.socket), follow) != http.StatusOK; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no room for a follower after all have gone")
		}
	}
	booksBalance(t, p)
}

// hall is the control socket alone, with limits of the test's own.
type hall struct {
	*Daemon
	socket string
	door   *door
}

func newHall(t *testing.T, l limits) *hall {
	t.Helper()
	h := &hall{Daemon: &Daemon{config: config.Defaults(), recent: pipeline.NewRecent(), host: flows.Host{Name: "h"}, log: slog.New(slog.DiscardHandler)}, socket: filepath.Join(t.TempDir(), "s")}
	h.door = newDoor(l, h.log)
	listener, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- serveAt(ctx, listener, h.door, h.controlRoutes(h.door)) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	for i := range api.RecentMax {
		h.recent.Add(&flows.Event{Kind: flows.KindTCP, Sequence: uint64(i)})
	}
	return h
}

// awaitEmpty waits until nobody is inside any more.
func (h *hall) awaitEmpty(t *testing.T) {
	t.Helper()
	inside := func() (int, int) {
		h.door.mu.Lock()
		defer h.door.mu.Unlock()
		return len(h.door.guests), h.recent.Followers()
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		guests, followers := inside()
		if guests == 0 && followers == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d guests and %d followers are still there", guests, followers)
		}
	}
}

// TestSlowClientsAreSentAway, whatever they are slow at.
func TestSlowClientsAreSentAway(t *testing.T) {
	short := 50 * time.Millisecond
	h := newHall(t, limits{connections: 8, atOnce: 8, header: 16 << 10, ask: short, read: short, idle: short})
	askOn := func(path string) func(net.Conn) { // again and again, and never read
		return func(conn net.Conn) {
			for {
				if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: flatd\r\n\r\n", path); err != nil {
					return
				}
			}
		}
	}
	for name, slow := range map[string]func(conn net.Conn){
		"says nothing":            func(net.Conn) {},
		"does not end its header": func(c net.Conn) { _, _ = io.WriteString(c, "GET /v1/events HTTP/1.1\r\nX: ") },
		"does not send its body": func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /v1/reload HTTP/1.1\r\nHost: f\r\nContent-Length: 9\r\n\r\n")
		},
		"does not ask again":        func(c net.Conn) { _, _ = io.WriteString(c, "GET /v1/events?limit=1 HTTP/1.1\r\nHost: f\r\n\r\n") },
		"does not read the events":  askOn("/v1/events"),
		"does not read the answers": askOn("/v1/config"),
		"does not read what follows": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /v1/events?follow=true HTTP/1.1\r\nHost: f\r\n\r\n")
			for h.recent.Followers() == 0 {
				time.Sleep(time.Millisecond)
			}
			for h.recent.Followers() > 0 {
				h.recent.Add(&flows.Event{Kind: flows.KindTCP})
				time.Sleep(10 * time.Microsecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := connectTo(t, h.socket)
			slow(conn)
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("is not sent away")
			}
			h.awaitEmpty(t)
		})
	}
}

// TestAFollowerMayStay for longer than others may take to ask.
func TestAFollowerMayStay(t *testing.T) {
	short := 20 * time.Millisecond
	h := newHall(t, limits{connections: 8, atOnce: 8, header: 16 << 10, ask: short, read: patience, idle: short})
	conn := connectTo(t, h.socket)
	if _, err := io.WriteString(conn, "GET /v1/events?follow=true&limit=0 HTTP/1.1\r\nHost: f\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	if _, err := http.ReadResponse(reader, nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * short) // the time itself is the subject
	h.recent.Add(&flows.Event{Kind: flows.KindTCP, Sequence: 4711})
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			t.Fatalf("sent away: %v", err)
		}
		if strings.Contains(line, "4711") {
			break
		}
	}
	conn.Close()
	h.awaitEmpty(t)
}

// TestNobodyTakesEveryRequest: a user's share of what is answered at once is
// bounded.
func TestNobodyTakesEveryRequest(t *testing.T) {
	h := newHall(t, limits{connections: 8, atOnce: 2, header: 16 << 10, ask: patience, read: patience, idle: patience})
	const follow = "GET /v1/events?follow=true&limit=0 HTTP/1.1\r\nHost: f\r\n\r\n"
	for i, want := range []int{200, 200, 429} {
		if got := ask(connectTo(t, h.socket), follow); got != want {
			t.Errorf("request %d gets %d, want %d", i+1, got, want)
		}
	}
}

// TestInterfaceNamesInMetrics: the kernel allows names that Prometheus does not.
func TestInterfaceNamesInMetrics(t *testing.T) {
	client, _ := testbed.Pair(t)
	testbed.Run(t, "ip", "-n", client.Name, "link", "add", "od\x1b\xffd", "type", "veth", "peer", "name", "peer0")
	s := newImpatient(t, client, onlyByNews, "")
	s.interfaces = `"eth0", "od*"`
	p := s.start(t)
	p.waitN("both interfaces", 2, func(e event) bool { return e.Event.Action == "attach" })
	response, err := p.get(http.MethodGet, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(text), "flatd_interface_up{interface=\"od\x1b\uFFFDd\"} 1") {
		t.Errorf("metrics: %s %v\n%.2000s", response.Status, err, text)
	}
	booksBalance(t, p)
}
