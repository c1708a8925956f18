package bpf

import (
	"bytes"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/flatd/flatd/flows"
)

func dnsExchanges(t testing.TB, f flow) []exchange {
	d := f.port(53)
	b := d.back()
	typed := func(kind layers.DNSType) func(*layers.DNS) {
		return func(h *layers.DNS) { h.Questions[0].Type = kind }
	}
	edns := func(answer bool) func(*layers.DNS) {
		return func(h *layers.DNS) {
			h.QR, h.ARCount = answer, 1
			h.Additionals = []layers.DNSResourceRecord{{Type: layers.DNSTypeOPT, Class: 1232}}
		}
	}
	noQuestion := func(answer bool) func(*layers.DNS) {
		return func(h *layers.DNS) { h.QR, h.QDCount, h.Questions = answer, 0, nil }
	}
	truncated := func(h *layers.DNS) { h.QR, h.TC = true, true }
	other := d.sourcePort(43211) // another socket
	second := d
	second.to = f.from // another server
	second = second.port(53)
	one := client(kindDNS, answered)
	passes := counts{"requests": 1, "finished": 1}

	return append(questionExchanges(t, d), []exchange{
		{"answered", []packet{out(d.dns(t, 5, nil)), in(b.answers(t, 5, 0))},
			[]want{one}, passes},
		{"asked", []packet{in(d.dns(t, 5, nil)), out(b.answers(t, 5, 0))},
			[]want{server(kindDNS, answered)}, passes},
		{"servfail", []packet{out(d.dns(t, 5, nil)), in(b.answers(t, 5, 2))},
			[]want{one.coded(2)}, passes},
		{"nxdomain", []packet{out(d.dns(t, 5, nil)), in(b.answers(t, 5, 3))},
			[]want{one.coded(3)}, passes},
		{"refused", []packet{in(d.dns(t, 5, nil)), out(b.answers(t, 5, 5))},
			[]want{server(kindDNS, answered).coded(5)}, passes},
		{"A and AAAA in flight on one socket", []packet{out(d.dns(t, 5, typed(1))), out(d.dns(t, 6, typed(28))), in(b.answers(t, 6, 3)),
			in(b.dns(t, 5, func(h *layers.DNS) { typed(1)(h); h.QR = true }))},
			[]want{one.coded(3), one}, counts{"requests": 2, "finished": 2}},
		{"one transaction id on two sockets", []packet{out(d.dns(t, 5, nil)), out(other.dns(t, 5, nil)), in(other.back().answers(t, 5, 3)), in(b.answers(t, 5, 0))},
			[]want{one.coded(3), one}, counts{"requests": 2, "finished": 2}},
		{"sent again", []packet{out(d.dns(t, 5, nil)), out(d.dns(t, 5, nil)), in(b.answers(t, 5, 0))},
			[]want{one.repeated(1)}, counts{"requests": 1, "finished": 1, "repeats": 1}},
		{"answered twice", []packet{out(d.dns(t, 5, nil)), in(b.answers(t, 5, 0)), in(b.answers(t, 5, 0))},
			[]want{one}, counts{"requests": 1, "finished": 1, "unmatched": 1}},
		{"another transaction's answer", []packet{out(d.dns(t, 5, nil)), in(b.answers(t, 6, 0))},
			nil, counts{"requests": 1, "unmatched": 1}},
		{"another server's answer", []packet{out(d.dns(t, 5, nil)), in(second.back().answers(t, 5, 0))},
			nil, counts{"requests": 1, "unmatched": 1}},
		{"answer in the request's direction", []packet{out(d.dns(t, 5, nil)), out(b.answers(t, 5, 0))},
			nil, counts{"requests": 1, "unmatched": 1}},
		{"between two servers", []packet{out(d.sourcePort(53).dns(t, 5, nil)), in(d.sourcePort(53).back().answers(t, 5, 0))},
			[]want{one}, passes},

		{"EDNS", []packet{out(d.dns(t, 5, edns(false))), in(b.dns(t, 5, edns(true)))},
			[]want{one}, passes},
		{"truncated", []packet{out(d.dns(t, 5, nil)), in(b.dns(t, 5, truncated))},
			[]want{one.cut()}, passes},
		{"answer without question", []packet{out(d.dns(t, 5, nil)), in(b.dns(t, 5, noQuestion(true)))},
			[]want{one}, passes},
		{"no question at all", []packet{out(d.dns(t, 5, noQuestion(false))), in(b.dns(t, 5, noQuestion(true)))},
			[]want{one}, passes},
		{"name of pointers to itself", []packet{out(d.udp(t, garbled(false)...)), in(b.udp(t, garbled(true)...))},
			[]want{one}, passes},
		{"questions promised, none there", []packet{out(d.udp(t, garbled(false)[:12]...)), in(b.udp(t, garbled(true)[:12]...))},
			[]want{one}, passes},
		{"answer in fragments", []packet{out(d.dns(t, 5, nil)), in(fragment(b.answers(t, 5, 0), 0)), in(fragment(b.answers(t, 5, 0), 100))},
			[]want{one}, counts{"requests": 1, "finished": 1, "fragment": 1}},

		{"shorter than a header", []packet{out(d.udp(t, garbled(false)[:11]...)), in(b.udp(t)), out(d.udp(t, 1, 2, 3))},
			nil, counts{"dns_other": 3}},
		{"question from the DNS port", []packet{in(b.dns(t, 5, nil))}, nil, counts{"dns_other": 1}},
		{"answer to the DNS port", []packet{out(d.answers(t, 5, 0))}, nil, counts{"dns_other": 1}},

		// Questions to a group, answered by one host (RFC 6762, RFC 4795, SSDP).
		{"mDNS", []packet{out(f.group(5353).sourcePort(5353).dns(t, 0, nil)), in(f.group(5353).sourcePort(5353).answers(t, 0, 0))},
			nil, counts{"multicast": 2}},
		{"mDNS, answered by one host", []packet{out(f.group(5353).dns(t, 5, nil)), in(f.port(5353).back().answers(t, 5, 0))},
			nil, counts{"multicast": 2}},
		{"mDNS, asked of one host", []packet{out(f.port(5353).dns(t, 5, nil)), in(f.port(5353).back().answers(t, 5, 0))},
			nil, counts{"multicast": 2}},
		{"LLMNR, answered by one host", []packet{out(f.group(5355).dns(t, 5, nil)), in(f.port(5355).back().answers(t, 5, 0))},
			nil, counts{"multicast": 2}},
		{"SSDP, answered by one host", []packet{out(f.group(1900).udp(t, 1)), in(f.port(1900).back().udp(t, 1))},
			nil, counts{"multicast": 2}},
		{"DNS to a group", []packet{out(f.group(53).dns(t, 5, nil))},
			nil, counts{"multicast": 1}},
	}...)
}

