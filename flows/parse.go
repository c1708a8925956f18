package flows

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What can be wrong with the JSON of an event.
var (
	ErrNotEvent = errors.New("not an event of flatd")
	ErrSchema   = errors.New("a newer schema than this flatd knows")
)

// ElsewhereCgroup is the Cgroup of an event that was read from JSON and has an
// owner: the id meant something on its own host alone.
const ElsewhereCgroup = ^uint64(0)

// ParseJSON fills e from what AppendJSON made of an event, on whatever host, and
// returns that host. Nothing of what was in e remains, also after an error.
// AppendJSON makes the same of it again, with few exceptions: End, of
// exchanges, is not in the JSON; fields that this version does not know are
// left out, and so is what is not as AppendJSON writes it but not needed.
func ParseJSON(text []byte, e *Event) (Host, error) {
	*e = Event{}
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return Host{}, fmt.Errorf("%w: %w", ErrNotEvent, err)
	}
	kind, known := kindsByDataset[d.Event.Dataset]
	switch {
	case !known:
		return Host{}, fmt.Errorf("%w: event.dataset is %q", ErrNotEvent, d.Event.Dataset)
	case d.Flatd.Schema != SchemaVersion:
		return Host{}, fmt.Errorf("%w: flatd.schema is %d, not %d", ErrSchema, d.Flatd.Schema, SchemaVersion)
	case strings.ContainsFunc(d.Event.Action, func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') }):
		return Host{}, fmt.Errorf("%w: event.action is %q", ErrNotEvent, d.Event.Action) // it is shown as it is
	}
	e.Kind = kind
	switch kind {
	case KindStatus:
		e.Status = &Status{Action: Action(d.Event.Action), Message: d.Message, Lost: d.Flatd.Lost}
	case KindSummary:
		d.summary(e)
	default:
		if err := d.exchange(e); err != nil {
			*e = Event{}
			return Host{}, err
		}
	}
	d.common(e)
	boot, id, _ := strings.Cut(d.Event.ID, "-")
	setID(e, id)
	return Host{Name: d.Observer.Hostname, BootID: boot}, nil
}

// document is an event as JSON has it, without what follows from the rest.
type document struct {
	Timestamp time.Time `json:"@timestamp"`
	Message   string    `json:"message"`
	Event     struct {
		ID       string `json:"id"`
		Dataset  string `json:"dataset"`
		Action   string `json:"action"`
		Duration uint64 `json:"duration"`
	} `json:"event"`
	Network struct {
		Protocol string `json:"protocol"`
	} `json:"network"`
	Source      end `json:"source"`
	Destination end `json:"destination"`
	Observer    struct {
		Hostname  string `json:"hostname"`
		Interface struct {
			Name string `json:"name"`
			ID   int    `json:"id"`
		} `json:"interface"`
		VLAN struct {
			ID uint16 `json:"id"`
		} `json:"vlan"`
	} `json:"observer"`
	Service struct {
		Name string `json:"name"`
	} `json:"service"`
	User struct {
		ID *uint32 `json:"id"`
	} `json:"user"`
	Process struct {
		PID  uint32 `json:"pid"`
		Name string `json:"name"`
	} `json:"process"`
	Container struct {
		ID string `json:"id"`
	} `json:"container"`
	DNS   dnsDocument   `json:"dns"`
	Flatd flatdDocument `json:"flatd"`
}

type end struct {
	address
	NAT address `json:"nat"`
}

type address struct {
	IP   netip.Addr `json:"ip"`
	Port uint16     `json:"port"`
}

// addrPort is not valid if there is no address. The zone of an address is
// removed: events have none, and it can be any text, also for a terminal.
func (a address) addrPort() netip.AddrPort {
	if !a.IP.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.IP.WithZone(""), a.Port)
}

type dnsDocument struct {
	ID       uint16 `json:"id"`
	Question struct {
		Name string `json:"name"`
		Type string `json:"type"`
	} `json:"question"`
	HeaderFlags  []string `json:"header_flags"`
	ResponseCode string   `json:"response_code"`
}

