package bpf

import (
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/flows"
)

func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }

// sweep is as by a daemon, so much later than now.
func (k *kernel) sweep(later, limit time.Duration) Swept {
	k.t.Helper()
	swept, err := k.Requests.Sweep(BootTime()+uint64(later), limit)
	if err != nil {
		k.t.Fatal(err)
	}
	return swept
}

const limit = 10 * time.Second

func TestATimeoutIsReportedOnceForAnAttempt(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		k.out(flow4.syn(t, 1))
		k.in(flow6.echo(t, 1, 1, false))
		if swept := k.sweep(5*time.Second, limit); swept != (Swept{OpenOurs: 1, OpenTheirs: 1}) {
			t.Errorf("before the limit: %+v", swept)
		}
		if swept := k.sweep(11*time.Second, limit); swept != (Swept{}) {
			t.Fatalf("after the limit: %+v", swept)
		}
		got := k.records()
		if len(got) != 2 {
			t.Fatalf("%d records of two timeouts: %+v", len(got), got)
		}
		for _, r := range got {
			if r.Result != timedOut || r.DurationNs != uint64(limit) || r.RttNs != 0 || r.RequestId != 0 {
				t.Errorf("record %+v of a timeout", r)
			}
		}
		if got[1].Sequence != got[0].Sequence+1 {
			t.Errorf("sequences %d and %d", got[0].Sequence, got[1].Sequence)
		}
		k.out(flow4.syn(t, 1)) // a retransmit of the same attempt
		k.in(flow4.back().synAck(t, 2))
		if late := k.one(); late.Result != established || late.Flags&recordLate == 0 || late.Repeats != 1 {
			t.Errorf("record %+v of a late answer", late)
		}
		if swept := k.sweep(30*time.Second, limit); swept != (Swept{}) {
			t.Errorf("reported again: %+v", swept)
		}
		k.out(flow4.syn(t, 500)) // another attempt from the same port
		k.sweep(40*time.Second, limit)
		k.one()
		k.counted(counts{"requests": 3, "timed_out": 3, "repeats": 1, "late": 1})
		k.sweep(time.Hour, limit)
		if n := len(k.openRequests()); n != 0 {
			t.Errorf("%d entries are never forgotten", n)
		}
		k.balanced()
	})
}

// What a program has claimed, and then could not take out of the table, is reported
// no second time, and gone in the end.
func TestAClaimedEntryIsSweptAway(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		k.out(flow4.syn(t, 1))
		k.claimOpen()
		if swept := k.sweep(11*time.Second, limit); swept != (Swept{OpenOurs: 1}) {
			t.Errorf("after the limit: %+v", swept)
		}
		k.sweep(time.Hour, limit)
		if n := len(k.openRequests()); n != 0 {
			t.Errorf("in the end: %d entries", n)
		}
		if got := k.records(); got != nil {
			t.Errorf("records %+v", got)
		}
		k.leaksNothing()
	})
}

// claimOpen is a program that ends in the midst of ending what is open.
func (k *kernel) claimOpen() {
	k.t.Helper()
	for _, r := range k.openRequests() {
		if slot := k.slotOf(r.side, r.hash); slot.holds(r) {
			slot.Request.Version = 0
			continue
		}
		r.Version = 0
		table := k.Requests.ours
		if r.side == SideServer {
			table = k.Requests.theirs
		}
		if err := table.Update(r.hash, kernelFlatOpen{Request: r.kernelFlatRequest}, ebpf.UpdateExist); err != nil {
			k.t.Fatal(err)
		}
	}
}

// An answer that comes between the look and the run wins.
func TestAnAnswerBeforeTheTimeoutWins(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		k.out(flow4.syn(t, 1))
		r := k.openRequests()[0]
		k.in(flow4.back().synAck(t, 2))
		if err := k.Requests.timeOut(r.overdue(limit)); err != nil {
			t.Error(err)
		}
		if got := k.one(); got.Result != established {
			t.Errorf("record %+v", got)
		}
		// Nor is a newer request of the same key that one.
		k.out(flow4.syn(t, 500))
		if err := k.Requests.timeOut(r.overdue(limit)); err != nil {
			t.Error(err)
		}
		if swept := k.sweep(0, limit); swept != (Swept{OpenOurs: 1}) {
			t.Errorf("swept %+v, want one that is open", swept)
		}
		k.counted(counts{"requests": 2, "finished": 1})
		k.balanced()
	})
}