// asking gives a message another question, of which nothing else differs.
func asking(name string, kind layers.DNSType) func(*layers.DNS) {
	return func(h *layers.DNS) { h.Questions[0].Name, h.Questions[0].Type = []byte(name), kind }
}

// answering makes it an answer, with a response code.
func answering(rcode uint8, question func(*layers.DNS)) func(*layers.DNS) {
	return func(h *layers.DNS) {
		question(h)
		h.QR, h.ResponseCode = true, layers.DNSResponseCode(rcode)
	}
}

// questionExchanges are about what makes two exchanges of one socket and one id: the
// question. d is the flow of a query.
func questionExchanges(t testing.TB, d flow) (all []exchange) {
	const a, aaaa = 1, 28
	b := d.back()
	none := func(h *layers.DNS) { h.QDCount, h.Questions = 0, nil }
	www, forged := asking("www.test", a), asking("victim.test", a)
	both := counts{"requests": 2, "finished": 2}

	for _, side := range []struct {
		name      string
		ask, tell func([]byte) packet
		one       want
	}{
		{"this host asks", out, in, client(kindDNS, answered)},
		{"this host is asked", in, out, server(kindDNS, answered)},
	} {
		ask := func(id uint16, question func(*layers.DNS)) packet { return side.ask(d.dns(t, id, question)) }
		tell := func(id uint16, rcode uint8, question func(*layers.DNS)) packet {
			return side.tell(b.dns(t, id, answering(rcode, question)))
		}
		one := side.one
		lost := side.one
		lost.result = timedOut
		for _, e := range []exchange{
			// A client whose id is constant, and a forwarder whose ids come round.
			{"two questions with one id", []packet{ask(0, www), ask(0, asking("www.test", aaaa)), tell(0, 0, www), tell(0, 3, asking("www.test", aaaa))},
				[]want{one, one.coded(3)}, both},
			{"two questions with one id, answered in the other order", []packet{ask(7, www), ask(7, asking("mail.test", a)), tell(7, 2, asking("mail.test", a)), tell(7, 0, www)},
				[]want{one.coded(2), one}, both},
			{"one question of two classes", []packet{
				ask(7, www), ask(7, func(h *layers.DNS) { www(h); h.Questions[0].Class = layers.DNSClassCH }), tell(7, 0, www)},
				[]want{one}, counts{"requests": 2, "finished": 1}},
			{"one question with two ids", []packet{ask(7, www), ask(8, www), tell(8, 3, www), tell(7, 0, www)},
				[]want{one.coded(3), one}, both},

			// The answer to another question is no answer.
			{"another question's answer first", []packet{ask(7, www), tell(7, 0, forged), tell(7, 3, www)},
				[]want{one.coded(3)}, counts{"requests": 1, "finished": 1, "wrong_question": 1}},
			{"another question's answer alone", []packet{ask(7, www), tell(7, 0, forged)},
				nil, counts{"requests": 1, "wrong_question": 1}},
			{"another type's answer", []packet{ask(7, www), tell(7, 0, asking("www.test", aaaa))},
				nil, counts{"requests": 1, "wrong_question": 1}},
			{"another name's answer, of the same length", []packet{ask(7, www), tell(7, 0, asking("wwx.test", a))},
				nil, counts{"requests": 1, "wrong_question": 1}},

			// FORMERR, REFUSED and the like may leave it out.
			{"answer without question, one is open", []packet{ask(7, www), tell(7, 1, none)},
				[]want{one.coded(1)}, counts{"requests": 1, "finished": 1}},
			{"answer without question, two are open", []packet{ask(7, www), ask(7, forged), tell(7, 1, none), tell(7, 0, www)},
				[]want{one}, counts{"requests": 2, "finished": 1, "unmatched": 1}},
			{"answer without question, two were open", []packet{ask(7, www), ask(7, forged), tell(7, 0, www), tell(7, 1, none)},
				[]want{one, one.coded(1)}, both},
			{"answer without question, of another id", []packet{ask(7, www), tell(8, 1, none)},
				nil, counts{"requests": 1, "unmatched": 1}},
			{"answer without question, of no id", []packet{ask(7, www), tell(0, 1, none)},
				nil, counts{"requests": 1, "unmatched": 1}},
			{"answer without question, nothing is open", []packet{ask(7, www), tell(7, 0, www), tell(7, 1, none)},
				[]want{one}, counts{"requests": 1, "finished": 1, "unmatched": 1}},
			{"request without question, answered with one", []packet{ask(7, none), tell(7, 0, www)},
				nil, counts{"requests": 1, "wrong_question": 1}},

			// Letters are alike in both cases (RFC 4343), whatever else is in the name.
			{"name in capitals", []packet{ask(7, asking("WWW.example.TEST", a)), tell(7, 0, asking("www.EXAMPLE.test", a))},
				[]want{one}, counts{"requests": 1, "finished": 1}},
			{"name sent again in capitals", []packet{ask(7, asking("a-Z.test", a)), ask(7, asking("A-z.test", a)), tell(7, 0, asking("a-z.test", a))},
				[]want{one.repeated(1)}, counts{"requests": 1, "finished": 1, "repeats": 1}},
			{"no letters: @ and `, [ and {", []packet{ask(7, asking("@[.test", a)), tell(7, 0, asking("`{.test", a))},
				nil, counts{"requests": 1, "wrong_question": 1}},
			{"no ASCII", []packet{ask(7, asking("\xc1\xda.test", a)), tell(7, 0, asking("\xe1\xfa.test", a))},
				nil, counts{"requests": 1, "wrong_question": 1}},
			{"the root", []packet{ask(7, asking("", 2)), tell(7, 0, asking("", 2))},
				[]want{one}, counts{"requests": 1, "finished": 1}},

			// A key whose request timed out is free at once.
			{"never answered", []packet{ask(7, www), timeout},
				[]want{lost}, counts{"requests": 1, "timed_out": 1}},
			{"answered too late", []packet{ask(7, www), timeout, tell(7, 0, www)},
				[]want{lost, one.tooLate()}, counts{"requests": 1, "timed_out": 1, "late": 1}},
			{"answered too late, twice", []packet{ask(7, www), timeout, tell(7, 0, www), tell(7, 0, www)},
				[]want{lost, one.tooLate()}, counts{"requests": 1, "timed_out": 1, "late": 1, "unmatched": 1}},
			{"asked anew after a timeout, with the same id", []packet{ask(7, www), timeout, ask(7, www), tell(7, 0, www), ask(7, www), tell(7, 3, www)},
				[]want{lost, one.again(), one.coded(3)}, counts{"requests": 3, "timed_out": 1, "finished": 2}},
			{"each question of one id times out, until one is answered", []packet{
				ask(2, asking("name0.test", a)), timeout, ask(2, asking("name1.test", a)), timeout,
				ask(2, asking("name2.test", a)), tell(2, 0, asking("name2.test", a))},
				[]want{lost, lost, one}, counts{"requests": 3, "timed_out": 2, "finished": 1}},
			{"a timeout, and again a timeout", []packet{ask(7, www), timeout, ask(7, www), timeout},
				[]want{lost, lost.again()}, counts{"requests": 2, "timed_out": 2}},
			{"another question's answer after the timeout", []packet{ask(7, www), timeout, tell(7, 0, forged)},
				[]want{lost}, counts{"requests": 1, "timed_out": 1, "unmatched": 1}},
			{"sent again, then a timeout", []packet{ask(7, www), ask(7, www), timeout},
				[]want{lost.repeated(1)}, counts{"requests": 1, "repeats": 1, "timed_out": 1}},
		} {
			e.name += ", " + side.name
			all = append(all, e)
		}
	}
	return all
}