type flatdDocument struct {
	Schema int     `json:"schema"`
	Result string  `json:"result"`
	Side   string  `json:"side"`
	RTT    *uint64 `json:"rtt"`
	ICMP   struct {
		Type uint8 `json:"type"`
		Code uint8 `json:"code"`
	} `json:"icmp"`
	ClientRTT uint64          `json:"client_rtt"`
	Limit     uint64          `json:"limit"`
	Cgroup    string          `json:"cgroup"`
	Lost      uint64          `json:"lost"`
	Summary   summaryDocument `json:"summary"`
	Facts
}

type summaryDocument struct {
	Interval uint64 `json:"interval"`
	Kind     string `json:"kind"`
	Side     string `json:"side"`

	Count         uint64 `json:"count"`
	Failed        uint64 `json:"failed"`
	Refused       uint64 `json:"refused"`
	Unreachable   uint64 `json:"unreachable"`
	Timeouts      uint64 `json:"timeouts"`
	NXDomain      uint64 `json:"nxdomain"`
	ServFail      uint64 `json:"servfail"`
	OtherFailures uint64 `json:"other_failures"`
	Slow          uint64 `json:"slow"`
	Retransmits   uint64 `json:"retransmits"`

	P50 uint64 `json:"p50"`
	P90 uint64 `json:"p90"`
	P99 uint64 `json:"p99"`
	Max uint64 `json:"max"`

	Withheld   uint64 `json:"withheld"`
	Dropped    uint64 `json:"dropped"`
	ResultOut  uint64 `json:"result_out"`
	TooFast    uint64 `json:"too_fast"`
	SampledOut uint64 `json:"sampled_out"`
	RingFull   uint64 `json:"ring_full"`
	HalfOpen   uint64 `json:"half_open"`
	Others     uint64 `json:"others"`
}

// duration is one of nanoseconds, the longest there is if that is not enough.
func duration(ns uint64) time.Duration { return time.Duration(min(ns, math.MaxInt64)) }

// sideOf returns 0 for what is no side.
func sideOf(name string) Side {
	switch name {
	case SideClient.String():
		return SideClient
	case SideServer.String():
		return SideServer
	}
	return 0
}

// setID takes the part of event.id behind the boot id.
func setID(e *Event, id string) {
	switch {
	case id == "":
	case id[0] == 's':
		e.End = parseHex(id[1:])
	case id[0] == 'm' || id[0] == 't':
		e.Request = parseHex(id[1:])
	case e.Exchange(): // others have none
		e.Sequence, _ = strconv.ParseUint(id, 10, 64) // 0 is unknown
	}
}

// parseHex returns 0 for what is no number.
func parseHex(digits string) uint64 {
	n, _ := strconv.ParseUint(digits, 16, 64)
	return n
}

// common takes what every kind of event may have.
func (d *document) common(e *Event) {
	e.Time = d.Timestamp
	e.Interface = Interface{Index: d.Observer.Interface.ID, Name: d.Observer.Interface.Name}
	e.VLAN = d.Observer.VLAN.ID
	e.Slow = d.Flatd.Slow
	e.Destination = d.Destination.addrPort()
}

// exchange takes what only exchanges have.
func (d *document) exchange(e *Event) error {
	f := &d.Flatd
	if e.Side = sideOf(f.Side); e.Side == 0 {
		return fmt.Errorf("%w: flatd.side is %q", ErrNotEvent, f.Side)
	}
	if !d.setResult(e) {
		return fmt.Errorf("%w: flatd.result is %q", ErrNotEvent, f.Result)
	}
	if !d.Source.IP.IsValid() || !d.Destination.IP.IsValid() {
		return fmt.Errorf("%w: an end of the exchange is missing", ErrNotEvent)
	}
	e.Source = d.Source.addrPort()
	e.NATSource, e.NATDestination = d.Source.NAT.addrPort(), d.Destination.NAT.addrPort()
	e.Duration, e.ClientRTT, e.Limit = duration(d.Event.Duration), duration(f.ClientRTT), duration(f.Limit)
	if f.RTT != nil {
		e.RTT, e.HasRTT = duration(*f.RTT), true
	}
	e.ICMPType, e.ICMPCode = f.ICMP.Type, f.ICMP.Code
	e.Facts = f.Facts
	e.QUIC = d.Network.Protocol == "quic"
	e.Process.PID = d.Process.PID
	copy(e.Process.comm[:len(e.Process.comm)-1], d.Process.Name)
	d.setOwner(e)
	if e.Kind == KindDNS {
		d.DNS.set(&e.DNS)
	}
	return nil
}

