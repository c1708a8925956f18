package tshark

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

type state int

const (
	open state = iota
	halfOpen
	flowing     // UDP: answered, and known by what follows
	unreachable // an answer may still come
)

// A request is known by who asked whom, on which side of the host's interface,
// and by what an answer repeats.
type request struct {
	kind, side          string
	source, destination netip.AddrPort
	id                  uint32
	question            string // DNS
}

// An attempt is a TCP request with the sequence number of its SYN.
type attempt struct {
	request
	isn uint32
}

// Judge finds the exchanges of one host among its packets, given in order.
type Judge struct {
	Found    []Found
	Requests int // exchanges that were begun
	pending  map[request]*Found
	answered map[attempt]bool
}

// NewJudge returns one that has seen nothing.
func NewJudge() *Judge {
	return &Judge{pending: make(map[request]*Found), answered: make(map[attempt]bool)}
}

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
		if f.state == open || f.state == halfOpen {
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
	switch {
	case f == nil || f.state == unreachable && r.kind != "udp":
		return j.ask(p, r)
	case f.state == unreachable && f.goesOn:
		return f // counted, but not as of this request
	}
	f.goesOn = f.state == unreachable
	f.Repeats++
	return f
}

// isOpen says whether an answer to the request is awaited.
func (j *Judge) isOpen(r request) bool {
	f := j.pending[r]
	return f != nil && f.state == open
}

// awaits says whether an answer to the request would be one: a late one, if the
// request was said to be unreachable.
func (j *Judge) awaits(r request) bool {
	f := j.pending[r]
	return j.isOpen(r) || f != nil && f.state == unreachable && (r.side == "client" || r.kind != "tcp")
}

// answer closes an exchange, as of now.
func (j *Judge) answer(p *Packet, r request, result string) *Found {
	f := j.pending[r]
	f.Result, f.Frame, f.Duration, f.Error = result, p.Number, p.Time-f.requested, [2]int{}
	f.Late = f.state == unreachable
	if f.Repeats == 0 {
		f.RTT, f.HasRTT = f.Duration, true
	}
	if r.side == "client" {
		f.TTL = p.ttl()
	}
	delete(j.pending, r)
	if r.kind == "tcp" && result != "unreachable" {
		j.answered[attempt{r, f.isn}] = true
	}
	j.Found = append(j.Found, *f)
	return &j.Found[len(j.Found)-1]
}

// remember keeps an exchange that is over for what follows.
func (j *Judge) remember(r request, f *Found, as state) {
	f.state = as
	j.pending[r] = f
}

const (
	syn, rst, ack = 0x02, 0x04, 0x10
	tcpHeader     = 20
)

// exchanged are the request that a packet may be, and the one that it may answer.
func exchanged(kind, asking, answering string, from, to netip.AddrPort) (forth, back request) {
	return request{kind: kind, side: asking, source: from, destination: to},
		request{kind: kind, side: answering, source: to, destination: from}
}

