package bpf

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/flatd/flatd/bpf/testbed"
)

func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }

func (k *kernel) sweep(later, limit time.Duration) (Swept, []kernelFlatKey) {
	k.t.Helper()
	var keys []kernelFlatKey
	swept, err := k.Sweep(BootTime()+uint64(later), limit, func(_ uint8, key, _, _ []byte) {
		keys = append(keys, *(*kernelFlatKey)(ptr(key)))
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return swept, keys
}

func TestATimeoutIsReportedOnceForAnAttempt(t *testing.T) {
	k := openKernel(t)
	k.out(flow4.syn(t, 1))
	k.in(flow6.echo(t, 1, 1, false))
	if swept, _ := k.sweep(5*time.Second, 10*time.Second); swept != (Swept{OpenOurs: 1, OpenTheirs: 1}) {
		t.Errorf("before the limit: %+v", swept)
	}
	swept, keys := k.sweep(11*time.Second, 10*time.Second)
	if swept != (Swept{TimedOut: 2}) || len(keys) != 2 {
		t.Fatalf("after the limit: %+v", swept)
	}
	k.out(flow4.syn(t, 1)) // a retransmit of the same attempt
	k.in(flow4.back().synAck(t, 2))
	if swept, _ := k.sweep(30*time.Second, 10*time.Second); swept != (Swept{}) {
		t.Errorf("reported again: %+v", swept)
	}
	k.out(flow4.syn(t, 500)) // another attempt from the same port
	if swept, _ := k.sweep(40*time.Second, 10*time.Second); swept.TimedOut != 1 {
		t.Errorf("a new attempt: %+v", swept)
	}
	k.counted(counts{"requests": 3, "timed_out": 3, "repeats": 1, "late": 1})
	if got := k.records(); got != nil {
		t.Errorf("records for timeouts: %+v", got)
	}
	k.sweep(time.Hour, 10*time.Second)
	k.sweep(time.Hour, 10*time.Second)
	if n := k.pending(); n != 0 {
		t.Errorf("%d entries are never forgotten", n)
	}
}

// What a program has reported, and then could not take out of the table, is told
// no second time, and gone in the end.
func TestAnOwnedEntryIsSweptAway(t *testing.T) {
	k := openKernel(t)
	k.out(flow4.syn(t, 1))
	err := k.eachRequest(func(at place, key *kernelFlatKey, p *kernelFlatPending) error {
		if at.seat != nil {
			(*kernelFlatPending)(unsafe.Pointer(&at.seat.Request)).Seal = 0
			return nil
		}
		p.Seal = 0
		return k.table(at.side).Update(key, p, ebpf.UpdateExist)
	})
	if err != nil {
		t.Fatal(err)
	}
	if swept, _ := k.sweep(11*time.Second, 10*time.Second); swept != (Swept{}) {
		t.Errorf("after the limit: %+v", swept)
	}
	if swept, _ := k.sweep(time.Hour, 10*time.Second); swept != (Swept{}) || k.pending() != 0 {
		t.Errorf("in the end: %+v, %d entries", swept, k.pending())
	}
}

func (k *kernel) pending() (n int) {
	count := func(place, *kernelFlatKey, *kernelFlatPending) error { n++; return nil }
	if err := k.eachRequest(count); err != nil {
		k.t.Fatal(err)
	}
	return n
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestSettingsFilterRequests(t *testing.T) {
	k := openKernel(t)
	apply := func(s Settings) {
		t.Helper()
		if err := k.Apply(s); err != nil {
			t.Fatal(err)
		}
		k.clear()
	}
	try := func(f flow) { k.out(f.syn(t, 1)); k.in(f.back().synAck(t, 2)) }
	passes, filtered := counts{"requests": 1, "finished": 1}, counts{"filtered": 1, "unmatched": 1}

	for _, c := range []struct {
		name     string
		settings Settings
		flow     flow
		want     counts
	}{
		{"nothing", Settings{}, flow4, passes},
		{"other kinds", Settings{SkipKinds: []uint8{2, 3, 4}}, flow4, passes},
		{"this kind", Settings{SkipKinds: []uint8{1}}, flow4, filtered},
		{"this side", Settings{SkipSides: []uint8{SideClient}}, flow4, filtered},
		{"port in a range", Settings{Ports: []PortRange{{1, 2}, {443, 500}}}, flow4, passes},
		{"port in no range", Settings{Ports: []PortRange{{1, 442}, {444, 65535}}}, flow4, filtered},
		{"peer excluded", Settings{Remote: Nets{Exclude: prefixes("198.51.100.0/24")}}, flow4, filtered},
		{"own address among the peers excluded", Settings{Remote: Nets{Exclude: prefixes("192.0.2.0/24")}}, flow4, passes},
		{"own address excluded", Settings{Local: Nets{Exclude: prefixes("192.0.2.0/24")}}, flow4, filtered},
		{"peer among own addresses excluded", Settings{Local: Nets{Exclude: prefixes("198.51.100.0/24")}}, flow4, passes},
		{"own address not included", Settings{Local: Nets{Include: prefixes("2001:db8::/32")}}, flow4, filtered},
		{"own address included", Settings{Local: Nets{Include: prefixes("2001:db8::10/128")}}, flow6, passes},
		{"own address included, peer excluded", Settings{Local: Nets{Include: prefixes("::/0")}, Remote: Nets{Exclude: prefixes("2001:db8:1::20/128")}}, flow6, filtered},
		{"peer not included", Settings{Remote: Nets{Include: prefixes("10.0.0.0/8", "2001:db8:1::/48")}}, flow4, filtered},
		{"peer included", Settings{Remote: Nets{Include: prefixes("10.0.0.0/8", "2001:db8:1::/48")}}, flow6, passes},
		{"included within excluded", Settings{Remote: Nets{Exclude: prefixes("0.0.0.0/0"), Include: prefixes("198.51.100.20/32")}}, flow4, passes},
		{"all of IPv6 excluded, IPv4 not", Settings{Remote: Nets{Exclude: prefixes("::/0")}}, flow4, passes},
		{"all of IPv4 excluded, IPv6 not", Settings{Remote: Nets{Exclude: prefixes("0.0.0.0/0")}}, flow6, passes},
	} {
		t.Run(c.name, func(t *testing.T) {
			apply(c.settings)
			k.t = t
			try(c.flow)
			k.counted(c.want)
		})
	}
	k.t = t
	k.records()

	// A reload loses no open request.
	apply(Settings{})
	k.out(flow4.syn(t, 1))
	if err := k.Apply(Settings{Remote: Nets{Exclude: prefixes("0.0.0.0/0")}}); err != nil {
		t.Fatal(err)
	}
	k.in(flow4.back().synAck(t, 2))
	if got := k.records(); len(got) != 1 {
		t.Errorf("%d records for a request older than the filter, want 1", len(got))
	}

	apply(Settings{MinDuration: time.Hour, Sample: 1})
	k.counted(passes)
	try(flow4)
	k.counted(counts{"requests": 1, "finished": 1, "too_fast": 1})
	k.out(flow4.syn(t, 1)) // failures are told however fast
	k.in(flow4.back().rst(t, 2))
	k.counted(passes)

	k.records()
	apply(Settings{SkipResults: []Result{Result(established), DNSResult(3)}})
	try(flow4)
	k.counted(counts{"requests": 1, "finished": 1, "result_out": 1})
	k.out(flow4.syn(t, 1))
	k.in(flow4.back().rst(t, 2))
	k.counted(passes)
	for rcode, want := range map[layers.DNSResponseCode]counts{3: {"requests": 1, "finished": 1, "result_out": 1}, 2: passes} {
		k.out(flow4.port(53).dns(t, 1, nil))
		k.in(flow4.port(53).back().dns(t, 1, func(d *layers.DNS) { d.QR, d.ResponseCode = true, rcode }))
		k.counted(want)
	}

	apply(Settings{DNSPorts: []uint16{5353, 8053}})
	k.out(flow4.port(8053).dns(t, 1, nil))
	k.in(flow4.port(8053).back().dns(t, 1, func(d *layers.DNS) { d.QR = true }))
	got := k.records()
	if last := got[len(got)-1]; last.Kind != 2 {
		t.Errorf("on the configured port: kind %d, want dns", last.Kind)
	}
	k.counted(passes)
}

func TestSleepsWhenTheLeaseIsOver(t *testing.T) {
	k := openKernel(t)
	if err := k.RenewLease(BootTime() - 1); err != nil {
		t.Fatal(err)
	}
	k.handshake(1)
	k.counted(counts{"asleep": 2})
	if err := k.RenewLease(BootTime() + uint64(time.Hour)); err != nil {
		t.Fatal(err)
	}
	k.handshake(1)
	k.counted(counts{"requests": 1, "finished": 1})
}

// A sweep makes no garbage to speak of: there is one each second, whatever happens.
func TestASweepAllocatesLittle(t *testing.T) {
	k := openKernel(t)
	sweep := func() {
		if _, err := k.Sweep(BootTime(), time.Minute, func(uint8, []byte, []byte, []byte) {}); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	sweep()
	runtime.ReadMemStats(&before)
	const sweeps = 100
	for range sweeps {
		sweep()
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / sweeps; each > 64<<10 {
		t.Errorf("%d octets per sweep", each)
	}
}

// A takeover tells the new programs what the older ones follow: an answer to an
// older request and a further datagram of an older flow are nothing new.
func TestATakeoverKnowsWhatWasBeforeIt(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	k.out(flow4.udp(t, 1))
	k.in(flow4.back().udp(t, 2))
	k.out(flow6.udp(t, 1))
	k.leave()
	if err := os.Rename(layoutDir(path, ABI), layoutDir(path, ABI+1)); err != nil {
		t.Fatal(err)
	}
	k = session(t, path)
	older, err := k.Older()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.TakeOver(older, 0); err != nil {
		t.Fatal(err)
	}
	if err := older.Remove(); err != nil {
		t.Fatal(err)
	}
	k.out(flow4.udp(t, 3))
	k.in(flow4.back().udp(t, 4))
	k.in(flow6.back().udp(t, 2))
	k.counted(counts{"flow": 2, "late": 1})
}