// garbled is a message whose only name points to itself (RFC 1035, 4.1.4).
func garbled(answer bool) []byte {
	message := []byte{0, 5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1}
	if answer {
		message[2] |= 0x80
	}
	return message
}

const question = "\x07example\x03com\x00\x00\x1c\x00\x01"

// asked is the question section of the one DNS record there must be.
func (k *kernel) asked() string {
	k.t.Helper()
	raw, ok := k.next()
	if !ok {
		k.t.Fatal("no record")
	}
	length := (*kernelFlatRecord)(ptr(raw)).QuestionLength
	behind := raw[flows.RecordSize:]
	if rest := behind[length:]; len(bytes.Trim(rest, "\x00")) != 0 {
		k.t.Errorf("behind the question: % x", rest)
	}
	return string(behind[:length])
}

func TestRecordCarriesTheQuestion(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		f := flow6.port(53)
		edns := func(h *layers.DNS) {
			h.ARCount, h.Additionals = 1, []layers.DNSResourceRecord{{Type: layers.DNSTypeOPT, Class: 1232}}
		}
		k.out(f.dns(t, 5, edns))
		k.in(f.back().dns(t, 5, func(h *layers.DNS) { edns(h); h.QR = true }))
		if got := k.asked(); got != question {
			t.Errorf("question %q, want %q", got, question)
		}
		k.in(f.dns(t, 6, edns))
		k.timeOutAll()
		if got := k.asked(); got != question {
			t.Errorf("question %q of a timeout, want %q", got, question)
		}
	})
}

