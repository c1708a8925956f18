package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// flow builds the frames that one end sends to the other.
type flow struct {
	from, to netip.AddrPort
	vlans    []uint16
}

var (
	flow4 = flow{from: netip.MustParseAddrPort("192.0.2.10:43210"), to: netip.MustParseAddrPort("198.51.100.20:443")}
	flow6 = flow{from: netip.MustParseAddrPort("[2001:db8::10]:43210"), to: netip.MustParseAddrPort("[2001:db8:1::20]:443")}
)

func (f flow) back() flow { return flow{from: f.to, to: f.from, vlans: f.vlans} }

func (f flow) port(port uint16) flow {
	f.to = netip.AddrPortFrom(f.to.Addr(), port)
	return f
}

// frame serializes the layers behind Ethernet, VLAN tags and the IP header.
func (f flow) frame(t testing.TB, protocol layers.IPProtocol, upper ...gopacket.SerializableLayer) []byte {
	t.Helper()
	ether := layers.EthernetTypeIPv4
	if f.from.Addr().Is6() {
		ether = layers.EthernetTypeIPv6
	}
	// Each header names the next one: Ethernet, the tags, IP.
	types := []layers.EthernetType{}
	for range f.vlans {
		types = append(types, layers.EthernetTypeDot1Q)
	}
	types = append(types, ether)
	all := []gopacket.SerializableLayer{&layers.Ethernet{
		SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: types[0],
	}}
	for i, id := range f.vlans {
		all = append(all, &layers.Dot1Q{VLANIdentifier: id, Type: types[i+1]})
	}
	if ether == layers.EthernetTypeIPv4 {
		all = append(all, &layers.IPv4{Version: 4, TTL: 57, Protocol: protocol, SrcIP: f.from.Addr().AsSlice(), DstIP: f.to.Addr().AsSlice()})
	} else {
		all = append(all, &layers.IPv6{Version: 6, HopLimit: 57, NextHeader: protocol, SrcIP: f.from.Addr().AsSlice(), DstIP: f.to.Addr().AsSlice()})
	}
	return serialize(t, append(all, upper...)...)
}

func serialize(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true}
	if err := gopacket.SerializeLayers(b, options, all...); err != nil {
		t.Fatalf("build a packet: %v", err)
	}
	return b.Bytes()
}

func (f flow) tcp(t testing.TB, set func(*layers.TCP), payload ...byte) []byte {
	tcp := &layers.TCP{SrcPort: layers.TCPPort(f.from.Port()), DstPort: layers.TCPPort(f.to.Port()), Window: 1024}
	set(tcp)
	return f.frame(t, layers.IPProtocolTCP, tcp, gopacket.Payload(payload))
}

func (f flow) syn(t testing.TB, isn uint32) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.SYN = true; h.Seq = isn })
}

func (f flow) synAck(t testing.TB, ack uint32) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.SYN = true; h.ACK = true; h.Seq = 7; h.Ack = ack })
}

// ack is the segment that completes a handshake: it takes what synAck sent.
func (f flow) ack(t testing.TB, sequence uint32) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.ACK = true; h.Seq = sequence; h.Ack = 8 })
}

// stamped is a SYN, or with an ack a SYN/ACK, with TCP timestamps behind other
// options.
func (f flow) stamped(t testing.TB, sequence, ack, value, echo uint32) []byte {
	return f.tcp(t, func(h *layers.TCP) {
		h.SYN, h.ACK, h.Seq, h.Ack = true, ack != 0, sequence, ack
		stamps := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, value), echo)
		h.Options = []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}},
			{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
			{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: stamps},
		}
	})
}

// quote is an ICMP error about a frame, from a router to the frame's sender.
func (f flow) quote(t testing.TB, kind, code uint8, frame []byte) []byte {
	t.Helper()
	quoted := gopacket.Payload(frame[14:])
	if f.from.Addr().Is4() {
		return f.frame(t, layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code)}, quoted)
	}
	return f.frame(t, layers.IPProtocolICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)},
		gopacket.Payload(make([]byte, 4)), quoted)
}

func (f flow) rst(t testing.TB, ack uint32) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.RST = true; h.ACK = true; h.Ack = ack })
}

func (f flow) data(t testing.TB) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.ACK = true; h.PSH = true }, make([]byte, 100)...)
}

func (f flow) udp(t testing.TB, payload ...byte) []byte {
	udp := &layers.UDP{SrcPort: layers.UDPPort(f.from.Port()), DstPort: layers.UDPPort(f.to.Port())}
	return f.frame(t, layers.IPProtocolUDP, udp, gopacket.Payload(payload))
}

func (f flow) dns(t testing.TB, id uint16, set func(*layers.DNS)) []byte {
	dns := &layers.DNS{ID: id, QDCount: 1, Questions: []layers.DNSQuestion{
		{Name: []byte("example.com"), Type: layers.DNSTypeAAAA, Class: layers.DNSClassIN},
	}}
	if set != nil {
		set(dns)
	}
	return f.udp(t, serialize(t, dns)...)
}

func (f flow) echo(t testing.TB, id, sequence uint16, reply bool) []byte {
	if f.from.Addr().Is4() {
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if reply {
			kind = layers.ICMPv4TypeEchoReply
		}
		return f.frame(t, layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: id, Seq: sequence})
	}
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if reply {
		kind = layers.ICMPv6TypeEchoReply
	}
	return f.frame(t, layers.IPProtocolICMPv6,
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)},
		&layers.ICMPv6Echo{Identifier: id, SeqNumber: sequence})
}
