package bpf

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// measure attaches the programs to an interface of a host and returns its index.
func (k *kernel) measure(host *testbed.Host, name string) (index int) {
	k.t.Helper()
	var err error
	host.Do(func() {
		var device *net.Interface
		if device, err = net.InterfaceByName(name); err == nil {
			index = device.Index
			_, err = k.Attacher.Attach(Interface{Index: index, Name: name})
		}
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return index
}

// told is what matters here of a record.
type told struct {
	Index        int
	Side, Result uint8
}

// await waits for as many records of a kind as there must be, in any order.
// Neither may there be more: what is sent after them has to be told last.
func (k *kernel) awaitAll(kind uint8, want ...told) []kernelFlatRecord {
	k.t.Helper()
	var records []kernelFlatRecord
	for deadline := time.Now().Add(10 * time.Second); len(records) < len(want) && time.Now().Before(deadline); {
		for _, r := range k.records() {
			if r.Kind == kind {
				records = append(records, r)
			}
		}
		if len(records) < len(want) {
			if err := k.reader.Wait(100 * time.Millisecond); err != nil {
				k.t.Fatal(err)
			}
		}
	}
	var got []told
	for _, r := range records {
		got = append(got, told{int(r.Ifindex), r.Side, r.Result})
	}
	order := func(a, b told) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if !slices.Equal(got, want) {
		k.t.Fatalf("records %+v, want %+v", got, want)
	}
	return records
}

// service accepts connections on a host and sends back what they send. Its
// address is that of the interface; it ends with the test.
func service(t *testing.T, h *testbed.Host, address string, control func(fd int) error) string {
	t.Helper()
	var listener net.Listener
	var err error
	config := net.ListenConfig{Control: controlled(control)}
	h.Do(func() { listener, err = config.Listen(context.Background(), "tcp", net.JoinHostPort(address, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

func controlled(set func(fd int) error) func(string, string, syscall.RawConn) error {
	if set == nil {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) (err error) {
		if outer := c.Control(func(fd uintptr) { err = set(int(fd)) }); outer != nil {
			return outer
		}
		return err
	}
}

// converse connects from a host, sends so many octets and reads them back.
func converse(t *testing.T, h *testbed.Host, address string, octets int, control func(fd int) error) {
	t.Helper()
	var conn net.Conn
	var err error
	dialer := net.Dialer{Timeout: 10 * time.Second, Control: controlled(control)}
	h.Do(func() { conn, err = dialer.Dial("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(make([]byte, octets))
		sent <- err
	}()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, octets)); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// sysctl sets a parameter of a host's network.
func sysctl(t *testing.T, h *testbed.Host, name, value string) {
	t.Helper()
	var err error
	h.Do(func() { err = os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
	if err != nil {
		testbed.Missing(t, "set net/%s: %v", name, err)
	}
}

// statistic is a counter of a host's TCP (nstat(8)).
func statistic(t *testing.T, h *testbed.Host, name string) (value string) {
	t.Helper()
	var raw []byte
	var err error
	h.Do(func() { raw, err = os.ReadFile("/proc/thread-self/net/netstat") })
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	at := slices.Index(strings.Fields(lines[0]), name)
	if at < 0 {
		t.Fatalf("this kernel does not count %s", name)
	}
	return strings.Fields(lines[1])[at]
}

// Every packet passes a loopback device twice: as it leaves and as it comes.
func TestLoopbackShowsBothSides(t *testing.T) {
	host, _ := testbed.Pair(t)
	k := openKernel(t)
	lo := k.measure(host, "lo")
	for _, address := range []string{"127.0.0.1", "::1"} {
		converse(t, host, service(t, host, address, nil), 1000, nil)
		got := k.awaitAll(kindTCP, told{lo, SideClient, established}, told{lo, SideServer, established})
		if got[0].Source != got[1].Source || got[0].SourcePort != got[1].SourcePort {
			t.Errorf("the sides do not agree on who asked: %+v", got)
		}
		answerUDP(t, host, address)
		k.awaitAll(ofUDP, told{lo, SideClient, answered}, told{lo, SideServer, answered})
	}
	k.balanced()
}

// answerUDP has two sockets of a host exchange datagrams.
func answerUDP(t *testing.T, h *testbed.Host, address string) {
	t.Helper()
	var server net.PacketConn
	var client net.Conn
	var err error
	h.Do(func() {
		if server, err = net.ListenPacket("udp", net.JoinHostPort(address, "0")); err == nil {
			client, err = net.Dial("udp", server.LocalAddr().String())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	defer client.Close()
	for range 2 {
		if _, err := client.Write([]byte("ask")); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 10)
		_, from, err := server.ReadFrom(buffer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteTo(buffer, from); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(buffer); err != nil {
			t.Fatal(err)
		}
	}
}

// A socket that connects to its own address opens a connection from both ends
// at once.
func TestASocketThatConnectsToItself(t *testing.T) {
	host, _ := testbed.Pair(t)
	k := openKernel(t)
	lo := k.measure(host, "lo")
	const address = "127.0.0.1:43210"
	var conn net.Conn
	var err error
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))}
	host.Do(func() { conn, err = dialer.Dial("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	k.awaitAll(kindTCP, told{lo, SideClient, established}, told{lo, SideServer, established})
	k.balanced()
}

// A server that sends cookies keeps nothing of the SYN (RFC 4987, 3.6).
func TestSYNCookies(t *testing.T) {
	asking, asked := testbed.Pair(t)
	sysctl(t, asked, "ipv4/tcp_syncookies", "2")
	k := openKernel(t)
	eth0 := k.measure(asked, asked.Interface)
	for _, address := range []string{asked.V4, asked.V6} {
		converse(t, asking, service(t, asked, address, nil), 1000, nil)
		r := k.awaitAll(kindTCP, told{eth0, SideServer, established})[0]
		if r.ClientRttNs == 0 || r.DurationNs == 0 {
			t.Errorf("record %+v", r)
		}
	}
	if got := statistic(t, asked, "SyncookiesRecv"); got != "2" {
		t.Errorf("%s cookies came back, want 2", got)
	}
	k.balanced()
}

// A client that has a cookie of the server's sends data with the SYN.
func TestFastOpen(t *testing.T) {
	asking, asked := testbed.Pair(t)
	sysctl(t, asking, "ipv4/tcp_fastopen", "3")
	sysctl(t, asked, "ipv4/tcp_fastopen", "3")
	at := service(t, asked, asked.V4, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16)
	})
	fast := func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
	}
	for side, host := range map[uint8]*testbed.Host{SideClient: asking, SideServer: asked} {
		k := openKernel(t)
		eth0 := k.measure(host, host.Interface)
		for range 2 {
			converse(t, asking, at, 1000, fast)
			k.awaitAll(kindTCP, told{eth0, side, established})
		}
		k.balanced()
	}
	if got := statistic(t, asked, "TCPFastOpenPassive"); got != "3" {
		t.Errorf("data came with %s SYNs, want 3 of 4", got)
	}
}

// Super-packets: of data, which is none of ours, and of datagrams.
func TestSegmentationOffload(t *testing.T) {
	asking, asked := testbed.Pair(t)
	k := openKernel(t)
	eth0 := k.measure(asking, asking.Interface)
	for _, address := range []string{asked.V4, asked.V6} {
		converse(t, asking, service(t, asked, address, nil), 4<<20, nil)
		k.awaitAll(kindTCP, told{eth0, SideClient, established})
	}
	if sent := packetsSent(t, asking); sent > 4000 {
		t.Errorf("%d packets for 8 MiB: they were no super-packets", sent)
	}

	var server net.PacketConn
	var client net.Conn
	var err error
	asked.Do(func() { server, err = net.ListenPacket("udp", net.JoinHostPort(asked.V4, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	dialer := net.Dialer{Control: controlled(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000)
	})}
	asking.Do(func() { client, err = dialer.Dial("udp", server.LocalAddr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write(make([]byte, 5000)); err != nil { // five datagrams in one packet
		t.Fatal(err)
	}
	buffer := make([]byte, 2000)
	var from net.Addr
	for i := range 5 {
		var n int
		if n, from, err = server.ReadFrom(buffer); err != nil || n != 1000 {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
	}
	if _, err := server.WriteTo(buffer[:1], from); err != nil {
		t.Fatal(err)
	}
	if r := k.awaitAll(ofUDP, told{eth0, SideClient, answered})[0]; r.Repeats != 0 {
		t.Errorf("seen as %d packets: they were no super-packet", r.Repeats+1)
	}
	k.balanced()
	c, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"truncated", "malformed", "protocol"} {
		if n := c.Map()[name]; n != 0 {
			t.Errorf("%s: %d", name, n)
		}
	}
}

// packetsSent is how many packets a host has sent.
func packetsSent(t *testing.T, h *testbed.Host) (n int) {
	t.Helper()
	var raw []byte
	var err error
	h.Do(func() { raw, err = os.ReadFile("/proc/thread-self/net/dev") })
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); fields[0] == h.Interface+":" {
			fmt.Sscan(fields[10], &n)
		}
	}
	return n
}

// join adds a veth between two hosts, with addresses.
func join(t *testing.T, a *testbed.Host, aName, aAddress string, b *testbed.Host, bName, bAddress string) {
	t.Helper()
	testbed.Run(t, "ip", "-n", a.Name, "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", b.Name)
	for _, end := range [][3]string{{a.Name, aName, aAddress}, {b.Name, bName, bAddress}} {
		testbed.Run(t, "ip", "-n", end[0], "address", "add", end[2], "dev", end[1])
		testbed.Run(t, "ip", "-n", end[0], "link", "set", end[1], "up")
	}
}

// A router sees each exchange on two interfaces: it is asked on one and asks on
// the other.
func TestForwardedTrafficIsToldPerInterface(t *testing.T) {
	client, router := testbed.Pair(t)
	server, _ := testbed.Pair(t)
	testbed.Run(t, "ip", "-n", server.Name, "link", "delete", server.Interface)
	join(t, router, "eth1", "10.98.0.1/24", server, "eth1", "10.98.0.2/24")
	sysctl(t, router, "ipv4/ip_forward", "1")
	testbed.Run(t, "ip", "-n", client.Name, "route", "add", "10.98.0.0/24", "via", router.V4)
	testbed.Run(t, "ip", "-n", server.Name, "route", "add", "10.99.0.0/24", "via", "10.98.0.1")

	k := openKernel(t)
	near, far := k.measure(router, "eth0"), k.measure(router, "eth1")
	converse(t, client, service(t, server, "10.98.0.2", nil), 1000, nil)
	got := k.awaitAll(kindTCP, told{near, SideServer, established}, told{far, SideClient, established})
	if got[0].Source != got[1].Source || got[0].Destination != got[1].Destination {
		t.Errorf("the interfaces do not agree on who asked: %+v", got)
	}
	for _, r := range got {
		if r.Cgroup != 0 {
			t.Errorf("forwarded for nobody here, but told as of cgroup %d", r.Cgroup)
		}
	}
	k.balanced()
}

// The request leaves by one interface, the answer comes by another.
func TestAsymmetricPaths(t *testing.T) {
	client, server := testbed.Pair(t)
	join(t, client, "eth1", "10.98.0.1/24", server, "eth1", "10.98.0.2/24")
	for _, h := range []*testbed.Host{client, server} {
		for _, name := range []string{"all", "default", "eth0", "eth1"} {
			sysctl(t, h, "ipv4/conf/"+name+"/rp_filter", "0")
		}
	}
	// The server reaches the client's address by way of its other interface.
	testbed.Run(t, "ip", "-n", server.Name, "route", "add", client.V4+"/32", "via", "10.98.0.1", "dev", "eth1")
	at := service(t, server, server.V4, nil)

	for _, c := range []struct {
		name    string
		matches bool // anywhere on the host
	}{{"interface", false}, {"host", true}} {
		t.Run(c.name, func(t *testing.T) {
			k := openKernel(t)
			if err := k.Apply(Settings{MatchHost: c.matches}); err != nil {
				t.Fatal(err)
			}
			eth0 := k.measure(client, "eth0")
			k.measure(client, "eth1")
			converse(t, client, at, 1000, nil)
			counters, err := k.Counters()
			if err != nil {
				t.Fatal(err)
			}
			if c.matches {
				k.awaitAll(kindTCP, told{eth0, SideClient, established})
			} else if n := counters[kernelFlatCounterCOUNT_UNMATCHED]; n != 1 {
				t.Errorf("%d answers unmatched, want 1", n)
			}
			k.balanced()
			for _, e := range []Counter{Requests, Finished} {
				if want := map[bool]uint64{true: 1}[c.matches || e == Requests]; counters[e] != want {
					t.Errorf("%s: %d, want %d", e, counters[e], want)
				}
			}
		})
	}
}

// The bridge or bond is measured in its ports' stead.
func TestDevicesWithPorts(t *testing.T) {
	for _, kind := range []string{"bridge", "bond"} {
		t.Run(kind, func(t *testing.T) {
			host, peer := testbed.Pair(t)
			h := func(args ...string) { t.Helper(); testbed.Run(t, "ip", append([]string{"-n", host.Name}, args...)...) }
			if out, err := host.Command("ip", "link", "add", "over0", "type", kind).CombinedOutput(); err != nil {
				t.Skipf("this kernel makes no %s: %s", kind, out)
			}
			h("address", "flush", "dev", host.Interface)
			h("link", "set", host.Interface, "down")
			h("link", "set", host.Interface, "master", "over0")
			h("link", "set", host.Interface, "up")
			h("link", "set", "over0", "up")
			h("address", "add", host.V4+"/24", "dev", "over0")
			h("address", "add", host.V6+"/64", "dev", "over0", "nodad")

			k := openKernel(t)
			over := k.measure(host, "over0")
			for _, address := range []string{peer.V4, peer.V6} {
				converse(t, host, service(t, peer, address, nil), 1000, nil)
				k.awaitAll(kindTCP, told{over, SideClient, established})
			}
			for _, address := range []string{host.V4, host.V6} {
				converse(t, peer, service(t, host, address, nil), 1000, nil)
				k.awaitAll(kindTCP, told{over, SideServer, established})
			}
			k.balanced()
		})
	}
}

// A VLAN device puts its tag beside the packet, for the device below it.
func TestVLANDevices(t *testing.T) {
	asking, asked := testbed.Pair(t)
	for _, end := range []struct {
		host    *testbed.Host
		address string
	}{{asking, "10.97.0.1/24"}, {asked, "10.97.0.2/24"}} {
		if out, err := end.host.Command("ip", "link", "add", "link", "eth0", "name", "outer", "type", "vlan", "proto", "802.1ad", "id", "7").CombinedOutput(); err != nil {
			t.Skipf("this kernel makes no VLAN devices: %s", out)
		}
		testbed.Run(t, "ip", "-n", end.host.Name, "link", "add", "link", "outer", "name", "inner", "type", "vlan", "id", "8")
		testbed.Run(t, "ip", "-n", end.host.Name, "link", "set", "outer", "up")
		testbed.Run(t, "ip", "-n", end.host.Name, "link", "set", "inner", "up")
		testbed.Run(t, "ip", "-n", end.host.Name, "address", "add", end.address, "dev", "inner")
	}
	k := openKernel(t)
	eth0 := k.measure(asking, "eth0")
	converse(t, asking, service(t, asked, "10.97.0.2", nil), 1000, nil)
	if r := k.awaitAll(kindTCP, told{eth0, SideClient, established})[0]; r.Vlan != 7 {
		t.Errorf("vlan %d, want the outermost, 7", r.Vlan)
	}
	k.balanced()
}

// What is inside a tunnel is measured at the tunnel's own device, which has no
// link header.
func TestTunnelDevices(t *testing.T) {
	for _, kind := range []string{"ipip", "gre", "wireguard"} {
		t.Run(kind, func(t *testing.T) {
			near, far := testbed.Pair(t)
			tunnelFrom(t, near, far, kind, "10.96.0.1/24")
			tunnelFrom(t, far, near, kind, "10.96.0.2/24")
			if kind == "wireguard" {
				acquaint(t, near, far)
			}
			k := openKernel(t)
			var index int
			var err error
			near.Do(func() {
				var device *net.Interface
				if device, err = net.InterfaceByName("over0"); err == nil {
					index = device.Index
					_, err = k.Attacher.Attach(Interface{Index: index, Name: "over0", L3: true})
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			converse(t, near, service(t, far, "10.96.0.2", nil), 1000, nil)
			k.awaitAll(kindTCP, told{index, SideClient, established})
			converse(t, far, service(t, near, "10.96.0.1", nil), 1000, nil)
			k.awaitAll(kindTCP, told{index, SideServer, established})
			k.balanced()
		})
	}
}

// tunnelFrom makes one end of a tunnel, over0, if the kernel has such.
func tunnelFrom(t *testing.T, near, far *testbed.Host, kind, address string) {
	t.Helper()
	add := []string{"link", "add", "over0", "type", kind}
	if kind != "wireguard" {
		add = append(add, "local", near.V4, "remote", far.V4)
	}
	if out, err := near.Command("ip", add...).CombinedOutput(); err != nil {
		t.Skipf("this kernel makes no %s: %s", kind, out)
	}
	testbed.Run(t, "ip", "-n", near.Name, "address", "add", address, "dev", "over0")
	testbed.Run(t, "ip", "-n", near.Name, "link", "set", "over0", "up")
}

// acquaint gives both ends of a wireguard tunnel the other's key.
func acquaint(t *testing.T, near, far *testbed.Host) {
	t.Helper()
	wg, err := exec.LookPath("wg")
	if err != nil {
		t.Skip("no wg to set up wireguard with")
	}
	const port = "51820"
	dir := t.TempDir()
	public := make(map[*testbed.Host]string)
	for _, end := range []*testbed.Host{near, far} {
		out, err := end.Command("sh", "-c", `umask 077; wg genkey > "$1" && wg set over0 listen-port "$2" private-key "$1" && wg pubkey < "$1"`,
			"sh", filepath.Join(dir, end.Name), port).Output()
		if err != nil {
			t.Fatal(err)
		}
		public[end] = strings.TrimSpace(string(out))
	}
	for end, other := range map[*testbed.Host]*testbed.Host{near: far, far: near} {
		if out, err := end.Command(wg, "set", "over0", "peer", public[other], "endpoint", net.JoinHostPort(other.V4, port),
			"allowed-ips", "10.96.0.0/24").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}
