package exact

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// Pace is how many requests a load makes in a second.
type Pace struct {
	Out int // of the measured host
	In  int // to it
}

// Load makes requests from Start to Stop. Its methods may be called from any
// goroutine.
type Load struct {
	t        testing.TB
	measured *testbed.Host
	out, in  *asker
	opened   atomic.Int64 // by Open

	mu   sync.Mutex
	made []Exchange // by Open
}

// patience is how long Stop waits for answers. A load that has to wait so long
// was overloaded, and says so.
const patience = 5 * time.Second

// Start begins; the test's end is the latest to end it.
func Start(t testing.TB, measured, far *testbed.Host, pace Pace) *Load {
	t.Helper()
	network(t, measured, far)
	startAnswerer(t, far)
	serve(t, measured)
	l := &Load{t: t, measured: measured}
	l.opened.Store(most / 4) // outbound asks those before
	l.out = newAsker(pace.Out, outbound)
	l.in = newAsker(pace.In, func(n int) Exchange {
		e := inbound(n)
		address := measured.V4
		if e.is6() {
			address = measured.V6
		}
		e.To = netip.AddrPortFrom(netip.MustParseAddr(address), e.To.Port())
		return e
	})
	go l.out.run(t, measured)
	go l.in.run(t, far)
	t.Cleanup(func() { l.out.stop(); l.in.stop() })
	return l
}

// network has the hosts know of each other's addresses.
func network(t testing.TB, measured, far *testbed.Host) {
	t.Helper()
	for _, h := range []*testbed.Host{measured, far} {
		var err error
		h.Do(func() {
			err = errors.Join(
				os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0),
				os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	batch := func(h *testbed.Host, lines ...string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "batch")
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		testbed.Run(t, "ip", "-n", h.Name, "-batch", file)
	}
	at := func(gateway, mac string, role prefix) []string {
		v4, v6 := "10.99.0."+gateway, "fd99::"+gateway
		return []string{
			fmt.Sprintf("neighbour replace %s lladdr %s dev %s", v4, mac, measured.Interface),
			fmt.Sprintf("neighbour replace %s lladdr %s dev %s", v6, mac, measured.Interface),
			fmt.Sprintf("route add %s via %s", role.v4, v4),
			fmt.Sprintf("route add %s via %s", role.v6, v6),
		}
	}
	// Of each other they know too: a device that just came up may not be asked yet.
	known := func(h *testbed.Host) string {
		mac := hardwareAddress(t, h)
		return fmt.Sprintf("neighbour replace %s lladdr %s dev %s\nneighbour replace %s lladdr %s dev %s", h.V4, mac, h.Interface, h.V6, mac, h.Interface)
	}
	batch(measured, append(append(at("66", answeringMAC, answering), at("67", silentMAC, silent)...), known(far),
		fmt.Sprintf("route add %s via %s", asking.v4, far.V4), fmt.Sprintf("route add %s via %s", asking.v6, far.V6))...)
	batch(far, known(measured), fmt.Sprintf("route add local %s dev lo", asking.v4), fmt.Sprintf("route add local %s dev lo", asking.v6))
}

func hardwareAddress(t testing.TB, h *testbed.Host) (mac string) {
	t.Helper()
	var device *net.Interface
	var err error
	h.Do(func() { device, err = net.InterfaceByName(h.Interface) })
	if err != nil {
		t.Fatal(err)
	}
	return device.HardwareAddr.String()
}

// serve has the measured host answer what it is asked.
func serve(t testing.TB, measured *testbed.Host) {
	t.Helper()
	go testbed.CloseEach(measured.Listen(t, fmt.Sprintf("[::]:%d", portOpen)))
	for _, port := range []int{portDNS, portEcho} {
		var conn *net.UDPConn
		var err error
		measured.Do(func() { conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port}) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go answerDatagrams(conn, port == portDNS)
	}
}

func answerDatagrams(conn *net.UDPConn, dns bool) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		reply := append([]byte(nil), buffer[:n]...)
		if dns {
			reply = respond(reply)
		}
		after := delay(number(from.Addr().Unmap()))
		if after == 0 {
			_, _ = conn.WriteToUDPAddrPort(reply, from)
			continue
		}
		time.AfterFunc(after, func() { _, _ = conn.WriteToUDPAddrPort(reply, from) })
	}
}

