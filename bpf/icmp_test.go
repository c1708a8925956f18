package bpf

import (
	"fmt"
	"testing"
)

func icmpExchanges(t testing.TB, f flow) []exchange {
	b := f.back()
	one := client(ofICMP, answered)
	reply, message := byte(0), byte(13) // a timestamp request
	protocol, other := 9, byte(58)      // in the IP header: where, and the other family's
	length, short := 2, byte(20+7)      // of the packet
	if f.from.Addr().Is6() {
		reply, message = 129, 135 // a neighbour solicitation
		protocol, other = 6, 1
		length, short = 4, 7
	}
	return []exchange{
		{"ping", []packet{out(f.echo(t, 9, 1, false)), in(b.echo(t, 9, 1, true))},
			[]want{one}, counts{"requests": 1, "finished": 1}},
		{"pinged", []packet{in(f.echo(t, 9, 1, false)), out(b.echo(t, 9, 1, true))},
			[]want{server(ofICMP, answered)}, counts{"requests": 1, "finished": 1}},
		{"another sequence number", []packet{out(f.echo(t, 9, 1, false)), in(b.echo(t, 9, 2, true))},
			nil, counts{"requests": 1, "unmatched": 1}},
		{"another identifier", []packet{out(f.echo(t, 9, 1, false)), in(b.echo(t, 8, 1, true))},
			nil, counts{"requests": 1, "unmatched": 1}},
		{"several in flight", []packet{out(f.echo(t, 9, 1, false)), out(f.echo(t, 9, 2, false)), out(f.echo(t, 8, 1, false)),
			in(b.echo(t, 9, 2, true)), in(b.echo(t, 8, 1, true)), in(b.echo(t, 9, 1, true))},
			[]want{one, one, one}, counts{"requests": 3, "finished": 3}},
		{"answered twice", []packet{out(f.echo(t, 9, 1, false)), in(b.echo(t, 9, 1, true)), in(b.echo(t, 9, 1, true))},
			[]want{one}, counts{"requests": 1, "finished": 1, "unmatched": 1}},
		{"sent again", []packet{out(f.echo(t, 9, 1, false)), out(f.echo(t, 9, 1, false)), in(b.echo(t, 9, 1, true))},
			[]want{one.repeated(1)}, counts{"requests": 1, "finished": 1, "repeats": 1}},
		{"never answered", []packet{out(f.echo(t, 9, 1, false)), timeout},
			[]want{client(ofICMP, timedOut)}, counts{"requests": 1, "timed_out": 1}},
		{"pinged, never answered", []packet{in(f.echo(t, 9, 1, false)), timeout},
			[]want{server(ofICMP, timedOut)}, counts{"requests": 1, "timed_out": 1}},
		{"answered too late", []packet{out(f.echo(t, 9, 1, false)), timeout, in(b.echo(t, 9, 1, true))},
			[]want{client(ofICMP, timedOut), one.tooLate()}, counts{"requests": 1, "timed_out": 1, "late": 1}},
		{"pinged, answered too late", []packet{in(f.echo(t, 9, 1, false)), timeout, out(b.echo(t, 9, 1, true))},
			[]want{server(ofICMP, timedOut), server(ofICMP, answered).tooLate()}, counts{"requests": 1, "timed_out": 1, "late": 1}},
		// A monitor whose identifier and sequence are constant.
		{"sent anew after a timeout", []packet{out(f.echo(t, 1, 0, false)), timeout, out(f.echo(t, 1, 0, false)), timeout,
			out(f.echo(t, 1, 0, false)), in(b.echo(t, 1, 0, true)), out(f.echo(t, 1, 0, false)), in(b.echo(t, 1, 0, true))},
			[]want{client(ofICMP, timedOut), client(ofICMP, timedOut).again(), one.again(), one},
			counts{"requests": 4, "timed_out": 2, "finished": 2}},
		{"pinged anew after a timeout", []packet{in(f.echo(t, 1, 0, false)), timeout, in(f.echo(t, 1, 0, false)), out(b.echo(t, 1, 0, true))},
			[]want{server(ofICMP, timedOut), server(ofICMP, answered).again()}, counts{"requests": 2, "timed_out": 1, "finished": 1}},
		{"reply in the request's direction", []packet{out(f.echo(t, 9, 1, false)), out(b.echo(t, 9, 1, true))},
			nil, counts{"requests": 1, "unmatched": 1}},

		{"to a group", []packet{out(f.group(0).echo(t, 9, 1, false))}, nil, counts{"multicast": 1}},
		{"other messages", []packet{in(b.icmp(t, message, 0))}, nil, counts{"icmp_other": 1}},
		{"cut short", []packet{in(stump(b.icmp(t, reply, 0), 7))}, nil, counts{"truncated": 1}},
		{"packet shorter than the header", []packet{in(patched(b.icmp(t, reply, 0), length, 0, short))}, nil, counts{"malformed": 1}},
		{"the other family's messages", []packet{out(patched(f.echo(t, 9, 1, false), protocol, other))},
			nil, counts{"protocol": 1}},
	}
}

