package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
)

// The traffic of the tests: every kind, both families, answered, refused and
// never answered, between two namespaces.
type traffic struct {
	t              *testing.T
	client, server *testbed.Host
	flows          int // of UDP so far
}

const (
	dnsPort    = 53
	tcpPort    = 7001
	closedPort = 7002
	udpPort    = 7003
	silentPort = 7004
	firstFlow  = 10000 // of the client, below what the kernel chooses from
	// Addresses that the server's link reaches and nobody answers for.
	silentV4 = "10.99.0.77"
	silentV6 = "fd99::77"
)

func newTraffic(t *testing.T, client, server *testbed.Host) *traffic {
	t.Helper()
	tr := &traffic{t: t, client: client, server: server}
	tr.listenTCP(tcpPort)
	tr.echoUDP()
	tr.serveDNS()
	tr.silence()
	return tr
}

// listenTCP accepts and closes.
func (tr *traffic) listenTCP(port int) {
	tr.t.Helper()
	go testbed.CloseEach(tr.server.Listen(tr.t, fmt.Sprintf("[::]:%d", port)))
}

// echoUDP answers on udpPort and reads without an answer on silentPort.
func (tr *traffic) echoUDP() {
	tr.t.Helper()
	for _, port := range []int{udpPort, silentPort} {
		var conn *net.UDPConn
		var err error
		tr.server.Do(func() { conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port}) })
		if err != nil {
			tr.t.Fatal(err)
		}
		tr.t.Cleanup(func() { conn.Close() })
		go echo(conn, port == udpPort)
	}
}

func echo(conn *net.UDPConn, answer bool) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDP(buffer)
		if err != nil {
			return
		}
		if answer {
			_, _ = conn.WriteToUDP(buffer[:n], from)
		}
	}
}

// serveDNS runs dnsmasq, which knows example.test and long.test, and denies all else.
func (tr *traffic) serveDNS() {
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--log-facility=-",
		"--user=root", "--pid-file=", "--local=/test/", "--address=/example.test/192.0.2.7", "--address=/example.test/2001:db8::7"}
	for i := range 8 { // together more than 512 bytes
		args = append(args, fmt.Sprintf("--txt-record=long.test,%d%s", i, strings.Repeat("x", 200)))
	}
	tr.serve(dnsPort, testbed.Tool(tr.t, "dnsmasq"), args...)
}

// serve runs a program on the server until the end of the test; it is up once
// it accepts on a TCP port. That this does is not on the wire.
func (tr *traffic) serve(port int, name string, args ...string) {
	tr.t.Helper()
	program := tr.server.Command(name, args...)
	var said strings.Builder
	program.Stderr = &said
	if err := program.Start(); err != nil {
		tr.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- program.Wait() }()
	tr.t.Cleanup(func() {
		_ = program.Process.Signal(syscall.SIGTERM)
		<-ended
		if tr.t.Failed() {
			tr.t.Logf("%s said:\n%s", name, said.String())
		}
	})
	for {
		conn, err := dial(tr.server, "tcp", join("127.0.0.1", port))
		if err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			tr.t.Fatalf("%s ended: %v", name, err)
		default:
		}
	}
}

// silence has the client send to addresses that nobody answers for.
func (tr *traffic) silence() {
	mac := strings.TrimSpace(string(must(tr.server.Command("cat", "/sys/class/net/eth0/address").Output())))
	for _, addr := range []string{silentV4, silentV6} {
		testbed.Run(tr.t, "ip", "-n", tr.client.Name, "neighbour", "add", addr, "lladdr", mac, "dev", "eth0")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func dial(from *testbed.Host, network, address string) (conn net.Conn, err error) {
	from.Do(func() { conn, err = (&net.Dialer{Timeout: patience}).Dial(network, address) })
	return conn, err
}

// dialUDP is a flow that there was not: a port that is used again before it has
// been idle for long is no new exchange.
func (tr *traffic) dialUDP(address string) (conn net.Conn, err error) {
	tr.flows++
	dialer := net.Dialer{LocalAddr: &net.UDPAddr{Port: firstFlow + tr.flows}}
	tr.client.Do(func() { conn, err = dialer.Dial("udp", address) })
	return conn, err
}

func addresses(h *testbed.Host) []string { return []string{h.V4, h.V6} }

func join(address string, port int) string { return net.JoinHostPort(address, fmt.Sprint(port)) }

// connect makes a connection and waits until the server has closed it.
func (tr *traffic) connect(address string) {
	conn, err := dial(tr.client, "tcp", join(address, tcpPort))
	if err != nil {
		tr.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, conn)
	conn.Close()
}

func (tr *traffic) connectRefused(address string) {
	conn, err := dial(tr.client, "tcp", join(address, closedPort))
	if err == nil {
		conn.Close()
		tr.t.Fatal("a closed port accepted")
	}
}

// connectInVain sends SYNs that nobody answers, without waiting for the end.
func (tr *traffic) connectInVain(address string) {
	tr.t.Helper()
	addr := netip.MustParseAddr(address)
	family, to := syscall.AF_INET6, syscall.Sockaddr(&syscall.SockaddrInet6{Port: tcpPort, Addr: addr.As16()})
	if addr.Is4() {
		family, to = syscall.AF_INET, &syscall.SockaddrInet4{Port: tcpPort, Addr: addr.As4()}
	}
	fd, err := -1, error(nil)
	tr.client.Do(func() {
		if fd, err = syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err == nil {
			err = syscall.Connect(fd, to)
		}
	})
	if !errors.Is(err, syscall.EINPROGRESS) {
		tr.t.Fatalf("connect to nobody: %v", err)
	}
	tr.t.Cleanup(func() { syscall.Close(fd) })
}

// exchange sends a datagram and reads the answer, twice over one socket.
func (tr *traffic) exchange(address string) {
	conn, err := tr.dialUDP(join(address, udpPort))
	if err != nil {
		tr.t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 64)
	for range 2 {
		if _, err := conn.Write([]byte("ask")); err != nil {
			tr.t.Fatal(err)
		}
		if _, err := conn.Read(buffer); err != nil {
			tr.t.Fatal(err)
		}
	}
}

func (tr *traffic) sendInVain(address string) {
	conn, err := tr.dialUDP(join(address, silentPort))
	if err != nil {
		tr.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ask")); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *traffic) dig(address, name, kind string) {
	tr.run(testbed.Tool(tr.t, "dig"), "+tries=1", "+time=20", "@"+address, name, kind)
}

func (tr *traffic) ping(address string) {
	tr.run(testbed.Tool(tr.t, "ping"), "-c", "1", "-W", "20", address)
}

func (tr *traffic) run(name string, args ...string) {
	tr.t.Helper()
	if out, err := tr.client.Command(name, args...).CombinedOutput(); err != nil {
		tr.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// everything is one round of each kind over both families.
func (tr *traffic) everything() {
	for _, address := range addresses(tr.server) {
		tr.connect(address)
		tr.connectRefused(address)
		tr.exchange(address)
		tr.sendInVain(address)
		tr.dig(address, "example.test", "A")
		tr.dig(address, "example.test", "AAAA")
		tr.dig(address, "nothing.test", "A")
		tr.ping(address)
	}
	tr.connectInVain(silentV4)
	tr.connectInVain(silentV6)
}

// eventsOfEverything is how many events one round leads to, on each side.
const (
	answeredOfEverything = 2 * 7 // connect, refused, exchange, 3 dig, ping
	silentOnClient       = 2 * 2 // sendInVain, connectInVain
	silentOnServer       = 2     // sendInVain; attempts from outside that come to nothing are counted alone
)
