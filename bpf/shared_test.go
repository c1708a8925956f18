package bpf

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// An ACK from outside is looked at more closely only while a handshake may be open,
// and again as soon as there is one.
func TestHandshakesAreLookedForWhileThereAreAny(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		b := flow4.back()
		isOpen := func() bool {
			return atomic.LoadUint32(&k.shared.HandshakesOpened) != atomic.LoadUint32(&k.shared.HandshakesShut)
		}
		sweep := func() { k.sweep(0, time.Hour) }
		// quiet waits until the sweeps can tell that nothing has begun for a while.
		quiet := func() {
			for k.shared.quietHandshakes() == 0 {
				sweep()
				time.Sleep(10 * time.Millisecond)
			}
		}
		if isOpen() {
			t.Error("open before the first sweep")
		}
		if sweep(); isOpen() {
			t.Error("open before there was anything")
		}
		k.in(flow4.syn(t, 100))
		if isOpen() {
			t.Error("a SYN opens nothing: its answer does")
		}
		k.out(b.synAck(t, 101))
		quiet()
		if sweep(); !isOpen() {
			t.Error("shut while a handshake is open")
		}
		k.in(flow4.ack(t, 101))
		k.counted(counts{"requests": 1, "finished": 1})
		if sweep(); isOpen() {
			t.Error("open, though the handshake is over")
		}
		k.in(flow4.syn(t, 500))
		k.out(b.synAck(t, 501))
		if sweep(); !isOpen() {
			t.Error("not opened again")
		}
		k.in(flow4.ack(t, 501))
		k.counted(counts{"requests": 1, "finished": 1})
		if got := k.records(); len(got) != 2 {
			t.Errorf("%d records of two exchanges: %+v", len(got), got)
		}
		k.balanced()
	})
}

// A RST that answers nothing is counted.
func TestARSTThatAnswersNothingIsCounted(t *testing.T) {
	k := openKernel(t)
	b := flow4.back()
	k.in(b.rst(t, 101))
	k.out(b.rst(t, 101))
	k.counted(counts{"unmatched": 2})
	k.out(flow4.syn(t, 100))
	k.in(b.rst(t, 101))
	if got := k.one().Result; got != refused {
		t.Errorf("result %d of a refused SYN", got)
	}
}

// Without this no process would be named on a host that has been suspended.
func TestTheProgramsKnowHowLongTheHostWasSuspended(t *testing.T) {
	k := openKernel(t)
	atomic.StoreUint64(&k.shared.SuspendedNs, 1<<62)
	k.sweep(0, time.Hour)
	apart := time.Duration(BootTime() - clock(unix.CLOCK_MONOTONIC))
	if got := time.Duration(atomic.LoadUint64(&k.shared.SuspendedNs)); (got - apart).Abs() > 10*time.Millisecond {
		t.Errorf("%v, the clocks are %v apart", got, apart)
	}
}

// An interface that has only some of its programs begins nothing, and what it has begun
// ends.
func TestNothingBeginsWhileAnInterfaceIsAttached(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		k := openKernel(t, o)
		k.out(flow4.syn(t, 1))
		k.shared.setAttaching(runIfindex)
		k.out(flow4.syn(t, 1))
		k.out(flow6.syn(t, 1))
		k.in(flow6.echo(t, 1, 1, false))
		k.in(flow4.back().synAck(t, 2))
		k.counted(counts{"requests": 1, "repeats": 1, "paused": 2, "finished": 1})
		k.shared.setAttaching(runIfindex + 1)
		k.out(flow6.syn(t, 1))
		k.counted(counts{"requests": 1})
	})
}

// A daemon that was killed while it attached an interface does not leave it so.
func TestAttachingEndsWithTheNextStart(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	k.shared.setAttaching(runIfindex)
	seed := k.shared.Seed
	k.leave()
	k = session(t, path).started(StartAdopt)
	if k.shared.Attaching != 0 || k.shared.Seed != seed {
		t.Errorf("attaching %d, seed %#x; was %#x", k.shared.Attaching, k.shared.Seed, seed)
	}
}

// A reload holds the prefixes of two generations.
func TestPrefixesHaveRoomTwice(t *testing.T) {
	spec, err := loadKernel()
	if err != nil {
		t.Fatal(err)
	}
	if room := spec.Maps[kernelMapFlatNets].MaxEntries; room != 2*MaxNets {
		t.Errorf("room for %d prefixes, want twice %d", room, MaxNets)
	}
}
