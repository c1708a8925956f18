package bpf

import (
	_ "embed"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/flatd/flatd/flows"
)

//go:embed record.h
var recordHeaderFile string

// What this package hands out as bytes is what flows reads.
func TestLayoutIsThatOfFlows(t *testing.T) {
	if size := int(unsafe.Sizeof(kernelFlatRecord{})); size != flows.RecordSize {
		t.Errorf("struct flat_record has %d bytes, flows reads %d", size, flows.RecordSize)
	}

	r := kernelFlatDnsRecord{}
	r.Record = kernelFlatRecord{
		Sequence: 1, EndNs: 9e9, DurationNs: 3e6, RttNs: 2e6, Ifindex: 4, Id: 5, Repeats: 6,
		SourcePort: networkOrder(7), DestinationPort: networkOrder(8), Vlan: 9, Kind: uint8(flows.KindDNS),
		Side: uint8(flows.SideClient), Result: uint8(flows.ResultAnswered), Flags: 1 | 4, Ttl: 10, Rcode: 3, QuestionLength: 9,
		Cgroup: 11, Uid: 12, Pid: 13, Comm: commOf("curl"),
	}
	r.Record.Source.Bytes = [16]uint8{0x20, 1, 15: 1}
	r.Record.Destination.Bytes = [16]uint8{10: 0xff, 11: 0xff, 12: 192, 15: 2}
	copy(r.Question[:], []uint8{3, 'f', 'o', 'o', 0, 0, 28, 0, 1})
	var e flows.Event
	if err := flows.Decode(bytesOf(&r), &e); err != nil {
		t.Fatal(err)
	}
	if e.Sequence != 1 || e.End != 9e9 || e.Duration != 3e6 || e.RTT != 2e6 || e.Interface.Index != 4 || e.DNS.ID != 5 ||
		e.Retransmits != 6 || e.Source.String() != "[2001::1]:7" || e.Destination.String() != "192.0.0.2:8" || e.VLAN != 9 ||
		!e.QUIC || e.TTL != 10 || e.ResultName() != "nxdomain" || string(e.DNS.AppendName(nil)) != "foo" ||
		e.Cgroup != 11 || e.UID != 12 || e.Process.PID != 13 || string(e.Process.AppendName(nil)) != "curl" {
		t.Errorf("%+v", e)
	}

	r = kernelFlatDnsRecord{Record: kernelFlatRecord{
		Sequence: 1, EndNs: 9e9, DurationNs: 3e9, Repeats: 6, Vlan: 9, Kind: uint8(flows.KindTCP), Side: uint8(flows.SideServer),
		Result: uint8(flows.ResultTimeout), Ttl: 10, SourcePort: networkOrder(7), DestinationPort: networkOrder(8), RequestId: 14,
	}}
	if err := flows.Decode(bytesOf(&r), &e); err != nil {
		t.Fatal(err)
	}
	if e.End != 9e9 || e.Limit != 3*time.Second || e.Duration != 0 || e.Retransmits != 6 || e.VLAN != 9 || e.TTL != 10 ||
		e.Source.Port() != 7 || e.Destination.Port() != 8 || e.Request != 14 || e.ResultName() != "timeout" {
		t.Errorf("timeout: %+v", e)
	}

	r.Record.Result, r.Record.Flags, r.Record.NatPort = uint8(flows.ResultEstablished), 1<<4|1<<6, networkOrder(15)
	r.Record.Nat.Bytes = [16]uint8{10: 0xff, 11: 0xff, 12: 198, 15: 3}
	if err := flows.Decode(bytesOf(&r), &e); err != nil {
		t.Fatal(err)
	}
	if !e.Late || e.NATDestination.String() != "198.0.0.3:15" || e.NATSource.IsValid() || e.Duration != 3*time.Second {
		t.Errorf("a late and translated answer: %+v", e)
	}
}

// commOf is a process's name as the kernel's structures have it.
func commOf(name string) (comm [2]uint64) {
	copy(bytesOf(&comm), name)
	return comm
}

// The numbers that flows gives to kinds, sides and results are those of record.h.
func TestEnumsAreThoseOfFlows(t *testing.T) {
	for name, want := range map[string]int{
		"RTT": flows.RecordRTT, "AMBIGUOUS": flows.RecordAmbiguous, "QUIC": flows.RecordQUIC, "TRUNCATED": flows.RecordTruncated,
		"LATE": flows.RecordLate, "NAT_SOURCE": flows.RecordNATSource, "NAT_DESTINATION": flows.RecordNATDestination,
	} {
		shift := bits.TrailingZeros(uint(want))
		if !regexp.MustCompile(fmt.Sprintf(`\bRECORD_%s = 1 << %d,`, name, shift)).MatchString(recordHeaderFile) {
			t.Errorf("RECORD_%s is not 1 << %d in record.h", name, shift)
		}
	}
	values := make(map[string]int)
	for _, m := range regexp.MustCompile(`\b((?:KIND|SIDE|RESULT)_\w+) = (\d+)`).FindAllStringSubmatch(recordHeaderFile, -1) {
		values[m[1]], _ = strconv.Atoi(m[2])
	}
	wanted := map[string]int{
		"SIDE_CLIENT": int(flows.SideClient), "SIDE_SERVER": int(flows.SideServer),
		"RESULT_ESTABLISHED": int(flows.ResultEstablished), "RESULT_ANSWERED": int(flows.ResultAnswered),
		"RESULT_REFUSED": int(flows.ResultRefused), "RESULT_UNREACHABLE": int(flows.ResultUnreachable),
		"RESULT_TIMEOUT": int(flows.ResultTimeout),
	}
	for _, kind := range flows.ExchangeKinds() {
		wanted["KIND_"+strings.ToUpper(kind.String())] = int(kind)
	}
	for name, want := range wanted {
		if values[name] != want {
			t.Errorf("%s is %d in record.h, %d in flows", name, values[name], want)
		}
		delete(values, name)
	}
	tested := everyKind(t, flow4)
	for _, kind := range flows.ExchangeKinds() {
		if !slices.ContainsFunc(tested, func(r request) bool { return r.kind == uint8(kind) }) {
			t.Errorf("everyKind lacks %s", kind)
		}
	}
	if len(values) != 0 {
		t.Errorf("flows does not know %v", values)
	}
}
