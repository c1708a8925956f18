package bpf

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/flatd/flatd/packaging/testbed"
)

// takeover is one layout's programs in front of another's, which go on.
type takeover struct {
	*kernel
	previous *Previous
	programs map[string]*ebpf.Program // of the previous
}

// newTakeover is where the previous programs have some requests open, and a flow that is
// answered, when the others come.
func newTakeover(t *testing.T, from, to object) *takeover {
	t.Helper()
	path := testbed.BPFFS(t)
	k := newSession(t, openState(t, path, from))
	k.out(flow4.udp(t, 1))
	k.in(flow4.back().udp(t, 2)) // a flow that goes on
	k.out(flow6.udp(t, 1))
	k.out(flow4.syn(t, 100))
	k.out(flow6.port(53).dns(t, 5, nil))
	k.one()
	o := &takeover{programs: make(map[string]*ebpf.Program)}
	for _, name := range basicPrograms {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(k.dir, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		o.programs[name] = p
	}
	k.leave()
	o.kernel = newSession(t, openState(t, path, to)).started(StartFresh)
	var err error
	if o.previous, err = o.Previous(); err != nil || o.previous == nil {
		t.Fatalf("previous state %v, %v", o.previous, err)
	}
	t.Cleanup(func() { o.previous.Close() })
	return o
}

// out and in have both see a packet: those in front first.
func (o *takeover) out(frame []byte) {
	o.t.Helper()
	o.kernel.out(frame)
	o.run(o.programs[kernelProgFlatEgress], frame)
}

func (o *takeover) in(frame []byte) {
	o.t.Helper()
	o.kernel.in(frame)
	o.run(o.programs[kernelProgFlatIngress], frame)
}

// reports are the records of the previous programs, but for those that the new ones
// report too.
func (o *takeover) reports() (all []string) {
	o.t.Helper()
	for {
		raw, _, ok := o.previous.Next()
		if !ok {
			return all
		}
		if !o.previous.IsOurs(raw) {
			all = append(all, summary((*kernelFlatRecord)(ptr(raw))))
		}
	}
}

func (o *takeover) ours() (all []string) {
	o.t.Helper()
	for _, r := range o.records() {
		all = append(all, summary(&r))
	}
	return all
}

func summary(r *kernelFlatRecord) string {
	return fmt.Sprintf("%s from port %d: %s", []string{"", "tcp", "dns", "udp", "icmp"}[r.Kind], networkOrder(r.SourcePort),
		[]string{"", "established", "answered", "refused", "unreachable", "timeout"}[r.Result])
}

func (o *takeover) want(which string, got []string, want ...string) {
	o.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		o.t.Errorf("%s: %q, want %q", which, got, want)
	}
}

// eachTakeover is from each of the objects to the other, whose layouts differ in name.
func eachTakeover(t *testing.T, test func(o *takeover)) {
	needObject(t, objectFlat)
	for _, way := range [][2]object{{objectFlat510, objectFlat}, {objectFlat, objectFlat510}} {
		t.Run(way[0].name+" to "+way[1].name, func(t *testing.T) { test(newTakeover(t, way[0], way[1])) })
	}
}

// Each exchange is reported once, by those who have begun it, whenever that was.
func TestATakeoverSplitsNoExchange(t *testing.T) {
	eachTakeover(t, func(o *takeover) {
		t := o.t
		if !o.previous.TakingOver() {
			t.Error("nothing to take over")
		}
		watched, both, after := flow4.sourcePort(1001), flow4.sourcePort(1002), flow4.sourcePort(1003)

		o.out(watched.syn(t, 100))
		o.out(watched.port(80).syn(t, 100))
		o.in(watched.port(80).back().synAck(t, 101)) // begun and ended by the previous
		o.counted(counts{"handed_over": 2, "unmatched": 1})
		o.want("previous", o.reports(), "tcp from port 1001: established")

		if err := o.previous.TakeOver(); err != nil {
			t.Fatal(err)
		}
		o.out(flow4.syn(t, 100)) // sent again
		o.out(watched.syn(t, 100))
		o.counted(counts{"handed_over": 2})
		o.out(after.syn(t, 100))
		o.in(after.back().synAck(t, 101))
		o.out(flow4.udp(t, 3))
		o.in(flow4.back().udp(t, 4))
		o.counted(counts{"requests": 1, "finished": 1, "flow": 2})
		o.want("ours", o.ours(), "tcp from port 1003: established")
		o.want("previous", o.reports())

		o.in(watched.back().synAck(t, 101))
		o.in(flow4.back().rst(t, 101))
		o.in(flow6.back().udp(t, 2))
		o.in(flow6.port(53).back().answers(t, 5, 0))
		o.out(flow6.udp(t, 3))
		o.counted(counts{"unmatched": 4, "flow": 1})
		o.want("previous", o.reports(), "tcp from port 1001: established", "tcp from port 43210: refused",
			"udp from port 43210: answered", "dns from port 43210: answered")
		o.out(watched.syn(t, 500)) // another attempt from a port that they had
		o.in(watched.back().synAck(t, 501))
		o.want("ours", o.ours(), "tcp from port 1001: established")
		o.counted(counts{"requests": 1, "finished": 1})

		o.complete()
		o.kernel.out(both.syn(t, 100))
		o.kernel.in(both.back().synAck(t, 101))
		o.want("ours", o.ours(), "tcp from port 1002: established")
		o.balanced()
	})
}