// The question of a request is kept for an answer that leaves it out, and for
// none.
func TestAQuestionOutlivesItsRequest(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		k.out(flow4.port(53).dns(t, 5, nil))
		k.timeOutAll()
		if got := k.asked(); got != question {
			t.Errorf("the timeout asked %q, want %q", got, question)
		}
		k.out(flow4.port(53).dns(t, 6, nil))
		k.in(flow4.port(53).back().dns(t, 6, func(h *layers.DNS) { h.QR, h.QDCount, h.Questions, h.ResponseCode = true, 0, nil, 2 }))
		if got := k.asked(); got != question {
			t.Errorf("the answer asked %q, want %q", got, question)
		}
	})
}

// message is a DNS message with this question behind its header, and what follows.
func message(answer bool, question []byte, rest ...byte) []byte {
	header := []byte{0, 5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	if answer {
		header[2] |= 0x80
	}
	return append(append(header, question...), rest...)
}

// named is a question with a name of so many octets.
func named(octets int) (question []byte) {
	for left := octets - 1; left > 0; {
		label := min(63, left-1)
		if left-1-label == 1 {
			label-- // the next one would have no octet
		}
		question = append(append(question, byte(label)), bytes.Repeat([]byte{'x'}, label)...)
		left -= 1 + label
	}
	return append(question, 0, 0, 1, 0, 1)
}

// A name takes 255 octets at most (RFC 1035, 2.3.4). One that is longer, or does not
// end, is no question.
func TestQuestionsEndWhereTheySay(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		d := flow4.port(53)
		short := append(bytes.Repeat([]byte{1, 'x'}, 127), 0, 0, 1, 0, 1)
		for name, c := range map[string]struct {
			question []byte
			want     int
		}{
			"the root":                 {[]byte{0, 0, 2, 0, 1}, 5},
			"254 octets":               {named(254), 258},
			"255 octets":               {named(255), 259},
			"255 octets in 127 labels": {short, 259},
			"256 octets":               {named(256), 0},
			"no end":                   {bytes.Repeat([]byte{1}, 300), 0},
			"a pointer":                {[]byte{3, 'w', 'w', 'w', 0xc0, 12, 0, 1, 0, 1}, 0},
			"a label of 64":            {append(append([]byte{64}, make([]byte, 64)...), 0, 0, 1, 0, 1), 0},
			"no class":                 {[]byte{1, 'x', 0, 0, 1}, 0},
		} {
			t.Run(name, func(t *testing.T) {
				k.t = t
				for range 2 {
					k.clear()
					rest := bytes.Repeat([]byte{0xff}, 40)
					if name == "no class" {
						rest = nil
					}
					k.out(d.udp(t, message(false, c.question, rest...)...))
					k.in(d.back().udp(t, message(true, c.question, rest...)...))
					if got := k.asked(); len(got) != c.want || got != string(c.question[:c.want]) {
						t.Errorf("question %q, want the first %d octets of %q", got, c.want, c.question)
					}
				}
			})
		}
	})
}

