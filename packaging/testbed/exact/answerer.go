package exact

import (
	"errors"
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

// answerer plays all the hosts that answer: it reads the frames that are sent to
// their hardware address, and sends what each would, after its time.
type answerer struct {
	socket *os.File
}

// Hardware addresses that no device has. The kernel of the far host takes no
// notice of what is sent to them.
const (
	answeringMAC = "02:00:00:00:00:66"
	silentMAC    = "02:00:00:00:00:67"
)

func startAnswerer(t testing.TB, far *testbed.Host) {
	t.Helper()
	a := &answerer{}
	var err error
	far.Do(func() { a.socket, err = packetSocket(far.Interface) })
	if err != nil {
		t.Fatalf("answer for a network of hosts: %v", err)
	}
	t.Cleanup(func() { a.socket.Close() })
	go a.run(t)
}

// packetSocket reads what is sent to answeringMAC.
func packetSocket(device string) (*os.File, error) {
	all := int(networkOrder(unix.ETH_P_ALL))
	// Bound, and thereby at work, after it has its filter.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), "packets")
	index, err := net.InterfaceByName(device)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 2}, // the last four octets of the destination
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x66, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: index.Index}),
	)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	return socket, nil
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

func (a *answerer) run(t testing.TB) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := a.socket.Read(buffer)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // the device went down
		}
		frame := append([]byte(nil), buffer[:n]...)
		reply, after, err := answer(frame)
		if err != nil {
			t.Errorf("answer %x: %v", frame, err)
		}
		if reply == nil {
			continue
		}
		if after == 0 {
			_, _ = a.socket.Write(reply)
			continue
		}
		time.AfterFunc(after, func() { _, _ = a.socket.Write(reply) })
	}
}

// answer is what the host that a frame is for answers, if anything, and when.
func answer(frame []byte) (reply []byte, after time.Duration, err error) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	network := p.NetworkLayer()
	if network == nil {
		return nil, 0, nil
	}
	to, ok := netip.AddrFromSlice(network.NetworkFlow().Dst().Raw())
	if !ok || !answering.v4.Contains(to) && !answering.v6.Contains(to) {
		return nil, 0, nil
	}
	above := answerTransport(p)
	if above == nil {
		return nil, 0, nil
	}
	below, err := turned(p, above[0].LayerType())
	if err != nil {
		return nil, 0, err
	}
	for _, l := range above {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(below[1].(gopacket.NetworkLayer)); err != nil {
				return nil, 0, err
			}
		}
	}
	buffer := gopacket.NewSerializeBuffer()
	err = gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(below, above...)...)
	return buffer.Bytes(), delay(number(to)), err
}

// turned are the headers below a reply.
func turned(p gopacket.Packet, above gopacket.LayerType) ([]gopacket.SerializableLayer, error) {
	link := p.LinkLayer().(*layers.Ethernet)
	ethernet := &layers.Ethernet{SrcMAC: link.DstMAC, DstMAC: link.SrcMAC, EthernetType: link.EthernetType}
	protocol, ok := map[gopacket.LayerType]layers.IPProtocol{
		layers.LayerTypeTCP: layers.IPProtocolTCP, layers.LayerTypeUDP: layers.IPProtocolUDP,
		layers.LayerTypeICMPv4: layers.IPProtocolICMPv4, layers.LayerTypeICMPv6: layers.IPProtocolICMPv6,
	}[above]
	if !ok {
		return nil, fmt.Errorf("no protocol for %s", above)
	}
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		return []gopacket.SerializableLayer{ethernet, &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: ip.DstIP, DstIP: ip.SrcIP}}, nil
	case *layers.IPv6:
		return []gopacket.SerializableLayer{ethernet, &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: ip.DstIP, DstIP: ip.SrcIP}}, nil
	}
	return nil, errors.New("neither IPv4 nor IPv6")
}

// answerTransport is what stands above the addresses of a reply; nil: there is none.
func answerTransport(p gopacket.Packet) []gopacket.SerializableLayer {
	if l, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
		return answerTCP(l)
	}
	if l, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP); ok {
		return answerUDP(p, l)
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && l.TypeCode.Type() == layers.ICMPv4TypeEchoRequest {
		return []gopacket.SerializableLayer{
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoReply, 0), Id: l.Id, Seq: l.Seq},
			gopacket.Payload(l.Payload),
		}
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && l.TypeCode.Type() == layers.ICMPv6TypeEchoRequest {
		return []gopacket.SerializableLayer{
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoReply, 0)},
			gopacket.Payload(l.Payload), // with identifier and sequence number
		}
	}
	return nil
}

func answerTCP(l *layers.TCP) []gopacket.SerializableLayer {
	if !l.SYN || l.ACK {
		return nil
	}
	reply := &layers.TCP{SrcPort: l.DstPort, DstPort: l.SrcPort, ACK: true, Ack: l.Seq + 1}
	if l.DstPort == portClosed {
		reply.RST = true
	} else {
		reply.SYN, reply.Seq, reply.Window = true, l.Seq^0x5a5a5a5a, 0xffff
	}
	return []gopacket.SerializableLayer{reply}
}

func answerUDP(p gopacket.Packet, l *layers.UDP) []gopacket.SerializableLayer {
	reply := &layers.UDP{SrcPort: l.DstPort, DstPort: l.SrcPort}
	switch l.DstPort {
	case portDNS:
		return []gopacket.SerializableLayer{reply, gopacket.Payload(respond(l.Payload))}
	case portEcho:
		return []gopacket.SerializableLayer{reply, gopacket.Payload(l.Payload)}
	}
	network := p.NetworkLayer()
	quoted := append(append([]byte(nil), network.LayerContents()...), network.LayerPayload()...)
	if _, is6 := network.(*layers.IPv6); is6 {
		return []gopacket.SerializableLayer{
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodePortUnreachable)},
			gopacket.Payload(append(make([]byte, 4), quoted...)),
		}
	}
	return []gopacket.SerializableLayer{
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort)},
		gopacket.Payload(quoted),
	}
}
