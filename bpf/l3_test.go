package bpf

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// tunnel is a tun device in a host's namespace: packets without a link header,
// whose far end is the test.
type tunnel struct {
	*testbed.Host
	*os.File
	t      *testing.T
	device Interface
}

func newTunnel(t *testing.T) *tunnel {
	t.Helper()
	host, _ := testbed.Pair(t)
	n := &tunnel{Host: host, t: t}
	var err error
	host.Do(func() {
		if n.File, err = openTun("tun0"); err != nil {
			return
		}
		var found *net.Interface
		if found, err = net.InterfaceByName("tun0"); err == nil {
			n.device = Interface{Index: found.Index, Name: found.Name, L3: true}
		}
	})
	if err != nil {
		testbed.Missing(t, "make a tun device: %v", err)
	}
	t.Cleanup(func() { n.Close() })
	testbed.Run(t, "ip", "-n", host.Name, "address", "add", "10.98.0.1/24", "dev", "tun0")
	testbed.Run(t, "ip", "-n", host.Name, "address", "add", "fd98::1/64", "dev", "tun0", "nodad")
	testbed.Run(t, "ip", "-n", host.Name, "link", "set", "tun0", "up")
	return n
}

func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// syn reads packets that the host sends until one is a SYN, or a SYN/ACK if ack
// says so. It returns that packet and what it says.
func (n *tunnel) syn(ack bool) (raw []byte, f flow, isn uint32) {
	n.t.Helper()
	if err := n.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		n.t.Fatal(err)
	}
	buffer := make([]byte, 2048)
	for {
		length, err := n.Read(buffer)
		if err != nil {
			n.t.Fatalf("wait for a SYN: %v", err)
		}
		first := layers.LayerTypeIPv4
		if buffer[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		packet := gopacket.NewPacket(buffer[:length], first, gopacket.Default)
		tcp, ok := packet.TransportLayer().(*layers.TCP)
		if !ok || !tcp.SYN || tcp.ACK != ack {
			continue
		}
		ends := packet.NetworkLayer().NetworkFlow()
		f = flow{from: endpoint(ends.Src(), tcp.SrcPort), to: endpoint(ends.Dst(), tcp.DstPort)}
		return buffer[:length], f, tcp.Seq
	}
}

func endpoint(e gopacket.Endpoint, port layers.TCPPort) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(e.Raw())
	return netip.AddrPortFrom(addr, uint16(port))
}

func (n *tunnel) send(packet []byte) {
	n.t.Helper()
	if _, err := n.Write(packet); err != nil {
		n.t.Fatal(err)
	}
}

// mirror exchanges the addresses of a packet, which leaves its checksums right.
func mirror(packet []byte) []byte {
	source, destination := packet[12:16], packet[16:20]
	if packet[0]>>4 == 6 {
		source, destination = packet[8:24], packet[24:40]
	}
	mirrored := bytes.Clone(packet)
	start := bytes.Index(packet, source)
	copy(mirrored[start:], destination)
	copy(mirrored[start+len(destination):], source)
	return mirrored
}

// await waits for the next record.
func (k *kernel) await() kernelFlatRecord {
	k.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if got := k.records(); len(got) == 1 {
			return got[0]
		} else if len(got) > 1 {
			k.t.Fatalf("%d records, want 1: %+v", len(got), got)
		}
		if err := k.reader.Wait(time.Second); err != nil {
			k.t.Fatal(err)
		}
	}
	k.t.Fatal("no record")
	panic("not reached")
}

func TestDevicesWithoutLinkHeader(t *testing.T) {
	for _, mode := range []Mode{Auto, Clsact} {
		t.Run(string(mode), func(t *testing.T) {
			n := newTunnel(t)
			k := session(t, testbed.BPFFS(t))
			k.Attacher.SetMode(mode)
			var err error
			var listener net.Listener
			n.Do(func() {
				if _, err = k.Attacher.Attach(n.device); err == nil {
					listener, err = net.Listen("tcp", ":443")
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()

			for _, address := range []string{"10.98.0.2", "fd98::2"} {
				go n.Do(func() { // nobody answers it for good
					var d net.Dialer
					if conn, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(address, "443")); err == nil {
						conn.Close()
					}
				})
				raw, f, isn := n.syn(false)
				n.send(f.back().synAck(t, isn+1)[etherHeader:])
				n.check(k.await(), SideClient, f)

				n.send(mirror(raw)) // the far end asks, the listener answers
				_, _, sequence := n.syn(true)
				f = flow{from: netip.AddrPortFrom(f.to.Addr(), f.from.Port()), to: netip.AddrPortFrom(f.from.Addr(), 443)}
				n.send(f.tcp(t, func(h *layers.TCP) { h.ACK, h.Seq, h.Ack = true, isn+1, sequence+1 })[etherHeader:])
				n.check(k.await(), SideServer, f)
			}
		})
	}
}

func (n *tunnel) check(r kernelFlatRecord, side uint8, f flow) {
	n.t.Helper()
	if r.Kind != kindTCP || r.Side != side || r.Result != established || int(r.Ifindex) != n.device.Index {
		n.t.Errorf("record %+v", r)
	}
	source := netip.AddrFrom16(r.Source.Bytes).Unmap()
	destination := netip.AddrFrom16(r.Destination.Bytes).Unmap()
	if source != f.from.Addr() || destination != f.to.Addr() || networkOrder(r.SourcePort) != f.from.Port() || networkOrder(r.DestinationPort) != f.to.Port() {
		n.t.Errorf("%s port %d -> %s port %d, want %s -> %s", source, networkOrder(r.SourcePort), destination, networkOrder(r.DestinationPort), f.from, f.to)
	}
}
