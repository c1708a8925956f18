// Package exact makes requests between two hosts at a steady rate, knows each of
// them and what came of it, and judges by that what flatd printed of them.
//
// One host is measured. It asks the other, which plays a network of hosts of its
// own (answerer), and is asked by it. The far end's address is another one for
// each exchange, so that an event says by itself which exchange it is about. Many
// answers take their time: at any moment requests are open.
package exact

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Exchange is one request that was made, and what came of it.
type Exchange struct {
	Kind    string // as in event.dataset, behind the dot
	Inbound bool   // the measured host was asked
	From    netip.AddrPort
	To      netip.AddrPort // ICMP has no ports
	ID      uint16         // of a DNS message
	Name    string         // that it asks for
	Result  string         // as in flatd.result
	Began   time.Time
	Took    time.Duration // until the answer; 0: none came

	n     int
	delay time.Duration // of the answer
}

func (e Exchange) String() string {
	direction := "asks"
	if e.Inbound {
		direction = "is asked"
	}
	return fmt.Sprintf("%s %s > %s (the measured host %s), %s after %s", e.Kind, e.From, e.To, direction, e.Result, e.Took.Round(time.Microsecond))
}

// far is the end that no other exchange has.
func (e Exchange) far() netip.Addr {
	if e.Inbound {
		return e.From.Addr()
	}
	return e.To.Addr()
}

const (
	portDNS         = 53
	portOpen        = 7001 // TCP: accepts
	portClosed      = 7002 // TCP: refuses
	portEcho        = 7003 // UDP: answers
	portUnreachable = 7004 // UDP: is answered with an ICMP error
)

// prefix is where addresses of a role are, of each family.
type prefix struct{ v4, v6 netip.Prefix }

func prefixes(v4, v6 string) prefix {
	return prefix{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)}
}

var (
	answering = prefixes("10.128.0.0/10", "fd97::/64") // are asked and answer
	silent    = prefixes("10.192.0.0/10", "fd96::/64") // are asked and do not
	asking    = prefixes("10.64.0.0/10", "fd98::/64")  // ask
)

// most is how many addresses a role has, of each family.
const most = 1 << 22

// at is the nth address of a role, from 0: of IPv4 if n is even.
func (p prefix) at(n int) netip.Addr {
	if n%2 == 0 {
		a := p.v4.Addr().As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(n)+1)
		return netip.AddrFrom4(a)
	}
	a := p.v6.Addr().As16()
	binary.BigEndian.PutUint32(a[12:], uint32(n)+1)
	return netip.AddrFrom16(a)
}

// number is what at was asked for.
func number(a netip.Addr) int {
	octets := a.AsSlice()
	n := binary.BigEndian.Uint32(octets[len(octets)-4:])
	if a.Is4() {
		n &= most - 1
	}
	return int(n) - 1
}

var kinds = []string{"tcp", "udp", "dns", "icmp"}

// outbound plans the nth request of the measured host: of 20, 19 are answered.
func outbound(n int) (e Exchange) {
	switch turn := n / 2 % 20; {
	case turn < 7:
		e = Exchange{Kind: "tcp", Result: "established"}
	case turn < 10:
		e = Exchange{Kind: "tcp", Result: "refused"}
	case turn < 13:
		e = Exchange{Kind: "udp", Result: "answered"}
	case turn < 14:
		e = Exchange{Kind: "udp", Result: "unreachable"}
	case turn < 16:
		e = Exchange{Kind: "dns", Result: "noerror"}
	case turn < 17:
		e = Exchange{Kind: "dns", Result: "nxdomain"}
	case turn < 19:
		e = Exchange{Kind: "icmp", Result: "answered"}
	default:
		return unanswered(n, kinds[n/40%len(kinds)])
	}
	e.n, e.delay = n, delay(n)
	e.To = netip.AddrPortFrom(answering.at(n), e.port())
	e.ask()
	return e
}

// unanswered plans a request of the measured host that gets no answer.
func unanswered(n int, kind string) Exchange {
	e := Exchange{Kind: kind, Result: "timeout", n: n}
	e.To = netip.AddrPortFrom(silent.at(n), e.port())
	e.ask()
	return e
}

// inbound plans the nth request to the measured host: all are answered.
func inbound(n int) (e Exchange) {
	switch turn := n / 2 % 20; {
	case turn < 7:
		e = Exchange{Kind: "tcp", Result: "established"}
	case turn < 10:
		e = Exchange{Kind: "tcp", Result: "refused"}
	case turn < 14:
		e = Exchange{Kind: "udp", Result: "answered"}
	case turn < 17:
		e = Exchange{Kind: "dns", Result: "noerror"}
	case turn < 18:
		e = Exchange{Kind: "dns", Result: "nxdomain"}
	default:
		e = Exchange{Kind: "icmp", Result: "answered"}
	}
	e.Inbound, e.n = true, n
	e.From = netip.AddrPortFrom(asking.at(n), 0)
	e.To = netip.AddrPortFrom(netip.Addr{}, e.port()) // the measured host's, which the load knows
	e.ask()
	return e
}

func (e *Exchange) port() uint16 {
	switch {
	case e.Kind == "dns":
		return portDNS
	case e.Kind == "icmp":
		return 0
	case e.Kind == "tcp" && e.Result == "refused":
		return portClosed
	case e.Kind == "tcp":
		return portOpen
	case e.Result == "unreachable":
		return portUnreachable
	}
	return portEcho
}

// ask gives a DNS request its question.
func (e *Exchange) ask() {
	if e.Kind != "dns" {
		return
	}
	e.ID = uint16(e.n)
	e.Name = fmt.Sprintf("%s-%d.example.test", e.Result, e.n)
}

// delay is how long the nth answer takes: half of them none, others up to 300 ms.
func delay(n int) time.Duration {
	scattered := uint32(n) * 2654435761 // Knuth's multiplicative hash
	if scattered>>31 == 0 {
		return 0
	}
	return time.Duration(scattered>>8%300) * time.Millisecond
}

// payload is what a request says.
func (e *Exchange) payload() []byte {
	switch e.Kind {
	case "dns":
		return e.query()
	case "icmp":
		return e.echo()
	}
	return []byte("ask")
}

// query is a DNS message that asks for an address.
func (e *Exchange) query() []byte {
	m := binary.BigEndian.AppendUint16(nil, e.ID)
	m = append(m, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired; one question
	for label := range strings.SplitSeq(e.Name, ".") {
		m = append(append(m, byte(len(label))), label...)
	}
	return append(m, 0, 0, 1, 0, 1) // A, IN
}

// respond makes the answer to a DNS message that asks for a Name.
func respond(query []byte) []byte {
	const header = 12
	if len(query) < header+2 {
		return nil
	}
	answer := append([]byte(nil), query...)
	answer[2] |= 0x80
	if strings.HasPrefix(string(query[header+1:]), "nxdomain") {
		answer[3] |= 3
	}
	return answer
}

// echo is an ICMP message; the kernel fills in checksum and identifier.
func (e *Exchange) echo() []byte {
	kind := byte(8)
	if e.is6() {
		kind = 128
	}
	return append([]byte{kind, 0, 0, 0, 0, 0}, byte(e.n>>8), byte(e.n), 'a', 's', 'k')
}

func (e *Exchange) is6() bool { return e.n%2 == 1 }
