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

// Decode fills e from a record of the kernel's ring: a struct flat_record or
// flat_dns_record of bpf/record.h. Nothing of what was in e remains, also
// after an error. It leaves to the caller what the record does not have: Time,
// Interface.Name, Owner, Slow and Replayed. The record is not kept.
//
// An exchange that seems to have begun before the host did is one whose clocks
// disagree: it has none of Duration, RTT and Limit.
func Decode(record []byte, e *Event) error {
	*e = Event{}
	var r Record
	if !r.read(record) {
		return fmt.Errorf("%w: %d bytes of %d", ErrShort, len(record), RecordSize)
	}
	*e = Event{
		Kind:      Kind(r.Kind),
		Side:      Side(r.Side),
		Result:    Result(r.Result),
		Sequence:  r.Sequence,
		Request:   r.RequestID,
		End:       r.EndNS,
		Interface: Interface{Index: int(r.Ifindex)},
		VLAN:      r.VLAN,
		Cgroup:    r.Cgroup,
		UID:       r.UID,
		Process:   Process{PID: r.PID, comm: r.Comm},
		QUIC:      r.has(RecordQUIC),
		Facts: Facts{
			Retransmits: r.Repeats,
			Ambiguous:   r.has(RecordAmbiguous),
			Late:        r.has(RecordLate),
			TTL:         r.TTL,
		},
	}
	if err := e.checkExchange(); err != nil {
		return err
	}
	e.setEnds(&r)
	e.setDurations(&r)
	if e.Result == ResultUnreachable {
		e.ICMPType, e.ICMPCode = r.ICMPType, r.ICMPCode
	}
	if e.Kind == KindDNS {
		return e.decodeDNS(&r, record[RecordSize:])
	}
	return nil
}

// checkExchange refuses what is not in the enums of bpf/record.h.
func (e *Event) checkExchange() error {
	switch {
	case infoOf[e.Kind].kind == 0 || !e.Exchange():
		return fmt.Errorf("%w: %d", ErrKind, e.Kind)
	case e.Side != SideClient && e.Side != SideServer:
		return fmt.Errorf("%w: %d", ErrSide, e.Side)
	case e.Result < ResultEstablished || e.Result > ResultTimeout:
		return fmt.Errorf("%w: %d", ErrResult, e.Result)
	}
	return nil
}

// setEnds takes the addresses and ports, and what one end was translated to.
func (e *Event) setEnds(r *Record) {
	e.Source = e.endpoint(r.Source, r.SourcePort)
	e.Destination = e.endpoint(r.Destination, r.DestinationPort)
	if r.has(RecordNATSource) {
		e.NATSource = e.endpoint(r.NAT, r.NATPort)
	}
	if r.has(RecordNATDestination) {
		e.NATDestination = e.endpoint(r.NAT, r.NATPort)
	}
}

// endpoint is an end of the exchange. An echo has no ports.
func (e *Event) endpoint(addr [16]byte, port [2]byte) netip.AddrPort {
	a := netip.AddrFrom16(addr).Unmap()
	if e.Kind == KindICMP {
		return netip.AddrPortFrom(a, 0)
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port[:]))
}

// setDurations takes what the kernel measured as far as it can be: not longer
// than the host is up, the round trip not longer than all.
func (e *Event) setDurations(r *Record) {
	if r.ClientRTTNS <= math.MaxInt64 {
		e.ClientRTT = time.Duration(r.ClientRTTNS)
	}
	if r.DurationNS > r.EndNS || r.DurationNS > math.MaxInt64 {
		return
	}
	if e.Result == ResultTimeout {
		e.Limit = time.Duration(r.DurationNS)
		return
	}
	e.Duration = time.Duration(r.DurationNS)
	// On the server side both ends of it are this host: no network, no round trip.
	if r.has(RecordRTT) && r.RTTNS <= r.DurationNS && e.Side == SideClient {
		e.RTT, e.HasRTT = time.Duration(r.RTTNS), true
	}
}

// decodeDNS takes what only DNS has. behind is what follows the record.
func (e *Event) decodeDNS(r *Record, behind []byte) error {
	e.DNS.ID = uint16(r.ID)
	e.DNS.RCode = r.RCode & rcodeMask
	e.DNS.Truncated = r.has(RecordTruncated)
	length := int(r.QuestionLength)
	if length > len(behind) {
		return fmt.Errorf("%w: question has %d bytes of %d", ErrShort, len(behind), length)
	}
	e.DNS.SetQuestion(behind[:length])
	return nil
}