// complete ends a take-over as the daemon does.
func (o *takeover) complete() {
	o.t.Helper()
	for _, step := range []func() error{o.previous.Detach, o.previous.End} {
		if err := step(); err != nil {
			o.t.Fatal(err)
		}
	}
	if o.previous.TakingOver() || o.shared.phase() != phaseAlone || o.empty(o.maps.FlatSeen) != 0 {
		o.t.Errorf("phase %d after the take-over", o.shared.phase())
	}
}

// What both have begun is the new programs' to report.
func TestWhatBothBeginIsReportedOnce(t *testing.T) {
	eachTakeover(t, func(o *takeover) {
		t := o.t
		// As TakeOver, cut short before the previous programs begin nothing.
		if err := o.previous.inherit(); err != nil {
			t.Fatal(err)
		}
		o.shared.BothNs = BootTime()
		o.shared.setPhase(phaseBoth)
		for i, class := range exchangeClasses {
			f := flow4.sourcePort(uint16(2000 + i))
			o.out(class.request(t, f))
			o.in(class.answer(t, f))
		}
		o.in(flow6.syn(t, 100))
		o.out(flow6.back().synAck(t, 101))
		o.in(flow6.ack(t, 101))
		o.in(flow4.back().synAck(t, 101)) // begun long before
		o.counted(counts{"requests": 5, "finished": 5, "unmatched": 1})
		o.want("previous", o.reports(), "tcp from port 43210: established")
		if got := len(o.ours()); got != 5 {
			t.Errorf("%d of ours, want 5", got)
		}
		if err := o.previous.TakeOver(); err != nil {
			t.Fatal(err)
		}
		if o.shared.phase() != phaseAfter {
			t.Errorf("phase %d, want that after the take-over", o.shared.phase())
		}
		o.complete()
		o.balanced()
	})
}

// What nobody answers is reported by those who have begun it.
func TestThePreviousProgramsTimeOutTheirOwn(t *testing.T) {
	eachTakeover(t, func(o *takeover) {
		t := o.t
		if err := o.previous.TakeOver(); err != nil {
			t.Fatal(err)
		}
		o.out(flow4.sourcePort(1001).syn(t, 100))
		if !o.previous.CanSweep() || !o.previous.CanCount() {
			t.Fatal("cannot read what the previous programs have")
		}
		swept, err := o.previous.Sweep(BootTime()+uint64(time.Minute), limit, func([]byte) { t.Error("a record beside the ring") })
		if err != nil || swept != (Swept{}) {
			t.Errorf("swept %+v, %v", swept, err)
		}
		got := o.reports()
		if len(got) != 3 {
			t.Errorf("%q, want 3 timeouts", got)
		}
		if swept := o.sweep(time.Minute, limit); swept != (Swept{}) {
			t.Errorf("swept %+v", swept)
		}
		o.want("ours", o.ours(), "tcp from port 1001: timeout")
		o.counted(counts{"requests": 1, "timed_out": 1})
		if err := o.previous.SetMarks(Marks{Records: 5, Position: o.previous.Position()}); err != nil {
			t.Error(err)
		}
		o.complete()
	})
}

// A table of what the others have begun that is full is counted.
func TestTooManyRequestsOfOthersAreCounted(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openFuzzed(t, o).kernel
		k.shared.setPhase(phaseWatch)
		for i := range uint16(6) {
			k.out(flow4.sourcePort(3000+i).syn(t, 100))
		}
		k.counted(counts{"handed_over": 6, "seen_full": 2})
		if n := len(k.openRequests()); n != 0 {
			t.Errorf("%d are open", n)
		}
		k.shared.setPhase(phaseFinish)
		k.out(flow4.sourcePort(3100).syn(t, 100))
		k.counted(counts{"handed_over": 1})
	})
}
