package daemon

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// load is a process of its own that makes connections at a steady rate until
// it is told to end: answered, refused and never answered, each from a port of
// its own, over both families. It says what it has made, which is what flatd
// must have seen.
type load struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer // closed to end it
	made  chan []attempt
	begun chan struct{} // closed when the first connection has been made, or none will be
}

// attempt is one connection that the load has made.
type attempt struct {
	From, To netip.AddrPort
	Result   string // as in flatd.result
}

// loadOrders is what the process is told.
type loadOrders struct {
	PerSecond int
	Limit     int              // of attempts in all; 0: as many as there are ports
	Client    [2]netip.Addr    // IPv4 and IPv6; so are those that follow
	Open      []netip.AddrPort // answers
	Closed    []netip.AddrPort // refuses
	Silent    []netip.AddrPort // says nothing
}

const loadVariable = "FLATD_LOAD"

// The load's source ports, used once each.
const loadPortFirst, loadPortLast = 10000, 60000

// startLoad has tr's client connect to its server.
func startLoad(tr *traffic, perSecond, limit int) *load {
	t := tr.t
	t.Helper()
	at := func(port int, addresses ...string) (all []netip.AddrPort) {
		for _, a := range addresses {
			all = append(all, netip.AddrPortFrom(netip.MustParseAddr(a), uint16(port)))
		}
		return all
	}
	orders, err := json.Marshal(loadOrders{
		PerSecond: perSecond, Limit: limit,
		Client: [2]netip.Addr{netip.MustParseAddr(tr.client.V4), netip.MustParseAddr(tr.client.V6)},
		Open:   at(tcpPort, addresses(tr.server)...), Closed: at(closedPort, addresses(tr.server)...),
		Silent: at(tcpPort, silentV4, silentV6),
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, made: make(chan []attempt, 1), begun: make(chan struct{}), cmd: tr.client.Command(os.Args[0], "-test.run", "^TestLoadProcess$")}
	l.cmd.Env = append(os.Environ(), loadVariable+"="+string(orders))
	l.cmd.Stderr = os.Stderr
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.cmd.ProcessState == nil {
			_ = l.cmd.Process.Kill()
			_ = l.cmd.Wait()
		}
	})
	go l.collect(bufio.NewScanner(out))
	<-l.begun
	return l
}

func (l *load) collect(lines *bufio.Scanner) {
	var all []attempt
	for lines.Scan() {
		var a attempt
		if json.Unmarshal(lines.Bytes(), &a) != nil || a.Result == "" {
			continue // what the testing package says
		}
		if all = append(all, a); len(all) == 1 {
			close(l.begun)
		}
	}
	if len(all) == 0 {
		close(l.begun)
	}
	l.made <- all
}

// stop ends the load and returns what it has made.
func (l *load) stop() []attempt {
	l.t.Helper()
	l.stdin.Close()
	return l.finish()
}

// finish waits until the load has made as many attempts as it was to.
func (l *load) finish() []attempt {
	l.t.Helper()
	all := <-l.made
	if err := l.cmd.Wait(); err != nil {
		l.t.Fatalf("the load: %v", err)
	}
	return all
}

// TestLoadProcess is not a test but the process that startLoad starts.
func TestLoadProcess(t *testing.T) {
	var o loadOrders
	if json.Unmarshal([]byte(os.Getenv(loadVariable)), &o) != nil {
		t.Skip("the other half of the tests under load")
	}
	told := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(told) }()
	ports := loadPortLast - loadPortFirst
	if o.Limit > 0 {
		ports = min(ports, o.Limit)
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	pace := time.NewTicker(time.Second / time.Duration(o.PerSecond))
	var attempts sync.WaitGroup
	defer attempts.Wait()
	for n := range ports {
		select {
		case <-told:
			return
		case <-pace.C:
		}
		attempts.Go(func() {
			a, err := o.attempt(n)
			if err != nil {
				t.Errorf("attempt %d: %v", n, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			_ = out.Encode(a)
		})
	}
}

// attempt makes the nth connection: of 20, 12 are answered, 6 are refused and
// nobody says anything to 2.
func (o *loadOrders) attempt(n int) (a attempt, err error) {
	family := n % 2
	switch turn := n / 2 % 10; {
	case turn < 6:
		a = attempt{To: o.Open[family], Result: "established"}
	case turn < 9:
		a = attempt{To: o.Closed[family], Result: "refused"}
	default:
		a = attempt{To: o.Silent[family], Result: "timeout"}
	}
	a.From = netip.AddrPortFrom(o.Client[family], uint16(loadPortFirst+n))
	if a.Result == "timeout" {
		return a, sendSYN(a.From, a.To)
	}
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(a.From), Timeout: patience}
	conn, err := dialer.Dial("tcp", a.To.String())
	if a.Result == "refused" {
		if conn != nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return a, fmt.Errorf("%v instead of a refusal", err)
		}
		return a, nil
	}
	if err != nil {
		return a, err
	}
	// Reset, not closed: neither end is to wait two minutes for the port.
	_ = conn.(*net.TCPConn).SetLinger(0)
	return a, conn.Close()
}

// sendSYN sends a single one: closing the socket ends its repetition.
func sendSYN(from, to netip.AddrPort) error {
	fd, err := beginConnect(from, to)
	if err != nil {
		return err
	}
	return syscall.Close(fd)
}

// beginConnect returns a socket that has sent its SYN.
func beginConnect(from, to netip.AddrPort) (fd int, err error) {
	family := syscall.AF_INET6
	if to.Addr().Is4() {
		family = syscall.AF_INET
	}
	if fd, err = syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	if from.IsValid() {
		err = syscall.Bind(fd, sockaddr(from))
	}
	if err == nil {
		err = syscall.Connect(fd, sockaddr(to))
	}
	if !errors.Is(err, syscall.EINPROGRESS) {
		syscall.Close(fd)
		return -1, fmt.Errorf("connect %s to %s: %w", from, to, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) syscall.Sockaddr {
	if a.Addr().Is4() {
		return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &syscall.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// pollOut waits until a socket that connects has done so, or failed.
func pollOut(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = os.ErrDeadlineExceeded
		}
		return err
	}
}
