package bpf

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
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

// sourcePort is the flow of another socket of the same host.
func (f flow) sourcePort(port uint16) flow {
	f.from = netip.AddrPortFrom(f.from.Addr(), port)
	return f
}

// tagged is the flow in a VLAN, or in one within another.
func (f flow) tagged(vlans ...uint16) flow {
	f.vlans = vlans
	return f
}

// group is a flow to a multicast group.
func (f flow) group(port uint16) flow {
	group := netip.MustParseAddr("224.0.0.251")
	if f.from.Addr().Is6() {
		group = netip.MustParseAddr("ff02::fb")
	}
	f.to = netip.AddrPortFrom(group, port)
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

// syn may carry data (RFC 7413).
func (f flow) syn(t testing.TB, isn uint32, data ...byte) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.SYN = true; h.Seq = isn }, data...)
}

func (f flow) synAck(t testing.TB, ack uint32) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.SYN = true; h.ACK = true; h.Seq = 7; h.Ack = ack })
}

// ack is the segment that completes a handshake: it takes what synAck sent.
func (f flow) ack(t testing.TB, sequence uint32, data ...byte) []byte {
	return f.tcp(t, func(h *layers.TCP) { h.ACK = true; h.Seq = sequence; h.Ack = 8 }, data...)
}

// stamped is a SYN, or with an ack a SYN/ACK, with TCP timestamps behind other
// options.
func (f flow) stamped(t testing.TB, sequence, ack, value, echo uint32) []byte {
	return f.tcp(t, func(h *layers.TCP) {
		h.SYN, h.ACK, h.Seq, h.Ack = true, ack != 0, sequence, ack
		stamps := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, value), echo)
		h.Options = []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}},
			{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: stamps},
			{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
			{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
		}
	})
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

// answers is a DNS answer with a response code.
func (f flow) answers(t testing.TB, id uint16, rcode uint8) []byte {
	return f.dns(t, id, func(h *layers.DNS) { h.QR, h.ResponseCode = true, layers.DNSResponseCode(rcode) })
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

// icmp is a message of the flow's family with eight octets of header.
func (f flow) icmp(t testing.TB, kind, code uint8, body ...byte) []byte {
	t.Helper()
	if f.from.Addr().Is4() {
		return f.frame(t, layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code)}, gopacket.Payload(body))
	}
	return f.frame(t, layers.IPProtocolICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)},
		gopacket.Payload(make([]byte, 4)), gopacket.Payload(body))
}

// quote is an ICMP error about a frame, from a router to the frame's sender.
func (f flow) quote(t testing.TB, kind, code uint8, frame []byte) []byte {
	t.Helper()
	return f.icmp(t, kind, code, frame[networkOf(frame):]...)
}

// unreachable is what a port that nobody listens on makes of a frame.
func (f flow) unreachable(t testing.TB, frame []byte) []byte {
	kind, code := closedPort(f)
	return f.quote(t, kind, code, frame)
}

// raw is a packet of any IP protocol.
func (f flow) raw(t testing.TB, protocol layers.IPProtocol, payload ...byte) []byte {
	return f.frame(t, protocol, gopacket.Payload(payload))
}

// The functions below make other shapes of a frame.

// cut is a frame that ends after so many octets behind a plain IP header.
func cut(frame []byte, octets int) []byte { return frame[:transportOf(frame)+octets] }

// stump ends after so many octets of the transport header. The IP header is a
// long one: the kernel makes no test run of less than 54 octets.
func stump(frame []byte, octets int) []byte {
	if frame[networkOf(frame)]>>4 == 4 {
		return withOptions(cut(frame, octets), 10)
	}
	return withExtensions(cut(frame, octets), hopByHop, destinationOptions)
}

// patched is a frame with other octets at an offset from its IP header.
func patched(frame []byte, offset int, octets ...byte) []byte {
	frame = bytes.Clone(frame)
	copy(frame[networkOf(frame)+offset:], octets)
	return frame
}

// networkOf is where the IP header begins: behind the tags.
func networkOf(frame []byte) int {
	at := etherHeader
	for isTag(binary.BigEndian.Uint16(frame[at-2:])) {
		at += 4
	}
	return at
}

func isTag(etherType uint16) bool {
	return etherType == uint16(layers.EthernetTypeDot1Q) || etherType == uint16(layers.EthernetTypeQinQ)
}

// transportOf is where the header behind a plain IP header begins.
func transportOf(frame []byte) int {
	at := networkOf(frame)
	if frame[at]>>4 == 6 {
		return at + 40
	}
	return at + 20
}

// to gives a frame another Ethernet destination.
func to(mac string, frame []byte) []byte {
	frame = bytes.Clone(frame)
	address, _ := net.ParseMAC(mac)
	copy(frame, address)
	return frame
}

// withOptions gives an IPv4 packet options of so many words: no-operations.
func withOptions(frame []byte, words int) []byte {
	at := networkOf(frame)
	frame = slices.Insert(bytes.Clone(frame), at+20, bytes.Repeat([]byte{1}, 4*words)...)
	frame[at] += byte(words)
	grow(frame[at+2:], 4*words)
	return frame
}

func grow(length []byte, by int) {
	binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)+uint16(by))
}

// The extension headers of IPv6 (RFC 8200, 4; RFC 4302).
const (
	hopByHop           = 0
	routing            = 43
	fragmentation      = 44
	authentication     = 51
	destinationOptions = 60
)

// withExtensions puts extension headers behind an IPv6 header.
func withExtensions(frame []byte, kinds ...byte) []byte {
	at := networkOf(frame)
	frame = bytes.Clone(frame)
	for _, kind := range slices.Backward(kinds) {
		header := []byte{frame[at+6], 0, 1, 4, 0, 0, 0, 0} // PadN of 4
		switch kind {
		case authentication:
			header = append([]byte{frame[at+6], 4}, make([]byte, 22)...) // (4 + 2) * 4 octets
		case fragmentation:
			header = []byte{frame[at+6], 0, 0, 0, 0, 0, 0, 1} // the first and last at once (RFC 6946)
		}
		frame = slices.Insert(frame, at+40, header...)
		frame[at+6] = kind
		grow(frame[at+4:], len(header))
	}
	return frame
}

// fragment makes a frame one of a larger packet: at this offset, in units of 8
// octets, and not the last.
func fragment(frame []byte, offset uint16) []byte {
	at := networkOf(frame)
	if frame[at]>>4 == 4 {
		frame = bytes.Clone(frame)
		binary.BigEndian.PutUint16(frame[at+6:], 0x2000|offset)
		return frame
	}
	frame = withExtensions(frame, fragmentation)
	binary.BigEndian.PutUint16(frame[at+42:], offset<<3|1)
	return frame
}