// Timeouts leave a quarter of the ring to answers, and come when there is room.
func TestTimeoutsLeaveRoomInTheRing(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		const record = flows.RecordSize + recordHeader
		requests := k.reader.Size()/record + 1000
		for i := range requests {
			k.out(numbered(flow4, i).syn(t, 1))
		}
		swept := k.sweep(11*time.Second, limit)
		if want := requests - k.reader.Size()*3/4/record; !swept.Full || swept.Overdue < want-1 || swept.Overdue > want+1 || swept.OpenOurs != swept.Overdue {
			t.Errorf("swept %+v, want about %d that are overdue", swept, want)
		}
		k.out(flow6.syn(t, 1)) // there is room for it
		k.in(flow6.back().synAck(t, 2))
		got := k.records()
		if swept := k.sweep(11*time.Second, limit); swept != (Swept{}) {
			t.Errorf("once the ring has room: %+v", swept)
		}
		if got = append(got, k.records()...); len(got) != requests+1 {
			t.Errorf("%d records of %d exchanges", len(got), requests+1)
		}
		for i := range got {
			if got[i].Sequence != got[0].Sequence+uint64(i) {
				t.Fatalf("record %d has the sequence %d after %d", i, got[i].Sequence, got[0].Sequence)
			}
		}
		k.counted(counts{"requests": uint64(requests) + 1, "finished": 1, "timed_out": uint64(requests)})
		k.balanced()
	})
}

// TestSignalsCostNoTimeout storms the thread that sweeps with the signal by which Go's
// scheduler interrupts: before Linux 5.13 a run that has ended then looks interrupted.
func TestSignalsCostNoTimeout(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		const requests = 2000
		for i := range requests {
			k.out(numbered(flow4, i).syn(t, 1))
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		pid, thread := unix.Getpid(), unix.Gettid()
		stop := meanwhile(func() bool { return unix.Tgkill(pid, thread, unix.SIGURG) == nil })
		swept := k.sweep(11*time.Second, limit)
		if n := stop(); n < requests {
			t.Logf("%d signals alone for %d requests", n, requests)
		}
		if swept != (Swept{}) {
			t.Errorf("swept %+v, want no request left", swept)
		}
		ports := make(map[uint16]bool)
		for _, r := range k.records() {
			ports[r.SourcePort] = true
		}
		if len(ports) != requests {
			t.Errorf("%d of %d requests were reported", len(ports), requests)
		}
		k.counted(counts{"requests": requests, "timed_out": requests})
		k.balanced()
	})
}

// numbered is one of many flows that differ in their source.
func numbered(f flow, i int) flow {
	f.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 22), byte(i >> 14), byte(1 + i>>12&3)}), uint16(20000+i&0xfff))
	return f
}

// A timeout belongs to the books of the settings and to the histograms, also where
// nobody wants to see it.
func TestTimeoutsCanBeLeftOut(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		if err := k.Apply(Settings{SkipResults: []Result{timedOut}, Sample: 1000, MinDuration: time.Hour}); err != nil {
			t.Fatal(err)
		}
		k.out(flow4.syn(t, 1))
		k.in(flow4.port(53).dns(t, 5, nil))
		k.timeOutAll()
		k.counted(counts{"requests": 2, "timed_out": 2, "result_out": 2})
		if err := k.Apply(Settings{Sample: 1000, MinDuration: time.Hour}); err != nil {
			t.Fatal(err)
		}
		k.out(flow4.syn(t, 2))
		k.in(flow4.port(53).dns(t, 6, nil))
		k.timeOutAll()
		k.counted(counts{"requests": 2, "timed_out": 2})
		if got := k.records(); len(got) != 2 {
			t.Errorf("%d records of timeouts, want 2: failures are neither too fast nor sampled", len(got))
		}
		k.balanced()
		all, err := k.Histograms()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range all {
			if h.Result != timedOut || h.Count() != 2 || h.Sum != 2*waited {
				t.Errorf("histogram %+v", h)
			}
		}
	})
}

