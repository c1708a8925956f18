package bpf

import (
	"sync/atomic"
	"testing"
	"time"
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
		gone   time.Duration // when a sweep will find nothing of it
	}{
		{
			"handshake from outside", gateHandshakes,
			func(k *kernel) { k.in(flow4.syn(t, 100)); k.out(b.synAck(t, 101)) },
			func(k *kernel) { k.in(flow4.ack(t, 101)) },
			0,
		},
		{
			"flow of this host", gateOurFlows,
			func(k *kernel) { k.out(flow4.udp(t, 1)) },
			func(k *kernel) { k.in(b.udp(t, 2)) },
			time.Minute,
		},
		{
			"flow from outside", gateTheirFlows,
			func(k *kernel) { k.in(flow4.udp(t, 1)) },
			func(k *kernel) { k.out(b.udp(t, 2)) },
			time.Minute,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := openKernel(t)
			isOpen := func() bool {
				g := &k.gates.all[test.gate]
				shut := atomic.LoadUint32(&g.shut)
				return atomic.LoadUint32(&g.opened) != shut || test.gate != gateHandshakes && shut == 0
			}
			sweep := func(later time.Duration) { k.sweep(later, time.Hour) }

			if isOpen() == (test.gate == gateHandshakes) {
				t.Error("not as it is to be before the first sweep")
			}
			if sweep(0); isOpen() {
				t.Error("open before there was anything")
			}
			test.put(k)
			// So long that the sweeps could tell that this has been there for a while.
			for k.gates.quiet()[test.gate] == 0 {
				sweep(0)
				time.Sleep(10 * time.Millisecond)
			}
			if sweep(0); !isOpen() {
				t.Error("shut before something")
			}
			test.finish(k)
			k.counted(counts{"requests": 1, "finished": 1})
			sweep(test.gone)
			if sweep(test.gone); isOpen() {
				t.Error("open before nothing")
			}
			test.put(k)
			if sweep(0); !isOpen() {
				t.Error("not opened again")
			}
			test.finish(k)
			k.counted(counts{"requests": 1, "finished": 1})
			if got := k.records(); len(got) != 2 {
				t.Errorf("%d records of two exchanges: %+v", len(got), got)
			}
			for i := range k.gates.all {
				if i != test.gate && atomic.LoadUint32(&k.gates.all[i].opened) != 1 {
					t.Errorf("gate %d was opened too", i)
				}
			}
		})
	}
}
