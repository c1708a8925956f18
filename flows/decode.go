package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// What can be wrong with bytes from the kernel. Each means that programs and
// daemon are of different versions.
var (
	ErrShort  = errors.New("record cut short")
	ErrKind   = errors.New("unknown kind of exchange")
	ErrSide   = errors.New("unknown side")
	ErrResult = errors.New("unknown result")
)

// Sizes of struct flat_record (bpf/record.h), of flat_key and flat_pending
// (bpf/maps.h). A DNS record goes on with the question section.
const (
	RecordSize  = 136
	KeySize     = 48
	PendingSize = 88
)

// enum flat_record_flags of bpf/record.h.
const (
	recordRTT       = 1 << 0
	recordAmbiguous = 1 << 1
	recordQUIC      = 1 << 2
	recordTruncated = 1 << 3
)

// Decode fills e from a record of the kernel's ring: a struct flat_record or
// flat_dns_record of bpf/record.h. Nothing of what was in e remains, also
// after an error. It leaves to the caller what the record cannot tell: Time,
// Interface.Name, Owner, Slow and Replayed. The record is not kept.
//
// An exchange that seems to have begun before the host did is one whose clocks
// disagree: it has neither Duration nor RTT.
func Decode(record []byte, e *Event) error {
	*e = Event{}
	if len(record) < RecordSize {
		return fmt.Errorf("%w: %d bytes of %d", ErrShort, len(record), RecordSize)
	}
	host := binary.NativeEndian
	*e = Event{
		Kind:        Kind(record[102]),
		Side:        Side(record[103]),
		Result:      Result(record[104]),
		Sequence:    host.Uint64(record[0:]),
		End:         host.Uint64(record[8:]),
		Retransmits: host.Uint32(record[92:]),
		Interface:   Interface{Index: int(host.Uint32(record[84:]))},
		VLAN:        host.Uint16(record[100:]),
		Cgroup:      host.Uint64(record[40:]),
		UID:         host.Uint32(record[96:]),
		TTL:         record[106],
		Ambiguous:   record[105]&recordAmbiguous != 0,
		QUIC:        record[105]&recordQUIC != 0,
	}
	if err := e.checkExchange(ResultUnreachable); err != nil {
		return err
	}
	e.Source = e.endpoint(record[48:64], record[80:82])
	e.Destination = e.endpoint(record[64:80], record[82:84])
	e.setDurations(host.Uint64(record[16:]), host.Uint64(record[24:]), record[105]&recordRTT != 0)
	e.setClientRTT(host.Uint64(record[32:]))
	e.Process = processOf(host.Uint32(record[128:]), record[112:128])
	if e.Result == ResultUnreachable {
		e.ICMPType, e.ICMPCode = record[108], record[109]
	}
	if e.Kind == KindDNS {
		return e.decodeDNS(record)
	}
	return nil
}

// checkExchange refuses what is not in the enums of bpf/record.h, or a result
// beyond the last possible.
func (e *Event) checkExchange(last Result) error {
	switch {
	case e.Kind < KindTCP || e.Kind > KindICMP:
		return fmt.Errorf("%w: %d", ErrKind, e.Kind)
	case e.Side != SideClient && e.Side != SideServer:
		return fmt.Errorf("%w: %d", ErrSide, e.Side)
	case e.Result < ResultEstablished || e.Result > last:
		return fmt.Errorf("%w: %d", ErrResult, e.Result)
	}
	return nil
}

// endpoint reads 16 bytes of address and 2 of port. An echo has no ports.
func (e *Event) endpoint(addr, port []byte) netip.AddrPort {
	a := netip.AddrFrom16([16]byte(addr)).Unmap()
	if e.Kind == KindICMP {
		return netip.AddrPortFrom(a, 0)
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}

// setDurations takes what the kernel measured, in nanoseconds, as far as it
// can be: not longer than the host is up, the round trip not longer than all.
func (e *Event) setDurations(duration, rtt uint64, hasRTT bool) {
	if duration > e.End || duration > math.MaxInt64 {
		return
	}
	e.Duration = time.Duration(duration)
	// On the server side both ends of it are this host: no network, no round trip.
	if hasRTT && rtt <= duration && e.Side == SideClient {
		e.RTT, e.HasRTT = time.Duration(rtt), true
	}
}

// setClientRTT takes the time, in nanoseconds, from the SYN/ACK to its ACK.
func (e *Event) setClientRTT(rtt uint64) {
	if rtt <= math.MaxInt64 {
		e.ClientRTT = time.Duration(rtt)
	}
}

func (e *Event) decodeDNS(record []byte) error {
	host := binary.NativeEndian
	e.DNS.ID = uint16(host.Uint32(record[88:]))
	e.DNS.RCode = record[107] & rcodeMask
	e.DNS.Truncated = record[105]&recordTruncated != 0
	length, have := int(host.Uint16(record[110:])), len(record)-RecordSize
	if length > have {
		return fmt.Errorf("%w: question has %d bytes of %d", ErrShort, have, length)
	}
	e.DNS.SetQuestion(record[RecordSize : RecordSize+length])
	return nil
}

// DecodePending fills e with the timeout of a request that still waits in a
// map of bpf/maps.h: a struct flat_key and its flat_pending. The side is the
// map's: flat_ours is the client's, flat_theirs the server's. It judges
// neither the request's age nor its state, and leaves out what Decode does.
func DecodePending(key, value []byte, limit time.Duration, side Side, e *Event) error {
	*e = Event{}
	if len(key) < KeySize || len(value) < PendingSize {
		return fmt.Errorf("%w: key %d bytes of %d, value %d of %d", ErrShort, len(key), KeySize, len(value), PendingSize)
	}
	host := binary.NativeEndian
	*e = Event{
		Kind:        Kind(min(host.Uint32(key[44:]), math.MaxUint8)),
		Side:        side,
		Result:      ResultTimeout,
		End:         host.Uint64(value[0:]) + uint64(limit),
		Limit:       limit,
		Retransmits: host.Uint32(value[52:]),
		Interface:   Interface{Index: int(host.Uint32(value[56:]))},
		VLAN:        host.Uint16(value[60:]),
		Cgroup:      host.Uint64(value[24:]),
		UID:         host.Uint32(value[32:]),
		QUIC:        value[43]&recordQUIC != 0,
		Process:     processOf(host.Uint32(value[68:]), value[72:88]),
		Request:     fnv1a(fnv1a(fnvBasis, key[:KeySize]), value[:8]),
	}
	if err := e.checkExchange(ResultTimeout); err != nil {
		return err
	}
	local, remote := e.endpoint(key[0:16], key[32:34]), e.endpoint(key[16:32], key[34:36])
	e.Source, e.Destination = local, remote
	if side == SideServer {
		e.Source, e.Destination = remote, local
		e.TTL = value[63] // the request's: on the client side that is our own
	}
	if e.Kind == KindDNS {
		e.DNS.ID = uint16(host.Uint32(key[36:]))
	}
	return nil
}
