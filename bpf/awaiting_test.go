package bpf

import (
	"sync/atomic"
	"testing"
	"time"
)

// The slots are looked at only while a handshake from outside may be open, and
// again as soon as there is one.
func TestNoSlotIsLookedAtWithoutAHandshake(t *testing.T) {
	k := openKernel(t)
	looked := func() bool {
		return atomic.LoadUint32(k.awaiting.latest) != atomic.LoadUint32(k.awaiting.settled)
	}
	b := flow4.back()
	handshake := func(isn uint32) {
		t.Helper()
		k.in(flow4.syn(t, isn))
		k.out(b.synAck(t, isn+1))
	}
	sweep := func() { k.sweep(0, time.Hour) }

	if looked() {
		t.Error("slots are looked at before the first handshake")
	}
	handshake(100)
	// Longer than the unit of time in which slots are taken, so that the sweeps
	// could tell that this one has been open for a while.
	for began := k.awaiting.quiet(); began == 0; began = k.awaiting.quiet() {
		sweep()
		time.Sleep(10 * time.Millisecond)
	}
	if sweep(); !looked() {
		t.Error("slots are not looked at while a handshake is open")
	}
	k.in(flow4.ack(t, 101))
	k.counted(counts{"requests": 1, "finished": 1})
	if sweep(); looked() {
		t.Error("slots are looked at though no handshake is open")
	}
	k.in(flow4.ack(t, 101)) // means nothing any more
	handshake(500)
	if sweep(); !looked() {
		t.Error("slots are not looked at again")
	}
	k.in(flow4.ack(t, 501))
	k.counted(counts{"requests": 1, "finished": 1})
	if got := k.records(); len(got) != 2 {
		t.Errorf("%d records of two handshakes: %+v", len(got), got)
	}
}
