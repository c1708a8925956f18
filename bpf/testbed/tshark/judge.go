package tshark

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"
)

type state int

const (
	open state = iota
	halfOpen
	reported // stays known by what follows
)

// A request is known by who asked whom, on which side of the host's interface,
// and by what an answer repeats.
type request struct {
	kind, side          string
	source, destination netip.AddrPort
	id                  uint32
}

// Judge finds the exchanges of one host among its packets, given in order.
type Judge struct {
	Found    []Found
	Requests int // exchanges that were begun
	pending  map[request]*Found
}

// NewJudge returns one that has seen nothing.
func NewJudge() *Judge { return &Judge{pending: make(map[request]*Found)} }

// Add looks at the next packet, which leaves the host or comes in.
func (j *Judge) Add(p *Packet, out bool) {
	if p.LaterFragment() || p.Group() {
		return
	}
	asking, answering := "server", "client"
	if out {
		asking, answering = answering, asking
	}
	switch p.Transport {
	case "tcp":
		j.tcp(p, asking, answering)
	case "udp":
		j.udp(p, asking, answering)
	case "icmp", "icmpv6":
		j.icmp(p, asking, answering)
	}
}

// Unanswered are the requests that are still open.
func (j *Judge) Unanswered() []Found {
	var all []Found
	for _, f := range j.pending {
		if f.state != reported {
			f.Result = "timeout"
			all = append(all, *f)
		}
	}
	slices.SortFunc(all, func(a, b Found) int { return a.Frame - b.Frame })
	return all
}

// ask opens an exchange.
func (j *Judge) ask(p *Packet, r request) *Found {
	f := &Found{
		Exchange:  Exchange{Kind: r.kind, Side: r.side, Source: r.source, Destination: r.destination, ID: r.id},
		Frame:     p.Number,
		VLAN:      p.vlan(),
		requested: p.Time,
	}
	if r.side == "server" {
		f.TTL = p.ttl()
	}
	j.Requests++
	j.pending[r] = f
	return f
}

// again opens an exchange, or counts one more packet of its request.
func (j *Judge) again(p *Packet, r request) *Found {
	f := j.pending[r]
	if f == nil {
		return j.ask(p, r)
	}
	f.Repeats++
	return f
}

// isOpen says whether an answer to the request is awaited.
func (j *Judge) isOpen(r request) bool {
	f := j.pending[r]
	return f != nil && f.state == open
}

// answer closes an open exchange, as of now.
func (j *Judge) answer(p *Packet, r request, result string) *Found {
	f := j.pending[r]
	f.Result, f.Frame, f.Duration = result, p.Number, p.Time-f.requested
	if f.Repeats == 0 {
		f.RTT, f.HasRTT = f.Duration, true
	}
	if r.side == "client" {
		f.TTL = p.ttl()
	}
	delete(j.pending, r)
	j.Found = append(j.Found, *f)
	return &j.Found[len(j.Found)-1]
}

// remember keeps an exchange that is over for what follows.
func (j *Judge) remember(r request, f *Found) {
	f.state = reported
	j.pending[r] = f
}

const (
	syn, rst, ack = 0x02, 0x04, 0x10
	tcpHeader     = 20
)

func (j *Judge) tcp(p *Packet, asking, answering string) {
	if !p.has("tcp.len", 0) || p.number("tcp.hdr_len", 0) < tcpHeader {
		return // malformed
	}
	from, to := p.end("src", "tcp", 0, 0), p.end("dst", "tcp", 0, 0)
	forth, back := request{"tcp", asking, from, to, 0}, request{"tcp", answering, to, from, 0}
	switch flags := p.number("tcp.flags", 0); {
	case flags&rst != 0:
		if j.isOpen(back) && flags&ack != 0 && j.pending[back].acknowledged(p) {
			j.answer(p, back, "refused")
		}
	case flags&syn != 0 && flags&ack == 0:
		j.syn(p, forth)
	case flags&syn != 0:
		j.synAck(p, back)
	case flags&ack != 0:
		j.completion(p, forth)
	}
}