// What user space hashes for a take-over is what the programs do.
func TestQuestionHashIsThatOfThePrograms(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		d := flow6.port(53)
		for _, question := range [][]byte{named(3), named(8), named(9), named(16), named(64), named(254), named(255), named(256), {0, 0, 1, 0, 1},
			[]byte("\x03WwW\x07eXample\x03\xc1@[\x00\x00\x1c\x00\x01"), {0xc0, 12, 0, 1, 0, 1}} {
			k.clear()
			k.out(d.udp(t, message(false, question)...))
			r := k.openRequests()[0]
			if want := uint64(kindDNS)<<kindShift | 5<<dnsIDShift | questionHash(k.shared.Seed, question); r.Key.Id != want {
				t.Errorf("%q: id %#x, want %#x", question, r.Key.Id, want)
			}
			if want := keyHash(k.shared.Seed, &r.Key); r.hash != want {
				t.Errorf("%q: hash %#x, want %#x", question, r.hash, want)
			}
		}
	})
}

// extended is an answer whose response code has its upper bits in the OPT record (RFC
// 6891, 6.1.3).
func (f flow) extended(t testing.TB, id uint16, rcode uint16) []byte {
	return f.dns(t, id, func(h *layers.DNS) {
		h.QR, h.ResponseCode, h.ARCount = true, layers.DNSResponseCode(rcode&0xf), 1
		h.Additionals = []layers.DNSResourceRecord{{Type: layers.DNSTypeOPT, Class: 1232, TTL: uint32(rcode>>4) << 24}}
	})
}

// BADVERS and BADCOOKIE (RFC 7873, 8) are failures, which no sampling and no
// min_duration leaves out.
func TestExtendedCodesAreNeverSampledAway(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		if err := k.Apply(Settings{Sample: 1 << 30, MinDuration: time.Hour}); err != nil {
			t.Fatal(err)
		}
		for _, f := range []flow{flow4, flow6} {
			d := f.port(53)
			id := uint16(0)
			for _, rcode := range []uint16{16, 23, 0xff0, 0xfff} { // BADVERS, BADCOOKIE
				for _, packets := range [][2]func([]byte){{k.out, k.in}, {k.in, k.out}} {
					id++
					packets[0](d.dns(t, id, nil))
					packets[1](d.back().extended(t, id, rcode))
					if r := k.one(); r.Rcode != rcode || r.Result != answered {
						t.Errorf("response code %d, want %d", r.Rcode, rcode)
					}
					packets[0](d.dns(t, id, nil))
					packets[1](d.back().extended(t, id, 0))
				}
			}
			k.counted(counts{"requests": 16, "finished": 16, "too_fast": 8})
		}
		if err := k.Apply(Settings{SkipResults: []Result{DNSResult(23)}}); err != nil {
			t.Fatal(err)
		}
		for rcode, out := range map[uint16]uint64{16: 0, 23: 1, 7: 0} {
			k.out(flow4.port(53).dns(t, 5, nil))
			k.in(flow4.port(53).back().extended(t, 5, rcode))
			want := counts{"requests": 1, "finished": 1}
			if out > 0 {
				want["result_out"] = out
			}
			k.counted(want)
		}
		k.balanced()
	})
}