// setResult reports whether the result is a known one.
func (d *document) setResult(e *Event) bool {
	if code, ok := rcodeOf(d.Flatd.Result); ok && e.Kind == KindDNS {
		e.Result, e.DNS.RCode = ResultAnswered, code
		return true
	}
	for r := ResultEstablished; r <= ResultTimeout; r++ {
		if (&Event{Result: r}).ResultName() == d.Flatd.Result {
			e.Result = r
			return true
		}
	}
	return false
}

// setOwner takes whose the socket was. The unit follows from the cgroup.
func (d *document) setOwner(e *Event) {
	if d.User.ID != nil {
		e.Cgroup, e.UID = ElsewhereCgroup, *d.User.ID
	}
	switch {
	case d.Flatd.Cgroup != "":
		e.Owner = OwnerOf(d.Flatd.Cgroup)
	case d.Service.Name != "" || d.Container.ID != "":
		e.Owner = &Owner{Unit: unitName(d.Service.Name), Container: d.Container.ID}
	}
}

func (d *document) summary(e *Event) {
	s := &d.Flatd.Summary
	e.Side = sideOf(s.Side)
	e.Summary = &Summary{
		Scope: Scope(d.Event.Action), Interval: duration(s.Interval), Kind: kindsByDataset["flatd."+s.Kind],
		Count: s.Count, Failed: s.Failed, Refused: s.Refused, Unreachable: s.Unreachable, Timeouts: s.Timeouts,
		NXDomain: s.NXDomain, ServFail: s.ServFail, OtherFailures: s.OtherFailures,
		Slow: s.Slow, Retransmits: s.Retransmits,
		P50: duration(s.P50), P90: duration(s.P90), P99: duration(s.P99), Max: duration(s.Max),
		Withheld: s.Withheld, Dropped: s.Dropped, ResultOut: s.ResultOut, TooFast: s.TooFast,
		SampledOut: s.SampledOut, RingFull: s.RingFull, HalfOpen: s.HalfOpen, Others: s.Others,
	}
}

// hashed begins a name of which JSON has the hash alone.
const hashed = "hash:"

// set takes the question, or none if its name cannot be one.
func (d *dnsDocument) set(to *DNS) {
	to.ID, to.Truncated = d.ID, slices.Contains(d.HeaderFlags, "TC")
	if d.Question.Name == "" {
		return
	}
	if digits, ok := strings.CutPrefix(d.Question.Name, hashed); ok && len(digits) == 16 {
		to.hash, to.HashNames, to.Type = parseHex(digits), true, typeOf(d.Question.Type)
		return
	}
	section := binary.BigEndian.AppendUint16(wireName(d.Question.Name), typeOf(d.Question.Type))
	to.SetQuestion(section)
}

// typeOf is the inverse of AppendType, 0 for what it does not write.
func typeOf(name string) uint16 {
	if digits, ok := strings.CutPrefix(name, "TYPE"); ok {
		n, _ := strconv.ParseUint(digits, 10, 16)
		return uint16(n)
	}
	return typesByName[name]
}

var typesByName = func() map[string]uint16 {
	types := make(map[string]uint16, len(typeNames))
	for number, name := range typeNames {
		types[name] = number
	}
	return types
}()

// wireName is the inverse of AppendName: labels, each behind its length, and
// the root. What is too long for a name SetQuestion refuses.
func wireName(name string) []byte {
	if name == "." {
		return []byte{0}
	}
	wire := []byte{0}
	start := 0 // of the label's length
	endLabel := func() { wire[start] = byte(min(len(wire)-start-1, labelMax+1)) }
	for i := 0; i < len(name); i++ {
		switch b := name[i]; {
		case b == '.':
			endLabel()
			start = len(wire)
			wire = append(wire, 0)
		case b == '\\' && i+3 < len(name) && digit(name[i+1]) && digit(name[i+2]) && digit(name[i+3]):
			n, _ := strconv.ParseUint(name[i+1:i+4], 10, 8)
			wire = append(wire, byte(n))
			i += 3
		case b == '\\' && i+1 < len(name):
			i++
			wire = append(wire, name[i])
		default:
			wire = append(wire, b)
		}
	}
	endLabel()
	return append(wire, 0)
}

func digit(b byte) bool { return '0' <= b && b <= '9' }