// closedPort is the type and code of what a port that nobody listens on sends.
func closedPort(f flow) (icmpType, icmpCode uint8) {
	if f.from.Addr().Is6() {
		return 1, 4
	}
	return 3, 3
}

// icmpError is a type with codes.
type icmpError struct {
	kind  uint8
	codes []uint8
}

// Those that end a request (RFC 792, RFC 1122, 3.2.2.1, RFC 1812, 5.2.7; RFC
// 4443, 3), and those that do not: what is too big is sent again in smaller
// parts, a redirected packet was forwarded, a source quench means nothing
// (RFC 6633).
func icmpErrors(v6 bool) (fatal, harmless []icmpError) {
	if v6 {
		return []icmpError{{1, []uint8{0, 1, 2, 3, 4, 5, 6}}, {3, []uint8{0, 1}}, {4, []uint8{0, 1, 2}}},
			[]icmpError{{2, []uint8{0}}, {137, []uint8{0}}}
	}
	return []icmpError{{3, []uint8{0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}, {11, []uint8{0, 1}}, {12, []uint8{0, 1, 2}}},
		[]icmpError{{3, []uint8{4}}, {4, []uint8{0}}, {5, []uint8{0, 1, 2, 3}}}
}

func errorExchanges(t testing.TB, f flow) []exchange {
	fatal, harmless := icmpErrors(f.from.Addr().Is6())
	ends := counts{"requests": 1, "finished": 1}
	var all []exchange
	for _, kind := range everyKind(t, f) {
		for _, e := range fatal {
			for _, code := range e.codes {
				all = append(all, exchange{fmt.Sprintf("%s, type %d code %d", kind.name, e.kind, code),
					[]packet{out(kind.request), in(f.back().quote(t, e.kind, code, kind.request))},
					[]want{client(kind.kind, unreachable).because(e.kind, code)}, ends})
			}
		}
		for _, e := range harmless {
			for _, code := range e.codes {
				all = append(all, exchange{fmt.Sprintf("%s, type %d code %d ends nothing", kind.name, e.kind, code),
					[]packet{out(kind.request), in(f.back().quote(t, e.kind, code, kind.request)), in(kind.answer)},
					[]want{client(kind.kind, kind.result)}, counts{"requests": 1, "finished": 1, "icmp_other": 1}})
			}
		}
		all = append(all, exchange{kind.name + ", reported by this host",
			[]packet{in(kind.request), out(f.back().unreachable(t, kind.request))},
			[]want{server(kind.kind, unreachable).because(closedPort(f))}, ends})
		all = append(all, exchange{kind.name + ", in the request's direction",
			[]packet{out(kind.request), out(f.back().unreachable(t, kind.request))},
			nil, counts{"requests": 1, "quote": 1}})
	}
	return append(all, quotations(t, f)...)
}

// request is one of each kind, with its answer.
type request struct {
	name            string
	kind, result    uint8
	request, answer []byte
}

func everyKind(t testing.TB, f flow) []request {
	b, d := f.back(), f.port(53)
	return []request{
		{"tcp", kindTCP, established, f.syn(t, 100), b.synAck(t, 101)},
		{"udp", ofUDP, answered, f.udp(t, 1), b.udp(t, 2)},
		{"dns", kindDNS, answered, d.dns(t, 5, nil), d.back().answers(t, 5, 0)},
		{"echo", ofICMP, answered, f.echo(t, 9, 1, false), b.echo(t, 9, 1, true)},
	}
}

// quotations are of all sorts: what is quoted, and what became of the request.
func quotations(t testing.TB, f flow) []exchange {
	v6 := f.from.Addr().Is6()
	b, d := f.back(), f.port(53)
	half := f.port(1010) // its SYN/ACK is awaited for good: see tcpExchanges
	syn, udp, dns, echo := f.syn(t, 100), f.udp(t, 1, 2, 3, 4, 5, 6, 7, 8), d.dns(t, 5, nil), f.echo(t, 9, 1, false)
	kind, code := closedPort(f)
	headers := 20
	if v6 {
		headers = 40
	}
	quoting := func(frame []byte, octets int) []byte {
		return b.quote(t, kind, code, frame[:networkOf(frame)+headers+octets])
	}
	reported := func(of uint8) []want { return []want{client(of, unreachable).because(kind, code)} }
	ends, ignored := counts{"requests": 1, "finished": 1}, counts{"requests": 1, "quote": 1}

	all := []exchange{
		// Eight octets behind the IP header are what a router owes (RFC 792).
		{"eight octets of tcp", []packet{out(syn), in(quoting(syn, 8))}, reported(kindTCP), ends},
		{"eight octets of udp", []packet{out(udp), in(quoting(udp, 8))}, reported(ofUDP), ends},
		{"eight octets of an echo", []packet{out(echo), in(quoting(echo, 8))}, reported(ofICMP), ends},
		// Of DNS they do not tell which, unless there is but one.
		{"eight octets of dns, one is open", []packet{out(dns), in(quoting(dns, 8))}, reported(kindDNS), ends},
		{"eight octets of dns, two are open", []packet{out(dns), out(d.dns(t, 6, nil)), in(quoting(dns, 8)), in(d.back().answers(t, 6, 0)), in(quoting(dns, 8))},
			append([]want{client(kindDNS, answered)}, reported(kindDNS)...), counts{"requests": 2, "finished": 2, "quote": 1}},
		{"eight octets of dns, two questions are open", []packet{out(dns), out(d.dns(t, 5, asking("www.test", 1))), in(quoting(dns, 8))},
			nil, counts{"requests": 2, "quote": 1}},
		{"eight octets of dns, nothing is open", []packet{out(dns), in(d.back().answers(t, 5, 0)), in(quoting(dns, 8))},
			[]want{client(kindDNS, answered)}, counts{"requests": 1, "finished": 1, "quote": 1}},
		{"eight octets of dns of another socket", []packet{out(dns), in(quoting(d.sourcePort(43211).dns(t, 5, nil), 8))}, nil, ignored},
		{"eight octets of dns, reported by this host", []packet{in(dns), out(quoting(dns, 8))},
			[]want{server(kindDNS, unreachable).because(kind, code)}, ends},
		{"ten octets of dns", []packet{out(dns), in(quoting(dns, 10))}, reported(kindDNS), ends},
		{"a question cut short", []packet{out(dns), in(quoting(dns, 8+12+6))}, reported(kindDNS), ends},
		{"a question cut short, two are open", []packet{out(dns), out(d.dns(t, 5, asking("www.test", 1))), in(quoting(dns, 8+12+6))},
			nil, counts{"requests": 2, "quote": 1}},
		{"another transaction's question cut short", []packet{out(dns), in(quoting(d.dns(t, 6, nil), 8+12+6))}, nil, ignored},
		{"one of two questions with one id", []packet{out(dns), out(d.dns(t, 5, asking("www.test", 1))), in(b.unreachable(t, dns))},
			reported(kindDNS), counts{"requests": 2, "finished": 1}},
		{"seven octets", []packet{out(syn), in(quoting(syn, 7))}, nil, ignored},
		{"no octet", []packet{out(syn), in(b.icmp(t, kind, code))}, nil, ignored},

		{"another attempt's SYN", []packet{out(syn), in(b.unreachable(t, f.syn(t, 99)))}, nil, ignored},
		{"another socket's datagram", []packet{out(udp), in(b.unreachable(t, f.sourcePort(43211).udp(t, 1)))}, nil, ignored},
		{"another transaction", []packet{out(dns), in(b.unreachable(t, d.dns(t, 6, nil)))}, nil, ignored},
		{"another question", []packet{out(dns), in(b.unreachable(t, d.dns(t, 5, asking("www.test", 1))))}, nil, ignored},
		{"another echo", []packet{out(echo), in(b.unreachable(t, f.echo(t, 9, 2, false)))}, nil, ignored},
		{"a reply", []packet{out(echo), in(b.unreachable(t, f.echo(t, 9, 1, true)))}, nil, ignored},
		{"another protocol", []packet{out(syn), in(b.unreachable(t, f.raw(t, 132, make([]byte, 20)...)))}, nil, ignored},
		{"what was answered", []packet{out(syn), in(b.synAck(t, 101)), in(b.unreachable(t, syn))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1, "quote": 1}},
		{"a handshake half done", []packet{in(half.syn(t, 100)), out(half.back().synAck(t, 101)), out(half.back().unreachable(t, half.syn(t, 100)))},
			nil, ignored},
		// Its first octets are not a transport header, whatever they look like.
		{"a later fragment", []packet{out(udp), in(b.unreachable(t, fragment(udp, 100)))}, nil, ignored},

		// What comes after an error belongs to the same attempt.
		{"SYN again, and its answer", []packet{out(syn), in(b.unreachable(t, syn)), out(syn), in(b.synAck(t, 101))},
			append(reported(kindTCP), client(kindTCP, established).repeated(1).tooLate()), counts{"requests": 1, "finished": 1, "repeats": 1, "late": 1}},
		{"the same error again", []packet{out(syn), in(b.unreachable(t, syn)), in(b.unreachable(t, syn))},
			reported(kindTCP), counts{"requests": 1, "finished": 1, "quote": 1}},
		{"another datagram, and its answer", []packet{out(udp), in(b.unreachable(t, udp)), out(udp), in(b.udp(t, 1))},
			append(reported(ofUDP), client(ofUDP, answered).repeated(1).tooLate()), counts{"requests": 1, "finished": 1, "repeats": 1, "late": 1}},
		{"another query, answered", []packet{out(dns), in(b.unreachable(t, dns)), out(dns), in(d.back().answers(t, 5, 0))},
			append(reported(kindDNS), client(kindDNS, answered).again()), counts{"requests": 2, "finished": 2}},
		{"after the timeout", []packet{out(syn), timeout, in(b.unreachable(t, syn))},
			[]want{client(kindTCP, timedOut)}, counts{"requests": 1, "timed_out": 1, "quote": 1}},
		{"another attempt, answered", []packet{out(syn), in(b.unreachable(t, syn)), out(f.syn(t, 900)), in(b.synAck(t, 901))},
			append(reported(kindTCP), client(kindTCP, established)), counts{"requests": 2, "finished": 2}},
	}
	if v6 {
		return append(all, exchange{"behind an extension header", []packet{out(withExtensions(syn, destinationOptions)), in(b.unreachable(t, withExtensions(syn, destinationOptions)))},
			reported(kindTCP), ends})
	}
	return append(all,
		exchange{"behind IPv4 options", []packet{out(withOptions(syn, 10)), in(b.unreachable(t, withOptions(syn, 10)))}, reported(kindTCP), ends},
		exchange{"with IPv4 options of its own", []packet{out(syn), in(withOptions(b.unreachable(t, syn), 3))}, reported(kindTCP), ends},
		exchange{"a header of no length", []packet{out(syn), in(b.unreachable(t, patched(syn, 0, 0x40)))}, nil, ignored})
}
