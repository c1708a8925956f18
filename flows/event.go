// Package flows says what flatd reports: the event of one exchange, decoded
// from the kernel's record, and its forms as JSON, journal fields and text.
//
// The package opens nothing and logs nothing; it turns bytes into events and
// events into bytes.
package flows

import (
	"bytes"
	"net/netip"
	"time"
)

// Side says whether this host asked or was asked. The values are those of
// enum flat_side in bpf/record.h.
type Side uint8

// The sides: the request left this host on the measured interface (client) or
// arrived there (server).
const (
	SideClient Side = 1
	SideServer Side = 2
)

// Result is how an exchange ended. The values are those of enum flat_result in
// bpf/record.h.
type Result uint8

// The results. A DNS exchange that was answered is named by its response code.
const (
	ResultEstablished Result = 1 // SYN/ACK
	ResultAnswered    Result = 2 // datagram, DNS answer, echo reply
	ResultRefused     Result = 3 // RST
	ResultUnreachable Result = 4 // ICMP error that quotes the request
	ResultTimeout     Result = 5 // no answer within the limit
)

// Event is one finished exchange, a status of flatd itself, or a summary. A
// zero field is unknown or does not apply, and is left out of every form.
type Event struct {
	Kind   Kind
	Side   Side
	Result Result

	// Time is the wall-clock time of the answer, or of a timeout the first
	// request plus the limit. It comes from the kernel's record, never from
	// the arrival in user space.
	Time time.Time
	// End is the same moment in nanoseconds of CLOCK_BOOTTIME.
	End uint64

	// Duration is from the first request packet to the answer: what the
	// initiator waited. A timeout has none.
	Duration time.Duration
	// RTT is from the request packet that was answered to the answer. It is
	// known only if HasRTT.
	RTT time.Duration
	// ClientRTT is, on the server side of TCP, from this host's SYN/ACK to the
	// ACK that completes the handshake: the network's part and the client's.
	ClientRTT time.Duration
	// Limit is how long a timeout waited.
	Limit time.Duration

	// Source sent the request, whatever side this host is on. Addresses are
	// unmapped: IPv4 is 4 bytes. ICMP has port 0.
	Source, Destination netip.AddrPort
	// NATSource and NATDestination are what the answer had in place of Source
	// or Destination, if that end was translated between the two packets.
	NATSource, NATDestination netip.AddrPort

	// Interface is where the request was seen.
	Interface Interface
	VLAN      uint16 // outermost VLAN id

	// Cgroup is the id of the cgroup (version 2) in which the local socket was
	// made; 0 if the kernel could not tell. The caller of Decode finds its
	// Owner, which stays nil if nobody knows that cgroup.
	Cgroup uint64
	UID    uint32 // of the local socket's owner, if Cgroup is known
	Owner  *Owner
	// Process is who asked, of a TCP connection from this host.
	Process Process

	HasRTT bool
	QUIC   bool
	Facts

	// ICMPType and ICMPCode are those of the error, for ResultUnreachable
	// (RFC 792, RFC 4443).
	ICMPType, ICMPCode uint8

	// Sequence is the kernel's count of reported exchanges; a gap is a loss.
	// What has a Request, status events and summaries have none.
	Sequence uint64
	// Request identifies, in place of a sequence, a timeout that the programs of
	// an earlier version (layout 2) leave at an upgrade: a hash of the request's
	// key and time, equal in every daemon that sees it. Of a summary that was
	// read from JSON it is the id, of others 0.
	Request uint64

	// Status is set for KindStatus alone, Summary for KindSummary.
	Status  *Status
	Summary *Summary

	DNS DNS // last, since it is large and most events have none
}

// Interface is a network interface as it was when the event happened.
type Interface struct {
	Index int
	Name  string // "" if it was gone before its name was known
}

// Process is a process as the kernel had it when it asked. With PID 0 it is
// unknown.
type Process struct {
	PID  uint32   // thread group id, in the initial PID namespace
	comm [16]byte // ends with a zero; empty if the kernel could not tell
}

// AppendName appends the process's name: at most 15 bytes, whatever it chose.
func (p *Process) AppendName(dst []byte) []byte {
	name, _, _ := bytes.Cut(p.comm[:], []byte{0})
	return append(dst, name...)
}

// DNS is what a DNS exchange asked and was told.
type DNS struct {
	ID    uint16
	RCode uint16 // extended (RFC 6891, 6.1.3)
	// Truncated says that the answer was cut short (TC; RFC 1035, 4.1.1): the
	// resolver asks again over TCP.
	Truncated bool
	// Type of the first question (RFC 1035, 3.2.2), if Question is not empty.
	Type uint16
	// HashNames has the forms show a hash in place of the name.
	HashNames bool
	// length bytes of name hold the first question's name in wire form,
	// uncompressed. Inline, so that an event can be reused without garbage.
	length uint8
	name   [255]byte
	// hash is that of the name, if it came from JSON that has no more of it.
	hash uint64
}

// Status is an event in flatd's own life.
type Status struct {
	Action  Action
	Message string // a plain sentence
	Lost    uint64 // ActionLoss: how many events
}

// Action is what a status event is about.
type Action string

// The actions of dataset flatd.status.
const (
	ActionStart  Action = "start"
	ActionStop   Action = "stop"
	ActionAttach Action = "attach"
	ActionDetach Action = "detach"
	ActionLoss   Action = "loss"
	ActionConfig Action = "config"
	// ActionPreceded: programs of others see an interface's packets first.
	ActionPreceded Action = "preceded"
)

// Exchange reports whether the event is an exchange, and not flatd's own.
func (e *Event) Exchange() bool { return e.Kind != KindStatus && e.Kind != KindSummary }

// Failed reports whether the exchange did not end as the initiator hoped.
func (e *Event) Failed() bool {
	switch e.Result {
	case ResultEstablished:
		return false
	case ResultAnswered:
		return e.Kind == KindDNS && e.DNS.RCode != 0
	}
	return e.Exchange()
}
