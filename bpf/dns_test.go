package bpf

import (
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

	return []exchange{
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
		{"A and AAAA in flight on one socket", []packet{out(d.dns(t, 5, typed(1))), out(d.dns(t, 6, typed(28))), in(b.answers(t, 6, 3)), in(b.answers(t, 5, 0))},
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
	}
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
	return string(raw[flows.RecordSize:][:length])
}

func TestRecordCarriesTheQuestion(t *testing.T) {
	k := openKernel(t)
	f := flow6.port(53)
	k.out(f.dns(t, 5, nil))
	k.in(f.back().answers(t, 5, 0))
	if got := k.asked(); got != question {
		t.Errorf("question %q, want %q", got, question)
	}
}

// The question of a request is kept for an answer that leaves it out, and for
// none.
func TestAQuestionOutlivesItsRequest(t *testing.T) {
	k := openKernel(t)
	k.out(flow4.port(53).dns(t, 5, nil))
	var asked []byte
	if _, err := k.Sweep(BootTime()+uint64(time.Minute), time.Second, func(_ uint8, _, _, question []byte) { asked = question }); err != nil {
		t.Fatal(err)
	}
	if string(asked) != question {
		t.Errorf("the timeout asked %q, want %q", asked, question)
	}
	k.out(flow4.port(53).dns(t, 6, nil))
	k.in(flow4.port(53).back().dns(t, 6, func(h *layers.DNS) { h.QR, h.QDCount, h.Questions, h.ResponseCode = true, 0, nil, 2 }))
	if got := k.asked(); got != question {
		t.Errorf("the answer asked %q, want %q", got, question)
	}
}

// A name takes 255 octets at most; what follows a longer section is not kept.
func TestLongQuestionsAreBounded(t *testing.T) {
	k := openKernel(t)
	d := flow4.port(53)
	long := append([]byte{0, 5, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0}, make([]byte, 600)...)
	k.out(d.dns(t, 5, nil))
	k.in(d.back().udp(t, long...))
	if got := len(k.asked()); got != 259 {
		t.Errorf("%d octets of question, want 259", got)
	}
}

func TestAnAnswerAfterTheTimeoutIsLate(t *testing.T) {
	k := openKernel(t)
	d := flow6.port(53)
	k.out(d.dns(t, 5, nil))
	if swept, _ := k.sweep(11*time.Second, 10*time.Second); swept.TimedOut != 1 {
		t.Fatalf("swept %+v", swept)
	}
	k.in(d.back().answers(t, 5, 0))
	k.counted(counts{"requests": 1, "timed_out": 1, "late": 1})
}
