package flows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// dnsRecord is struct flat_dns_record of bpf/record.h. C puts no padding
// between the members of these structs, and encoding/binary never does.
type dnsRecord struct {
	Record   Record
	Question [264]byte
}

func native(t testing.TB, v any) []byte {
	t.Helper()
	b, err := binary.Append(nil, binary.NativeEndian, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func port16(p uint16) [2]byte { return [2]byte{byte(p >> 8), byte(p)} }

func addr16(s string) [16]byte { return netip.MustParseAddr(s).As16() }

func tcpRecord() Record {
	return Record{
		Sequence: 107187, EndNS: 7_000_000_000, DurationNS: 1_234_567, RTTNS: 1_234_000,
		Source: addr16("192.0.2.10"), Destination: addr16("198.51.100.20"),
		SourcePort: port16(43210), DestinationPort: port16(443),
		Cgroup: 4711, UID: 33, Ifindex: 2, Repeats: 1, VLAN: 7,
		Kind: 1, Side: 1, Result: 1, Flags: 1 << 0, TTL: 57,
		PID: 4321, Comm: [16]byte{'c', 'u', 'r', 'l'},
	}
}

func dnsRecordOf(section []byte) dnsRecord {
	r := dnsRecord{Record: tcpRecord()}
	r.Record.Kind, r.Record.Result, r.Record.RCode, r.Record.ID = 2, 2, 3, 0x1234
	r.Record.QuestionLength = uint16(copy(r.Question[:259], section))
	return r
}

// timeoutRecord is a connection that got no answer within ten seconds.
func timeoutRecord() Record {
	r := tcpRecord()
	r.Result, r.EndNS, r.DurationNS, r.RTTNS, r.Flags, r.TTL = 5, 15_000_000_000, 10_000_000_000, 0, 0, 0
	return r
}

// If Go had padding where C has none, members would be read from elsewhere.
func TestRecordHasNoPadding(t *testing.T) {
	if members := len(native(t, Record{})); members != RecordSize {
		t.Errorf("the members have %d bytes, Record %d", members, RecordSize)
	}
}

func TestDecode(t *testing.T) {
	want := Event{
		Kind: KindTCP, Side: SideClient, Result: ResultEstablished,
		End: 7_000_000_000, Duration: 1_234_567, RTT: 1_234_000, HasRTT: true, Facts: Facts{Retransmits: 1, TTL: 57},
		Source:      netip.MustParseAddrPort("192.0.2.10:43210"),
		Destination: netip.MustParseAddrPort("198.51.100.20:443"),
		Interface:   Interface{Index: 2}, VLAN: 7, Sequence: 107187, Cgroup: 4711, UID: 33,
		Process: Process{PID: 4321, comm: [16]byte{'c', 'u', 'r', 'l'}},
	}
	got := dnsSample() // nothing of it may remain
	if err := Decode(native(t, tcpRecord()), &got); err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

// Every member of a record that is not spare makes a difference to an event.
func TestDecodeReadsEveryMember(t *testing.T) {
	dns, unreachable := dnsRecordOf(question(1, "example", "com")), dnsRecord{Record: tcpRecord()}
	unreachable.Record.Result = uint8(ResultUnreachable)
	translated := dnsRecord{Record: translatedRecord()}
	layout := reflect.TypeFor[Record]()
	for i := range layout.NumField() {
		member, read := layout.Field(i), false
		for _, base := range []dnsRecord{dns, unreachable, translated} {
			record := native(t, base)
			var was, is Event
			if err := Decode(record, &was); err != nil {
				t.Fatal(err)
			}
			for at := range member.Type.Size() {
				record[member.Offset+at] ^= 0x0f
			}
			read = read || Decode(record, &is) != nil || is != was
		}
		if read == strings.HasPrefix(member.Name, "Spare") {
			t.Errorf("%s makes a difference: %t", member.Name, read)
		}
	}
}

// Copies of records lie at any address.
func TestDecodeUnaligned(t *testing.T) {
	record := native(t, dnsRecordOf(question(1, "example", "com")))
	var want, got Event
	if err := Decode(record, &want); err != nil {
		t.Fatal(err)
	}
	for shift := 1; shift < 8; shift++ {
		moved := append(make([]byte, shift), record...)[shift:]
		if err := Decode(moved, &got); err != nil || got != want {
			t.Errorf("%d bytes further: got  %+v, %v\nwant %+v", shift, got, err, want)
		}
	}
}

// A timeout has a sequence and so the same kind of id as an answer.
func TestDecodeTimeout(t *testing.T) {
	want := Event{
		Kind: KindTCP, Side: SideClient, Result: ResultTimeout,
		End: 15_000_000_000, Limit: 10 * time.Second, Facts: Facts{Retransmits: 1},
		Source:      netip.MustParseAddrPort("192.0.2.10:43210"),
		Destination: netip.MustParseAddrPort("198.51.100.20:443"),
		Interface:   Interface{Index: 2}, VLAN: 7, Sequence: 107187, Cgroup: 4711, UID: 33,
		Process: Process{PID: 4321, comm: [16]byte{'c', 'u', 'r', 'l'}},
	}
	r := timeoutRecord()
	got := tcpSample()
	if err := Decode(native(t, r), &got); err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if id := string(testHost.AppendID(nil, &got)); id != "6f1c0d2e-107187" {
		t.Errorf("id %s", id)
	}

	r.Sequence, r.RequestID = 0, 0xa17 // left by layout 2
	want.Sequence, want.Request = 0, 0xa17
	if err := Decode(native(t, r), &got); err != nil || got != want {
		t.Errorf("of an earlier version: got  %+v, %v\nwant %+v", got, err, want)
	}
	if id := string(testHost.AppendID(nil, &got)); id != "6f1c0d2e-t0000000000000a17" {
		t.Errorf("id of an earlier version's: %s", id)
	}

	r.DurationNS = r.EndNS + 1 // before boot
	if err := Decode(native(t, r), &got); err != nil || got.Limit != 0 || got.Duration != 0 {
		t.Errorf("before boot: limit %s, duration %s, %v", got.Limit, got.Duration, err)
	}
}

// translatedRecord is a late answer to another address than the request's.
func translatedRecord() Record {
	r := tcpRecord()
	r.Flags |= RecordLate | RecordNATSource
	r.NAT, r.NATPort = addr16("172.30.0.2"), port16(39106)
	return r
}

func TestDecodeTranslated(t *testing.T) {
	r := translatedRecord()
	var e Event
	if err := Decode(native(t, r), &e); err != nil {
		t.Fatal(err)
	}
	if e.NATSource != netip.MustParseAddrPort("172.30.0.2:39106") || e.NATDestination.IsValid() || !e.Late {
		t.Errorf("source %s, destination %s, late %t", e.NATSource, e.NATDestination, e.Late)
	}

	r.Kind, r.Result, r.Flags = 4, 2, RecordNATDestination
	r.NAT = addr16("2001:db8::7")
	if err := Decode(native(t, r), &e); err != nil {
		t.Fatal(err)
	}
	if e.NATSource.IsValid() || e.NATDestination != netip.MustParseAddrPort("[2001:db8::7]:0") || e.Late {
		t.Errorf("an echo: source %s, destination %s, late %t", e.NATSource, e.NATDestination, e.Late)
	}
}

func TestDecodeFlags(t *testing.T) {
	r := tcpRecord()
	r.Kind, r.Result, r.Side, r.Flags = 3, 2, 2, 1<<1|1<<2
	r.Source = addr16("2001:db8::1")
	var e Event
	if err := Decode(native(t, r), &e); err != nil {
		t.Fatal(err)
	}
	if e.Kind != KindUDP || e.Side != SideServer || e.Result != ResultAnswered || !e.Ambiguous || !e.QUIC || e.HasRTT || e.RTT != 0 {
		t.Errorf("got %+v", e)
	}
	if e.Source.Addr() != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("source %s", e.Source)
	}
}

func TestDecodeDNS(t *testing.T) {
	var e Event
	if err := Decode(native(t, dnsRecordOf(question(28, "nowhere", "example"))), &e); err != nil {
		t.Fatal(err)
	}
	if e.DNS.ID != 0x1234 || e.ResultName() != "nxdomain" || e.DNS.Type != 28 || nameOf(e.DNS) != "nowhere.example" {
		t.Errorf("got %+v", e.DNS)
	}
	r := dnsRecordOf(nil)
	r.Record.RCode = 0xf017 // four bits more than there can be
	if err := Decode(native(t, r), &e); err != nil || e.DNS.RCode != 23 || e.ResultName() != "badcookie" || !e.Failed() {
		t.Errorf("extended: %d, %s, failed %t, %v", e.DNS.RCode, e.ResultName(), e.Failed(), err)
	}
}

// The ring's memory is used again: behind the question is the last one's rest.
func TestDecodeQuestionEnds(t *testing.T) {
	r := dnsRecordOf(question(1, "example", "com"))
	r.Record.QuestionLength = 8 // within the name
	var e Event
	if err := Decode(native(t, r), &e); err != nil || e.DNS.HasQuestion() {
		t.Errorf("got %q, %v", nameOf(e.DNS), err)
	}
}

// An echo's identifier is not a port.
func TestDecodeEcho(t *testing.T) {
	r := tcpRecord()
	r.Kind, r.Result, r.ID = 4, 2, 0xbeef0001
	var e Event
	if err := Decode(native(t, r), &e); err != nil || e.Source.Port() != 0 || e.Destination.Port() != 0 || e.DNS.ID != 0 {
		t.Errorf("got %+v, %v", e, err)
	}
}

// Clocks that disagree must not become a huge number.
func TestDecodeClockAnomaly(t *testing.T) {
	tests := []struct {
		name          string
		duration, rtt uint64
		wantDuration  time.Duration
		wantRTT       bool
	}{
		{"ran backwards", math.MaxUint64, 5, 0, false},
		{"before boot", 7_000_000_001, 5, 0, false},
		{"round trip longer than all", 10, 11, 10, false},
		{"since boot", 7_000_000_000, 5, 7 * time.Second, true},
	}
	for _, test := range tests {
		r := tcpRecord()
		r.DurationNS, r.RTTNS = test.duration, test.rtt
		var e Event
		if err := Decode(native(t, r), &e); err != nil || e.Duration != test.wantDuration || e.HasRTT != test.wantRTT {
			t.Errorf("%s: %v, %v, %v", test.name, e.Duration, e.HasRTT, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	record := func(change func(*Record)) []byte {
		r := tcpRecord()
		change(&r)
		return native(t, r)
	}
	tests := []struct {
		name   string
		record []byte
		want   error
	}{
		{"nothing", nil, ErrShort},
		{"a byte missing", native(t, tcpRecord())[:RecordSize-1], ErrShort},
		{"kind 0", record(func(r *Record) { r.Kind = 0 }), ErrKind},
		{"kind beyond the last", record(func(r *Record) { r.Kind = uint8(len(ExchangeKinds()) + 1) }), ErrKind},
		{"kind of status", record(func(r *Record) { r.Kind = 255 }), ErrKind},
		{"side 0", record(func(r *Record) { r.Side = 0 }), ErrSide},
		{"side 3", record(func(r *Record) { r.Side = 3 }), ErrSide},
		{"result 0", record(func(r *Record) { r.Result = 0 }), ErrResult},
		{"result 6", record(func(r *Record) { r.Result = 6 }), ErrResult},
		{"DNS without question", record(func(r *Record) { r.Kind, r.QuestionLength = 2, 1 }), ErrShort},
		{"question beyond the record", func() []byte {
			r := dnsRecordOf(nil)
			r.Record.QuestionLength = 265
			return native(t, r)
		}(), ErrShort},
	}
	for _, test := range tests {
		e := dnsSample()
		if err := Decode(test.record, &e); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
		if !e.Time.IsZero() || e.DNS.HasQuestion() || e.Owner != nil {
			t.Errorf("%s: left %+v", test.name, e)
		}
	}
}

// Whatever comes from the ring is refused, or written in forms that parse.
func FuzzDecode(f *testing.F) {
	schema := compileSchema(f)
	f.Add(native(f, tcpRecord()), "eth0")
	f.Add(native(f, timeoutRecord()), "eth0")
	f.Add(native(f, translatedRecord()), "eth0")
	f.Add(native(f, dnsRecordOf(question(1, "example", "com"))), "\x1b\n\"")
	f.Add(native(f, dnsRecordOf(question(1, strings.Repeat("\n", 63)))), "")
	f.Fuzz(func(t *testing.T, record []byte, name string) {
		var e Event
		before := bytes.Clone(record)
		if err := Decode(record, &e); err != nil {
			return
		}
		if !bytes.Equal(record, before) {
			t.Error("the record was changed")
		}
		e.Time, e.Interface.Name, e.Owner = testTime, name, OwnerOf("/"+name)
		checkForms(t, &e, func(doc map[string]any) error { return schema.Validate(doc) })
	})
}

// checkForms writes an event in every form and reads it back.
func checkForms(t *testing.T, e *Event, validate func(map[string]any) error) {
	t.Helper()
	text := testHost.AppendJSON(nil, e)
	checkPrintable(t, text)
	if err := validate(parseJSON(t, text)); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
	checkJournal(t, testHost.AppendJournal(nil, e))
	checkPrintable(t, AppendText(nil, e))
	checkPrintable(t, testHost.AppendLine(nil, e, false))
}

func TestDecodeServer(t *testing.T) {
	r := tcpRecord()
	r.Side, r.ClientRTTNS = 2, 20_000_000
	var e Event
	if err := Decode(native(t, r), &e); err != nil {
		t.Fatal(err)
	}
	if e.ClientRTT != 20*time.Millisecond || e.HasRTT || e.Duration != 1_234_567 {
		t.Errorf("client rtt %s, own %s (%t), duration %s", e.ClientRTT, e.RTT, e.HasRTT, e.Duration)
	}
}

func TestDecodeUnreachable(t *testing.T) {
	r := tcpRecord()
	r.Result, r.ICMPType, r.ICMPCode = 4, 3, 13
	var e Event
	if err := Decode(native(t, r), &e); err != nil {
		t.Fatal(err)
	}
	if e.ResultName() != "unreachable" || e.ICMPType != 3 || e.ICMPCode != 13 || !e.Failed() {
		t.Errorf("%s, type %d code %d", e.ResultName(), e.ICMPType, e.ICMPCode)
	}
	if got := string(AppendText(nil, &e)); !strings.Contains(got, "unreachable (prohibited by a filter)") {
		t.Errorf("text %q", got)
	}
}
