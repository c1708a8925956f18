package flows

import "unsafe"

// Record is struct flat_record of bpf/record.h: the same members in the same
// order, so that a record of the kernel's ring is read by copying its bytes.
// The names are those of C without the underscores, but for their case; a test
// in bpf compares names, offsets and sizes.
//
// Addresses and ports are as on the wire, everything else is in host order.
// What is unknown is 0.
type Record struct {
	Sequence    uint64 // position in the order of reporting
	EndNS       uint64 // CLOCK_BOOTTIME of the answer; of a timeout, when the limit was over
	DurationNS  uint64 // first request packet to answer; of a timeout, the limit
	RTTNS       uint64 // if RecordRTT
	ClientRTTNS uint64 // TCP, server side: SYN/ACK to the ACK for it
	Cgroup      uint64 // of the local socket (version 2)

	Source      [16]byte // IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2)
	Destination [16]byte
	NAT         [16]byte // of the end that RecordNATSource or RecordNATDestination names
	NATPort     [2]byte

	SourcePort      [2]byte
	DestinationPort [2]byte
	VLAN            uint16
	Ifindex         uint32
	ID              uint32 // DNS: transaction id; ICMP: identifier << 16 | sequence
	Repeats         uint32
	UID             uint32 // if Cgroup is known
	PID             uint32
	Flags           uint32   // RecordRTT and the others
	Comm            [16]byte // TASK_COMM_LEN

	Kind     uint8
	Side     uint8
	Result   uint8
	TTL      uint8
	RCode    uint16 // extended (RFC 6891, 6.1.3)
	ICMPType uint8
	ICMPCode uint8

	QuestionLength uint16 // bytes of the question behind a DNS record that are in use
	SpareHalf      [3]uint16
	RequestID      uint64 // of a timeout that layout 2 found; the programs leave it 0
	Spare          [2]uint64
}

// RecordSize is the size of a Record. In a struct flat_dns_record the question
// follows.
const RecordSize = int(unsafe.Sizeof(Record{}))

// The bits of Record.Flags: enum flat_record_flags of bpf/record.h.
const (
	RecordRTT            = 1 << 0
	RecordAmbiguous      = 1 << 1
	RecordQUIC           = 1 << 2
	RecordTruncated      = 1 << 3
	RecordLate           = 1 << 4
	RecordNATSource      = 1 << 5
	RecordNATDestination = 1 << 6
)

// read copies the start of the kernel's bytes, which may lie at any address. It
// reports whether there were enough.
func (r *Record) read(b []byte) bool {
	return copy((*[RecordSize]byte)(unsafe.Pointer(r))[:], b) == RecordSize
}

// has reports whether all bits of a flag are set.
func (r *Record) has(flag uint32) bool { return r.Flags&flag == flag }
