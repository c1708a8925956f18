package bpf

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is behind a gate is looked at only while there may be something, and
// again as soon as there is.
func TestAGateIsShutWhileNothingIsBehindIt(t *testing.T) {
	b := flow4.back()
	for _, test := range []struct {
		name   string
		gate   int
		put    func(*kernel) // something behind the gate
		finish func(*kernel) // what that is about
	}{
		{
			"handshake from outside", gateHandshakes,
			func(k *kernel) { k.in(flow4.syn(t, 100)); k.out(b.synAck(t, 101)) },
			func(k *kernel) { k.in(flow4.ack(t, 101)) },
		},
		{
			"SYN of this host", gateOurSYNs,
			func(k *kernel) { k.out(flow4.syn(t, 100)) },
			func(k *kernel) { k.in(b.rst(t, 101)) },
		},
		{
			"SYN from outside", gateTheirSYNs,
			func(k *kernel) { k.in(flow4.syn(t, 100)) },
			func(k *kernel) { k.out(b.rst(t, 101)) },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := openKernel(t)
			isOpen := func() bool {
				g := &k.gates.all[test.gate]
				shut := atomic.LoadUint32(&g.shut)
				return atomic.LoadUint32(&g.opened) != shut || test.gate != gateHandshakes && shut == 0
			}
			sweep := func() { k.sweep(0, time.Hour) }

			if isOpen() == (test.gate == gateHandshakes) {
				t.Error("not as it is to be before the first sweep")
			}
			if sweep(); isOpen() {
				t.Error("open before there was anything")
			}
			test.put(k)
			// So long that the sweeps could tell that this has been there for a while.
			for k.gates.quiet()[test.gate] == 0 {
				sweep()
				time.Sleep(10 * time.Millisecond)
			}
			if sweep(); !isOpen() {
				t.Error("shut before something")
			}
			test.finish(k)
			k.counted(counts{"requests": 1, "finished": 1})
			if sweep(); isOpen() {
				t.Error("open before nothing")
			}
			test.put(k)
			if sweep(); !isOpen() {
				t.Error("not opened again")
			}
			test.finish(k)
			k.counted(counts{"requests": 1, "finished": 1})
			if got := k.records(); len(got) != 2 {
				t.Errorf("%d records of two exchanges: %+v", len(got), got)
			}
			for i := range k.gates.all {
				if test.gate == gateHandshakes && i == gateTheirSYNs {
					continue // a SYN comes first
				}
				if i != test.gate && atomic.LoadUint32(&k.gates.all[i].opened) != 1 {
					t.Errorf("gate %d was opened too", i)
				}
			}
		})
	}
}

// A RST is counted alike whether it is looked for or not.
func TestARSTThatAnswersNothingIsCounted(t *testing.T) {
	k := openKernel(t)
	b := flow4.back()
	for _, gates := range []string{"open", "shut"} {
		k.in(b.rst(t, 101))
		k.out(b.rst(t, 101))
		k.counted(counts{"unmatched": 2})
		if k.sweep(0, time.Hour); atomic.LoadUint32(&k.gates.all[gateOurSYNs].shut) == 0 {
			t.Fatalf("%s: not shut", gates)
		}
	}
	k.out(flow4.syn(t, 100))
	k.in(b.rst(t, 101))
	if got := k.one().Result; got != refused {
		t.Errorf("result %d of a refused SYN", got)
	}
}

// Without this no process would be told of on a host that has been suspended.
func TestTheProgramsAreToldHowLongTheHostWasSuspended(t *testing.T) {
	k := openKernel(t)
	atomic.StoreUint64(k.gates.suspended, 1<<62)
	k.sweep(0, time.Hour)
	apart := time.Duration(BootTime() - clock(unix.CLOCK_MONOTONIC))
	if got := time.Duration(atomic.LoadUint64(k.gates.suspended)); (got - apart).Abs() > 10*time.Millisecond {
		t.Errorf("%v, the clocks are %v apart", got, apart)
	}
}