func (j *Judge) syn(p *Packet, r request) {
	isn := uint32(p.number("tcp.seq_raw", 0))
	f := j.pending[r]
	if f != nil && f.isn == isn {
		f.Repeats++
		if p.has("tcp.analysis.retransmission", 0) {
			f.Resent++
		}
	} else {
		f = j.ask(p, r)
		f.isn, f.payload, f.sent = isn, uint32(p.number("tcp.len", 0)), make(map[int64]time.Duration)
	}
	if p.has("tcp.options.timestamp.tsval", 0) {
		f.sent[p.number("tcp.options.timestamp.tsval", 0)] = p.Time
	}
}

// acknowledged says whether a packet's ACK is of the SYN, and of its data as
// far as they were taken.
func (f *Found) acknowledged(p *Packet) bool {
	return uint32(p.number("tcp.ack_raw", 0))-f.isn-1 <= f.payload
}

func (j *Judge) synAck(p *Packet, r request) {
	if !j.isOpen(r) || !j.pending[r].acknowledged(p) {
		return
	}
	f := j.pending[r]
	if r.side == "server" {
		f.state, f.Duration, f.completes = halfOpen, p.Time-f.requested, uint32(p.number("tcp.seq_raw", 0))+1
		return
	}
	sent, told := f.sent[p.number("tcp.options.timestamp.tsecr", 0)]
	f = j.answer(p, r, "established")
	if told {
		f.RTT, f.HasRTT = p.Time-sent, true
	}
}

// completion ends an attempt from outside that this packet completes.
func (j *Judge) completion(p *Packet, r request) {
	f := j.pending[r]
	if f == nil || f.state != halfOpen || uint32(p.number("tcp.ack_raw", 0)) != f.completes ||
		uint32(p.number("tcp.seq_raw", 0))-f.isn-1 > f.payload {
		return
	}
	duration := f.Duration
	f = j.answer(p, r, "established")
	f.Duration, f.ClientRTT = duration, f.Duration-duration
}

const dnsPort = 53

// Answers to questions that went to a group come from a host that was not
// asked: mDNS, LLMNR and SSDP are nobody's exchanges.
var groupPorts = []uint16{5353, 5355, 1900}

func (j *Judge) udp(p *Packet, asking, answering string) {
	from, to := p.end("src", "udp", 0, 0), p.end("dst", "udp", 0, 0)
	forth, back := request{"udp", asking, from, to, 0}, request{"udp", answering, to, from, 0}
	switch f := j.pending[back]; {
	case !p.has("udp.checksum", 0): // cut short
	case from.Port() == dnsPort || to.Port() == dnsPort:
		j.dns(p, forth, back)
	case slices.Contains(groupPorts, from.Port()) || slices.Contains(groupPorts, to.Port()):
	case f == nil:
		j.again(p, forth)
	case f.state == open:
		// What follows is the flow's, whichever way it goes.
		j.answer(p, back, "answered")
		j.remember(back, f)
	}
}

// dns makes requests of DNS of those of UDP.
func (j *Judge) dns(p *Packet, forth, back request) {
	if !p.has("dns.count.add_rr", 0) {
		return // no whole header
	}
	id := uint32(p.number("dns.id", 0))
	forth.kind, back.kind, forth.id, back.id = "dns", "dns", id, id
	response := p.number("dns.flags.response", 0) == 1
	switch {
	case !response && forth.destination.Port() == dnsPort:
		j.again(p, forth).Name = p.question()
	case response && back.destination.Port() == dnsPort && j.isOpen(back):
		f := j.answer(p, back, RCode(int(p.number("dns.flags.rcode", 0))))
		if p.question() != f.Name {
			f.Name = "" // one of the two is wrong
		}
	}
}

// Each has a way of its own to show what is not printable.
var plainName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// question is the name that is asked for, if it is plain.
func (p *Packet) question() string {
	if name := p.text("dns.qry.name", 0); plainName.MatchString(name) {
		return name
	}
	return ""
}