func (j *Judge) tcp(p *Packet, asking, answering string) {
	if !p.has("tcp.len", 0) || p.number("tcp.hdr_len", 0) < tcpHeader {
		return // malformed
	}
	from, to := p.end("src", "tcp", 0, 0), p.end("dst", "tcp", 0, 0)
	forth, back := exchanged("tcp", asking, answering, from, to)
	switch flags := p.number("tcp.flags", 0); {
	case flags&rst != 0:
		if j.awaits(back) && flags&ack != 0 && j.pending[back].acknowledged(p) {
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
	if j.answered[attempt{r, isn}] {
		return // the answer was lost further on, or was a refusal
	}
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
	if !j.awaits(r) || !j.pending[r].acknowledged(p) {
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
	forth, back := exchanged("udp", asking, answering, from, to)
	switch f := j.pending[back]; {
	case !p.has("udp.checksum", 0): // cut short
	case from.Port() == dnsPort || to.Port() == dnsPort:
		j.dns(p, forth, back)
	case slices.Contains(groupPorts, from.Port()) || slices.Contains(groupPorts, to.Port()):
	case f == nil:
		j.again(p, forth)
	case f.state == open || f.state == unreachable:
		// What follows is the flow's, whichever way it goes.
		j.answer(p, back, "answered")
		j.remember(back, f, flowing)
	}
}

// dns makes requests of DNS of those of UDP.
func (j *Judge) dns(p *Packet, forth, back request) {
	if !p.has("dns.count.add_rr", 0) {
		return // no whole header
	}
	forth.kind, back.kind = "dns", "dns"
	forth.id, forth.question = uint32(p.number("dns.id", 0)), p.asked()
	back.id, back.question = forth.id, forth.question
	response := p.number("dns.flags.response", 0) == 1
	switch {
	case !response && forth.destination.Port() == dnsPort:
		j.again(p, forth).Name = p.question()
	case response && back.destination.Port() == dnsPort:
		if !j.awaits(back) && back.question == "" {
			back = j.onlyOpen(back, false)
		}
		if !j.awaits(back) {
			return
		}
		f := j.answer(p, back, RCode(p.rcode()))
		if p.question() != f.Name {
			f.Name = "" // one of the two is wrong
		}
	}
}

// onlyOpen is the only open DNS request between the ends of another, if there is but
// one, of the same id or of any.
func (j *Judge) onlyOpen(like request, anyID bool) request {
	var found []request
	for r := range j.pending {
		if r.kind == "dns" && r.side == like.side && r.source == like.source && r.destination == like.destination && j.isOpen(r) {
			found = append(found, r)
		}
	}
	if len(found) != 1 || !anyID && found[0].id != like.id {
		return request{}
	}
	return found[0]
}

// asked is the first question as on the wire (RFC 1035, 4.1.2), with small letters for
// capital ones (RFC 4343); "" if there is no whole one, or its name is compressed.
func (p *Packet) asked() string {
	const udpHeader, header, longest = 8, 12, 255
	message, _ := hex.DecodeString(strings.ReplaceAll(p.text("udp.payload", 0), ":", ""))
	if n := int(p.number("udp.length", 0)); n >= udpHeader && n-udpHeader < len(message) {
		message = message[:n-udpHeader]
	}
	if len(message) < header || binary.BigEndian.Uint16(message[4:]) == 0 {
		return ""
	}
	rest := message[header:]
	name := 0
	for name < len(rest) && rest[name] != 0 {
		if rest[name] > 63 {
			return ""
		}
		name += 1 + int(rest[name])
	}
	name++
	if name > longest || name+4 > len(rest) {
		return ""
	}
	small := func(c byte) byte {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	question := bytes.Clone(rest[:name+4])
	for i := range name { // lengths are less than any letter
		question[i] = small(question[i])
	}
	return string(question)
}

// rcode is the response code of an answer, extended where the OPT record is the first
// (RFC 6891, 6.1.3).
func (p *Packet) rcode() int {
	code := p.number("dns.flags.rcode", 0)
	const opt = 41
	if p.number("dns.count.answers", 0) == 0 && p.number("dns.count.auth_rr", 0) == 0 && p.number("dns.resp.type", 0) == opt {
		code |= p.number("dns.resp.ext_rcode", 0) << 4
	}
	return int(code)
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
	switch code {
	case 16:
		return "badvers"
	case 23:
		return "badcookie"
	}
	return fmt.Sprintf("rcode%d", code)
}

func (j *Judge) icmp(p *Packet, asking, answering string) {
	from, to := netip.AddrPortFrom(p.Source, 0), netip.AddrPortFrom(p.Destination, 0)
	forth, back := exchanged("icmp", asking, answering, from, to)
	forth.id, back.id = p.echo(), p.echo()
	switch {
	case p.asks(0) && p.hasEcho():
		j.again(p, forth)
	case p.replies() && p.hasEcho() && j.awaits(back):
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
	if ok && r.kind == "dns" && !j.isOpen(r) && r.question == "" {
		r = j.onlyOpen(r, !p.has("dns.count.add_rr", 0))
	}
	if !ok || !j.isOpen(r) || r.kind == "tcp" && uint32(p.number("tcp.seq_raw", 0)) != j.pending[r].isn {
		return
	}
	f := j.pending[r]
	found := j.answer(p, r, "unreachable")
	found.Error = [2]int{int(p.number(p.Transport+".type", 0)), int(p.number(p.Transport+".code", 0))}
	if r.side == "client" {
		found.TTL = 0 // a router's, as a rule
	}
	j.remember(r, f, unreachable)
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
			r.kind, r.id, r.question = "dns", uint32(p.number("dns.id", 0)), p.asked()
		}
		return r, true
	case p.hasEcho() && p.asks(1):
		return request{kind: "icmp", source: netip.AddrPortFrom(source, 0), destination: netip.AddrPortFrom(destination, 0), id: p.echo()}, true
	}
	return request{}, false
}
