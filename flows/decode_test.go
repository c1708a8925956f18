package flows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// cRecord is struct flat_record of bpf/record.h, member by member. C puts no
// padding between them, encoding/binary never does.
type cRecord struct {
	Sequence, EndNS, DurationNS, RTTNS    uint64
	ClientRTTNS, Cgroup                   uint64
	Source, Destination                   [16]byte
	SourcePort, DestinationPort           [2]byte
	Ifindex, ID, Repeats, UID             uint32
	VLAN                                  uint16
	Kind, Side, Result, Flags, TTL, RCode uint8
	ICMPType, ICMPCode                    uint8
	QuestionLength                        uint16
	Comm                                  [16]byte
	PID                                   uint32
	Reserved                              uint32
}

type cDNSRecord struct {
	Record   cRecord
	Question [264]byte
}

// cKey and cPending are struct flat_key and flat_pending of bpf/maps.h.
type cKey struct {
	Local, Remote         [16]byte
	LocalPort, RemotePort [2]byte
	ID, Ifindex, Kind     uint32
}

type cPending struct {
	FirstNS, LastNS, Seal, Cgroup uint64
	UID, ISN                      uint32
	Payload                       uint16
	Answers, Flags                uint8
	FirstTSVal, LastTSVal         uint32
	Repeats, Ifindex              uint32
	VLAN                          uint16
	State, TTL                    uint8
	Lock, PID                     uint32
	Comm                          [16]byte
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

func tcpRecord() cRecord {
	return cRecord{
		Sequence: 107187, EndNS: 7_000_000_000, DurationNS: 1_234_567, RTTNS: 1_234_000,
		Source: addr16("192.0.2.10"), Destination: addr16("198.51.100.20"),
		SourcePort: port16(43210), DestinationPort: port16(443),
		Cgroup: 4711, UID: 33, Ifindex: 2, Repeats: 1, VLAN: 7,
		Kind: 1, Side: 1, Result: 1, Flags: 1 << 0, TTL: 57,
		PID: 4321, Comm: [16]byte{'c', 'u', 'r', 'l'},
	}
}

func dnsRecord(section []byte) cDNSRecord {
	r := cDNSRecord{Record: tcpRecord()}
	r.Record.Kind, r.Record.Result, r.Record.RCode, r.Record.ID = 2, 2, 3, 0x1234
	r.Record.QuestionLength = uint16(copy(r.Question[:259], section))
	return r
}

func TestSizes(t *testing.T) {
	for name, sizes := range map[string][2]int{
		"flat_record":     {len(native(t, cRecord{})), RecordSize},
		"flat_dns_record": {len(native(t, cDNSRecord{})), 400},
		"flat_key":        {len(native(t, cKey{})), KeySize},
		"flat_pending":    {len(native(t, cPending{})), PendingSize},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s: %d bytes, want %d", name, sizes[0], sizes[1])
		}
	}
}

func TestDecode(t *testing.T) {
	want := Event{
		Kind: KindTCP, Side: SideClient, Result: ResultEstablished,
		End: 7_000_000_000, Duration: 1_234_567, RTT: 1_234_000, HasRTT: true, Retransmits: 1,
		Source:      netip.MustParseAddrPort("192.0.2.10:43210"),
		Destination: netip.MustParseAddrPort("198.51.100.20:443"),
		Interface:   Interface{Index: 2}, VLAN: 7, TTL: 57, Sequence: 107187, Cgroup: 4711, UID: 33,
		Process: Process{PID: 4321, comm: [16]byte{'c', 'u', 'r', 'l'}},
	}
	got := dnsSample() // nothing of it may remain
	if err := Decode(native(t, tcpRecord()), &got); err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
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
	if err := Decode(native(t, dnsRecord(question(28, "nowhere", "example"))), &e); err != nil {
		t.Fatal(err)
	}
	if e.DNS.ID != 0x1234 || e.ResultName() != "nxdomain" || e.DNS.Type != 28 || nameOf(e.DNS) != "nowhere.example" {
		t.Errorf("got %+v", e.DNS)
	}
}

