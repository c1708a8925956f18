package daemon

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"github.com/flatd/flatd/daemon/control"
	"github.com/flatd/flatd/daemon/pipeline"
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
		if got := testbed.AskHTTP(testbed.Connect(t, p.socket), "GET /v1/status HTTP/1.1\r\nHost: flatd\r\n\r\n"); got != http.StatusOK {
			t.Errorf("a member of the group reads the status: %d", got)
		}
		for range 5 {
			if got := testbed.AskHTTP(testbed.Connect(t, p.socket), reload); got != http.StatusForbidden {
				t.Errorf("a member of the group reloads: %d", got)
			}
		}
	})
	as(t, strangerUID, strangerUID, func() {
		if _, err := net.Dial("unix", p.socket); !errors.Is(err, os.ErrPermission) {
			t.Errorf("somebody else gets in: %v", err)
		}
	})
	if got := testbed.AskHTTP(testbed.Connect(t, p.socket), reload); got != http.StatusOK {
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
		got := testbed.AskHTTP(testbed.Connect(t, p.socket), c.request)
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
	early := testbed.Connect(t, p.socket)
	if got := testbed.AskHTTP(early, "GET /healthz HTTP/1.1\r\nHost: flatd\r\n\r\n"); got != http.StatusOK {
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
	if got := testbed.AskHTTP(early, "GET /healthz HTTP/1.1\r\nHost: flatd\r\n\r\n"); got != http.StatusOK {
		t.Errorf("whoever was there before gets %d", got)
	}
	if grown := memory(t, pid) - before; grown > 32<<20 && !testbed.Raced() {
		t.Errorf("memory grew by %d bytes", grown)
	}
	if more := descriptors(t, pid) - open; more > control.ConnectionsMax {
		t.Errorf("%d descriptors more are open, want %d at most", more, control.ConnectionsMax)
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
		conn := testbed.Connect(t, p.socket)
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
	if got := testbed.AskHTTP(testbed.Connect(t, p.socket), follow); got != http.StatusTooManyRequests {
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
	for deadline := time.Now().Add(patience); testbed.AskHTTP(testbed.Connect(t, p.socket), follow) != http.StatusOK; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no room for a follower after all have gone")
		}
	}
	booksBalance(t, p)
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
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(text), "flatd_interface_up{interface=\"od\\\\u001b\uFFFDd\"} 1") {
		t.Errorf("metrics: %s %v\n%.2000s", response.Status, err, text)
	}
	booksBalance(t, p)
}