// RCode is the name of a DNS response code, as flatd.result has it (RFC 6895, 2.3).
func RCode(code int) string {
	names := []string{"noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset", "nxrrset", "notauth", "notzone"}
	if code < len(names) {
		return names[code]
	}
	return fmt.Sprintf("rcode%d", code)
}

func (j *Judge) icmp(p *Packet, asking, answering string) {
	from, to := netip.AddrPortFrom(p.Source, 0), netip.AddrPortFrom(p.Destination, 0)
	back := request{"icmp", answering, to, from, p.echo()}
	switch {
	case p.asks(0) && p.hasEcho():
		j.again(p, request{"icmp", asking, from, to, p.echo()})
	case p.replies() && p.hasEcho() && j.isOpen(back):
		j.answer(p, back, "answered")
	case p.isError():
		j.unreachable(p, answering)
	}
}

func (p *Packet) asks(n int) bool {
	want := map[string]int64{"icmp": 8, "icmpv6": 128}[p.Transport]
	return p.has(p.Transport+".type", n) && p.number(p.Transport+".type", n) == want
}

func (p *Packet) replies() bool {
	want := map[string]int64{"icmp": 0, "icmpv6": 129}[p.Transport]
	return p.has(p.Transport+".type", 0) && p.number(p.Transport+".type", 0) == want
}

// echo is identifier and sequence of the first echo message. An error itself
// has none, so that this is the quoted packet's.
func (p *Packet) echo() uint32 {
	if p.Transport == "icmp" {
		return uint32(p.number("icmp.ident", 0)<<16 | p.number("icmp.seq", 0))
	}
	return uint32(p.number("icmpv6.echo.identifier", 0)<<16 | p.number("icmpv6.echo.sequence_number", 0))
}

func (p *Packet) hasEcho() bool {
	return p.has("icmp.seq", 0) || p.has("icmpv6.echo.sequence_number", 0)
}

// isError knows the errors that end a request: too big is tried again.
func (p *Packet) isError() bool {
	kind, code := p.number(p.Transport+".type", 0), p.number(p.Transport+".code", 0)
	if p.Transport == "icmpv6" {
		return kind == 1 || kind == 3 || kind == 4
	}
	return kind == 3 && code != 4 || kind == 11 || kind == 12
}

// unreachable ends the request that an error quotes.
func (j *Judge) unreachable(p *Packet, answering string) {
	r, ok := p.quoted()
	r.side = answering
	if !ok || !j.isOpen(r) || r.kind == "tcp" && uint32(p.number("tcp.seq_raw", 0)) != j.pending[r].isn {
		return
	}
	f := j.pending[r]
	f.Error = [2]int{int(p.number(p.Transport+".type", 0)), int(p.number(p.Transport+".code", 0))}
	found := j.answer(p, r, "unreachable")
	if r.side == "client" {
		found.TTL = 0 // a router's, as a rule
	}
	j.remember(r, f)
}

// quoted is the request that an ICMP error is about. The error itself has no
// ports and no identifier, so that the first ones are the quoted packet's.
func (p *Packet) quoted() (r request, ok bool) {
	source, destination := p.address("src", 1), p.address("dst", 1)
	if !source.IsValid() {
		return request{}, false
	}
	switch {
	case p.has("tcp.seq_raw", 0):
		return request{kind: "tcp", source: p.end("src", "tcp", 1, 0), destination: p.end("dst", "tcp", 1, 0)}, true
	case p.has("udp.dstport", 0):
		r = request{kind: "udp", source: p.end("src", "udp", 1, 0), destination: p.end("dst", "udp", 1, 0)}
		if r.destination.Port() == dnsPort {
			r.kind, r.id = "dns", uint32(p.number("dns.id", 0))
			return r, p.has("dns.id", 0)
		}
		return r, true
	case p.hasEcho() && p.asks(1):
		return request{kind: "icmp", source: netip.AddrPortFrom(source, 0), destination: netip.AddrPortFrom(destination, 0), id: p.echo()}, true
	}
	return request{}, false
}