// The ring's memory is used again: behind the question is the last one's rest.
func TestDecodeQuestionEnds(t *testing.T) {
	r := dnsRecord(question(1, "example", "com"))
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
	record := func(change func(*cRecord)) []byte {
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
		{"a byte missing", native(t, tcpRecord())[:95], ErrShort},
		{"kind 0", record(func(r *cRecord) { r.Kind = 0 }), ErrKind},
		{"kind 5", record(func(r *cRecord) { r.Kind = 5 }), ErrKind},
		{"kind of status", record(func(r *cRecord) { r.Kind = 255 }), ErrKind},
		{"side 0", record(func(r *cRecord) { r.Side = 0 }), ErrSide},
		{"side 3", record(func(r *cRecord) { r.Side = 3 }), ErrSide},
		{"result 0", record(func(r *cRecord) { r.Result = 0 }), ErrResult},
		{"timeout from the kernel", record(func(r *cRecord) { r.Result = 5 }), ErrResult},
		{"DNS without question", record(func(r *cRecord) { r.Kind, r.QuestionLength = 2, 1 }), ErrShort},
		{"question beyond the record", func() []byte {
			r := dnsRecord(nil)
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

func pendingDNS() (cKey, cPending) {
	return cKey{
			Local: addr16("192.0.2.10"), Remote: addr16("198.51.100.53"),
			LocalPort: port16(33333), RemotePort: port16(53), ID: 0x1234, Kind: 2,
		}, cPending{
			FirstNS: 5_000_000_000, LastNS: 6_000_000_000, Repeats: 3, Ifindex: 2, VLAN: 7, TTL: 64, Flags: 1 << 2,
			Cgroup: 4711, UID: 33,
		}
}

func TestDecodePending(t *testing.T) {
	key, value := pendingDNS()
	want := Event{
		Kind: KindDNS, Side: SideClient, Result: ResultTimeout,
		End: 15_000_000_000, Limit: 10 * time.Second, Retransmits: 3,
		Source:      netip.MustParseAddrPort("192.0.2.10:33333"),
		Destination: netip.MustParseAddrPort("198.51.100.53:53"),
		Interface:   Interface{Index: 2}, VLAN: 7, QUIC: true, DNS: DNS{ID: 0x1234}, Cgroup: 4711, UID: 33,
	}
	got := tcpSample()
	if err := DecodePending(native(t, key), native(t, value), 10*time.Second, SideClient, &got); err != nil {
		t.Fatal(err)
	}
	want.Request = got.Request
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}

	want.Side, want.TTL = SideServer, 64
	want.Source, want.Destination = want.Destination, want.Source
	if err := DecodePending(native(t, key), native(t, value), 10*time.Second, SideServer, &got); err != nil || got != want {
		t.Errorf("server side: got  %+v, %v\nwant %+v", got, err, want)
	}
}

// The id is that of the request: not of the limit, nor of what came later.
func TestDecodePendingRequest(t *testing.T) {
	request := func(change func(*cKey, *cPending), limit time.Duration) uint64 {
		key, value := pendingDNS()
		change(&key, &value)
		var e Event
		if err := DecodePending(native(t, key), native(t, value), limit, SideClient, &e); err != nil {
			t.Fatal(err)
		}
		return e.Request
	}
	first := request(func(*cKey, *cPending) {}, time.Second)
	if again := request(func(_ *cKey, v *cPending) { v.Repeats, v.LastNS, v.State = 9, 9, 2 }, time.Minute); again != first {
		t.Error("the same request has another id")
	}
	if other := request(func(k *cKey, _ *cPending) { k.ID++ }, time.Second); other == first {
		t.Error("another key has the same id")
	}
	if other := request(func(_ *cKey, v *cPending) { v.FirstNS++ }, time.Second); other == first {
		t.Error("a later request has the same id")
	}
}

func TestDecodePendingRefuses(t *testing.T) {
	key, value := pendingDNS()
	unknown := key
	unknown.Kind = 0x101 // not to be taken for its lowest byte
	tests := []struct {
		name       string
		key, value []byte
		side       Side
		want       error
	}{
		{"short key", native(t, key)[:47], native(t, value), SideClient, ErrShort},
		{"short value", native(t, key), native(t, value)[:39], SideClient, ErrShort},
		{"kind", native(t, unknown), native(t, value), SideClient, ErrKind},
		{"side", native(t, key), native(t, value), 0, ErrSide},
	}
	for _, test := range tests {
		var e Event
		if err := DecodePending(test.key, test.value, time.Second, test.side, &e); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// Whatever comes from the ring is refused, or told in forms that parse.
func FuzzDecode(f *testing.F) {
	schema := compileSchema(f)
	f.Add(native(f, tcpRecord()), "eth0")
	f.Add(native(f, dnsRecord(question(1, "example", "com"))), "\x1b\n\"")
	f.Add(native(f, dnsRecord(question(1, strings.Repeat("\n", 63)))), "")
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

func FuzzDecodePending(f *testing.F) {
	schema := compileSchema(f)
	key, value := pendingDNS()
	f.Add(native(f, key), native(f, value), int64(time.Second), uint8(1))
	f.Fuzz(func(t *testing.T, key, value []byte, limit int64, side uint8) {
		var e Event
		if err := DecodePending(key, value, time.Duration(limit), Side(side), &e); err != nil {
			return
		}
		e.Time = testTime
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