// What was not looked at all the time may have been answered.
func TestNoTimeoutWhileFlatdDidNotLook(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		k.out(flow4.syn(t, 1))
		k.in(flow6.echo(t, 1, 1, false))
		k.Requests.blind.add(BootTime(), BootTime()+1)
		k.sweep(11*time.Second, limit)
		k.counted(counts{"requests": 2, "not_looking": 2})
		k.out(flow4.syn(t, 1))
		k.in(flow4.back().synAck(t, 2)) // though it comes late
		if got := k.one(); got.Flags&recordLate == 0 {
			t.Errorf("record %+v of a late answer", got)
		}
		k.counted(counts{"repeats": 1, "late": 1})
		k.balanced()
	})
}

// A table that is full refuses, and is counted. What it refused can still be answered.
func TestAFullTableRescuesWhatIsAnswered(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openFuzzed(t, o).kernel
		for _, class := range exchangeClasses {
			for side, packets := range bothSides(t, class) {
				t.Run(class.name+" "+side, func(t *testing.T) {
					k.t = t
					k.clear()
					k.overflow(packets)
				})
			}
		}
	})
}

// bothSides are the packets of an exchange of a class, as of this host and as to it.
func bothSides(t testing.TB, class exchangeClass) map[string]func(flow) []packet {
	return map[string]func(flow) []packet{
		"of this host": func(f flow) []packet { return []packet{out(class.request(t, f)), in(class.answer(t, f))} },
		"to this host": func(f flow) []packet {
			all := []packet{in(class.request(t, f)), out(class.answer(t, f))}
			if class.name == "tcp" {
				all = append(all, in(f.ack(t, 2)))
			}
			return all
		},
	}
}

// overflow has the answer to a request come for which the table was full.
func (k *kernel) overflow(packets func(flow) []packet) {
	n := 0
	next := func() []packet { n++; return packets(flow4.sourcePort(uint16(20000 + n))) }
	for full := k.count(PendingFull); k.count(PendingFull) == full; {
		if n == 400 {
			k.t.Fatal("a table of 16 takes 400 requests")
		}
		first := next()[0]
		k.pass(first.in, first.frame)
	}
	k.counted(counts{"requests": uint64(n), "pending_full": 1})
	last := packets(flow4.sourcePort(uint16(20000 + n)))
	k.pass(last[0].in, last[0].frame) // sent again
	k.counted(counts{"repeats": 1})
	k.sweepUntilDone(time.Minute) // which it is not in
	k.records()
	k.lastCounts, _ = k.Counters()
	for _, p := range last[1:] {
		k.pass(p.in, p.frame)
	}
	if r := k.one(); r.Flags&recordLate != 0 || r.Repeats != 1 || r.Result == timedOut {
		k.t.Errorf("record %+v of an answer for which there was no room", r)
	}
	k.counted(counts{"rescued": 1})
	k.balanced()
}

// sweepUntilDone is a daemon that sweeps and reads in turn.
func (k *kernel) sweepUntilDone(later time.Duration) {
	k.t.Helper()
	for range 1000 {
		if swept := k.sweep(later, limit); !swept.Full {
			return
		}
		k.records()
	}
	k.t.Fatal("the sweep does not come to an end")
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
	k.out(flow4.syn(t, 10)) // failures are reported however fast
	k.in(flow4.back().rst(t, 11))
	k.counted(passes)

	k.records()
	apply(Settings{SkipResults: []Result{Result(established), DNSResult(3)}})
	try(flow4)
	k.counted(counts{"requests": 1, "finished": 1, "result_out": 1})
	k.out(flow4.syn(t, 10))
	k.in(flow4.back().rst(t, 11))
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
	k.RenewLease(BootTime() - 1)
	k.handshake(1)
	k.counted(counts{"asleep": 2})
	k.RenewLease(BootTime() + uint64(time.Hour))
	k.handshake(1)
	k.counted(counts{"requests": 1, "finished": 1})
}

// A sweep makes no garbage to speak of: there is one each second, whatever happens.
func TestASweepAllocatesLittle(t *testing.T) {
	k := openKernel(t)
	sweep := func() {
		if _, err := k.Requests.Sweep(BootTime(), time.Minute); err != nil {
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