// Open makes requests of the measured host that nobody answers, all at once: of
// UDP, DNS and ICMP in turn.
func (l *Load) Open(requests int) {
	l.t.Helper()
	made, payloads := make([]Exchange, requests), make([][]byte, requests)
	for i := range made { // first, so that they follow each other closely
		n := int(l.opened.Add(1))
		made[i] = unanswered(n, kinds[1+n/2%3])
		payloads[i] = made[i].payload()
	}
	var err error
	l.measured.Do(func() { err = send(made, payloads) })
	if err != nil {
		l.t.Fatalf("open requests: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made = append(l.made, made...)
}

// send makes requests by one socket for each kind and family.
func send(requests []Exchange, payloads [][]byte) (err error) {
	type socket struct {
		kind string
		is6  bool
	}
	sockets := make(map[socket]int)
	defer func() {
		for _, fd := range sockets {
			unix.Close(fd)
		}
	}()
	for i := range requests {
		e := &requests[i]
		fd, there := sockets[socket{e.Kind, e.is6()}]
		if !there {
			if fd, err = e.socket(); err != nil {
				return err
			}
			sockets[socket{e.Kind, e.is6()}] = fd
		}
		e.Began = time.Now()
		if err := unix.Sendto(fd, payloads[i], 0, sockaddr(e.To)); err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
	}
	for i := range requests {
		e := &requests[i]
		if e.Kind != "icmp" { // else the port is the identifier
			e.From = netip.AddrPortFrom(netip.Addr{}, local(sockets[socket{e.Kind, e.is6()}]).Port())
		}
	}
	return nil
}

// Stop ends the load, waits for the answers that are still to come, and returns
// all that was made.
func (l *Load) Stop() []Exchange {
	all := append(l.out.stop(), l.in.stop()...)
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(all, l.made...)
}

// asker makes the requests of one host, on one thread.
type asker struct {
	plan     func(n int) Exchange
	interval time.Duration
	ending   atomic.Bool
	ended    chan struct{}

	made    []Exchange
	waiting map[int]int // index of made, by socket
	epoll   int
}

func newAsker(perSecond int, plan func(n int) Exchange) *asker {
	a := &asker{plan: plan, ended: make(chan struct{}), waiting: make(map[int]int)}
	if perSecond > 0 {
		a.interval = time.Second / time.Duration(perSecond)
	}
	return a
}

func (a *asker) stop() []Exchange {
	a.ending.Store(true)
	<-a.ended
	return a.made
}

func (a *asker) run(t testing.TB, h *testbed.Host) {
	defer close(a.ended)
	if a.interval == 0 {
		return
	}
	var err error
	h.Do(func() { err = a.ask() })
	if err != nil {
		t.Errorf("the load: %v", err)
	}
}

func (a *asker) ask() (err error) {
	if a.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(a.epoll)
	next := time.Now()
	for n := 0; !a.ending.Load() && n < most/4; {
		for now := time.Now(); !next.After(now) && !a.ending.Load(); n++ {
			if err := a.begin(n); err != nil {
				return err
			}
			if next = next.Add(a.interval); now.Sub(next) > 100*time.Millisecond {
				next = now // kept from it; no burst makes up for that
			}
		}
		if err := a.take(min(time.Until(next), 10*time.Millisecond)); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(patience); len(a.waiting) > 0; {
		if time.Now().After(deadline) {
			for fd, n := range a.waiting {
				unix.Close(fd)
				err = errors.Join(err, fmt.Errorf("no answer: %s", a.made[n]))
			}
			return err
		}
		if err := a.take(10 * time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// begin makes the nth request.
func (a *asker) begin(n int) error {
	e := a.plan(n)
	fd, err := e.socket()
	if err != nil {
		return err
	}
	if e.Inbound {
		err = unix.Bind(fd, sockaddr(e.From))
	}
	e.Began = time.Now()
	if err == nil {
		err = unix.Connect(fd, sockaddr(e.To))
	}
	if err == nil && e.Kind != "tcp" {
		_, err = unix.Write(fd, e.payload())
	}
	if e.Kind == "tcp" && errors.Is(err, unix.EINPROGRESS) {
		err = nil
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("%s: %w", e, err)
	}
	e.From = local(fd)
	if e.Kind == "icmp" {
		e.From = netip.AddrPortFrom(e.From.Addr(), 0)
	}
	a.made = append(a.made, e)
	if e.Result == "timeout" {
		return unix.Close(fd) // which ends the repetition of a SYN
	}
	a.waiting[fd] = len(a.made) - 1
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if e.Kind == "tcp" {
		event.Events = unix.EPOLLOUT
	}
	return unix.EpollCtl(a.epoll, unix.EPOLL_CTL_ADD, fd, &event)
}

// take waits for answers, and takes those that have come.
func (a *asker) take(wait time.Duration) error {
	var events [64]unix.EpollEvent
	// Rounded up, to a millisecond at least if anything: else this spins.
	n, err := unix.EpollWait(a.epoll, events[:], int((max(wait, 0)+time.Millisecond-1)/time.Millisecond))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	for _, event := range events[:max(n, 0)] {
		fd := int(event.Fd)
		n, there := a.waiting[fd]
		if !there {
			continue
		}
		e := &a.made[n]
		delete(a.waiting, fd)
		// Closing does not do that while a child that is just forked has it too.
		if err := unix.EpollCtl(a.epoll, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
			return err
		}
		result, err := e.answered(fd)
		e.Took = max(time.Since(e.Began), 1)
		if err == nil && result != e.Result {
			err = fmt.Errorf("%q came", result)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

// answered is the result that a socket has to tell.
func (e *Exchange) answered(fd int) (result string, err error) {
	if e.Kind == "tcp" {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			return "", err
		case unix.Errno(n) == unix.ECONNREFUSED:
			return "refused", nil
		case n != 0:
			return "", unix.Errno(n)
		}
		// Reset, not closed: neither end is to wait two minutes for the port.
		return "established", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	var answer [512]byte
	n, err := unix.Read(fd, answer[:])
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "unreachable", nil
	case err != nil:
		return "", err
	case e.Kind == "dns" && n > 3 && binary.BigEndian.Uint16(answer[:]) == e.ID:
		return map[byte]string{0: "noerror", 3: "nxdomain"}[answer[3]&0xf], nil
	case e.Kind != "dns":
		return "answered", nil
	}
	return "another answer", nil
}

func (e *Exchange) socket() (fd int, err error) {
	family, icmp := unix.AF_INET, unix.IPPROTO_ICMP
	if e.is6() {
		family, icmp = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	kind, protocol := unix.SOCK_DGRAM, 0
	switch e.Kind {
	case "tcp":
		kind = unix.SOCK_STREAM
	case "icmp":
		protocol = icmp
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol); err != nil {
		return -1, fmt.Errorf("a socket for %s: %w", e, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// local is the address of a socket.
func local(fd int) netip.AddrPort {
	address, _ := unix.Getsockname(fd)
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
