package flows

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
)

// IP protocol numbers.
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
)

// protocolNumber returns the IP protocol of an exchange, 0 for a status event.
func (e *Event) protocolNumber() uint8 {
	if e.Kind == KindICMP && !e.Source.Addr().Is4() {
		return protocolICMPv6
	}
	return infoOf[e.Kind].protocol
}

// FlowHash returns flatd.flow_hash: the sum of the FNV-1a hashes of each end
// and of the protocol. A sum, so that both directions have the same.
func (e *Event) FlowHash() uint64 {
	protocol := [2]byte{1: e.protocolNumber()}
	return hashEnd(e.Source) + hashEnd(e.Destination) + fnv1a(fnvBasis, protocol[:])
}

func hashEnd(end netip.AddrPort) uint64 {
	port := [2]byte{byte(end.Port() >> 8), byte(end.Port())}
	if end.Addr().Is4() {
		addr := end.Addr().As4()
		return fnv1a(fnv1a(fnvMapped, addr[:]), port[:])
	}
	addr := end.Addr().As16()
	return fnv1a(fnv1a(fnvBasis, addr[:]), port[:])
}

// fnvMapped is the hash of what precedes an IPv4 address that is mapped to 16 bytes.
var fnvMapped = fnv1a(fnvBasis, []byte{10: 0xff, 11: 0xff})

const (
	fnvBasis = 0xcbf29ce484222325
	fnvPrime = 0x100000001b3
)

// fnv1a continues a 64-bit FNV-1a hash. hash/fnv has the same, behind an
// interface that costs an allocation.
func fnv1a(hash uint64, data []byte) uint64 {
	for _, b := range data {
		hash = (hash ^ uint64(b)) * fnvPrime
	}
	return hash
}

// AppendCommunityID appends network.community_id: Community ID version 1 with
// seed 0, as Zeek, Suricata and Wireshark compute it
// (github.com/corelight/community-id-spec).
func (e *Event) AppendCommunityID(dst []byte) []byte {
	source, destination := e.communityEnds()
	return appendCommunityID(dst, source, destination, e.protocolNumber())
}

// communityEnds returns the ends of the flow, which for ICMP have the types of
// request and reply for ports.
func (e *Event) communityEnds() (source, destination netip.AddrPort) {
	var request, reply uint16
	switch e.protocolNumber() {
	case protocolICMP:
		request, reply = 8, 0
	case protocolICMPv6:
		request, reply = 128, 129
	default:
		return e.Source, e.Destination
	}
	return netip.AddrPortFrom(e.Source.Addr(), request), netip.AddrPortFrom(e.Destination.Addr(), reply)
}

func appendCommunityID(dst []byte, a, b netip.AddrPort, protocol uint8) []byte {
	const seed = 0
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	var space [2 + 16 + 16 + 2 + 2 + 2]byte
	tuple := binary.BigEndian.AppendUint16(space[:0], seed)
	tuple = appendAddress(tuple, a.Addr())
	tuple = appendAddress(tuple, b.Addr())
	tuple = append(tuple, protocol, 0)
	tuple = binary.BigEndian.AppendUint16(tuple, a.Port())
	tuple = binary.BigEndian.AppendUint16(tuple, b.Port())
	sum := sha1.Sum(tuple)
	return base64.StdEncoding.AppendEncode(append(dst, "1:"...), sum[:])
}

// appendAddress appends the 4 or 16 bytes of an address.
func appendAddress(dst []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		b := addr.As4()
		return append(dst, b[:]...)
	}
	b := addr.As16()
	return append(dst, b[:]...)
}
