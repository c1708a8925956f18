package flows

import "testing"

// hotPath is everything that may be done for every event, into a buffer with
// room. (Refresh is not, but is to be as free of garbage.)
func hotPath(tb testing.TB) map[string]func(dst []byte, e *Event) []byte {
	tcp := native(tb, tcpRecord())
	timeout := native(tb, timeoutRecord())
	dns := native(tb, dnsRecordOf(question(28, "www", "example", "com")))
	clock := NewClock()
	scratch := new(Event)
	must := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return map[string]func(dst []byte, e *Event) []byte{
		"JSON":      testHost.AppendJSON,
		"Journal":   testHost.AppendJournal,
		"Object":    AppendObjectUnit,
		"Text":      AppendText,
		"Line":      func(dst []byte, e *Event) []byte { return testHost.AppendLine(dst, e, true) },
		"ID":        testHost.AppendID,
		"FlowHash":  func(dst []byte, e *Event) []byte { return appendHex(dst, e.FlowHash()) },
		"Community": func(dst []byte, e *Event) []byte { return e.AppendCommunityID(dst) },
		"Decode":    func(dst []byte, e *Event) []byte { must(Decode(tcp, scratch)); return dst },
		"DecodeDNS": func(dst []byte, e *Event) []byte { must(Decode(dns, scratch)); return dst },
		"Timeout":   func(dst []byte, e *Event) []byte { must(Decode(timeout, scratch)); return dst },
		"Wall":      func(dst []byte, e *Event) []byte { scratch.Time = clock.Wall(uint64(clock.boottime())); return dst },
		"Refresh":   func(dst []byte, e *Event) []byte { clock.Refresh(); return dst },
	}
}

func TestAllocations(t *testing.T) {
	dst := make([]byte, 0, 1<<14)
	for name, run := range hotPath(t) {
		for _, s := range samples() {
			if n := testing.AllocsPerRun(10, func() { run(dst, &s.event) }); n != 0 {
				t.Errorf("%s of %s: %v allocations", name, s.name, n)
			}
		}
	}
}

func BenchmarkHotPath(b *testing.B) {
	e := dnsSample()
	dst := make([]byte, 0, 1<<14)
	for name, run := range hotPath(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				run(dst, &e)
			}
		})
	}
}
