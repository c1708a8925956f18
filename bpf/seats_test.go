package bpf

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf/testbed"
)

// waiting is where the one request is that is known.
func (k *kernel) waiting() (at place, key kernelFlatKey) {
	k.t.Helper()
	n := 0
	err := k.eachRequest(func(a place, found *kernelFlatKey, _ *kernelFlatPending) error {
		at, key, n = a, *found, n+1
		return nil
	})
	if err != nil || n != 1 {
		k.t.Fatalf("%d requests are known, want 1 (%v)", n, err)
	}
	return at, key
}

// asides are the two sides of an exchange of a class, as packets.
func asides(t *testing.T, class exchangeClass, f flow) map[string][2]packet {
	request, answer := class.request(t, f), class.answer(t, f)
	return map[string][2]packet{
		"of this host": {out(request), in(answer)},
		"to this host": {in(request), out(answer)},
	}
}

// needSeats skips a test where nobody takes a seat.
func needSeats(t *testing.T) {
	t.Helper()
	if recent, err := haveFetchAdd(); err != nil {
		t.Fatal(err)
	} else if !recent {
		t.Skip("nobody takes a seat before Linux 5.12")
	}
}

// A request waits in the seat that its hash names, by the same arithmetic here and
// in the kernel, and leaves it with its answer.
func TestARequestHasItsSeat(t *testing.T) {
	needSeats(t)
	for _, class := range exchangeClasses {
		for _, f := range []flow{flow4, flow6} {
			for side, packets := range asides(t, class, f) {
				if class.name == "tcp" && side == "to this host" {
					continue // which is over with an ACK
				}
				t.Run(class.name+" "+side, func(t *testing.T) {
					k := openKernel(t)
					k.pass(packets[0].in, packets[0].frame)
					at, key := k.waiting()
					if want := k.seats.of(at.side, &key); at.seat != want {
						t.Errorf("in %p, not in its seat %p", at.seat, want)
					}
					k.pass(packets[1].in, packets[1].frame)
					k.counted(counts{"requests": 1, "finished": 1})
					if k.pending() != 0 || at.seat.Holder != 0 {
						t.Errorf("%d requests after the answer, the seat is held by %#x", k.pending(), at.seat.Holder)
					}
				})
			}
		}
	}
}

// One whose seat is another's is in the table, and found there whatever becomes of
// the seat.
func TestARequestWithoutASeatIsInTheTable(t *testing.T) {
	needSeats(t)
	for _, class := range exchangeClasses {
		for side, packets := range asides(t, class, flow4) {
			if class.name == "tcp" && side == "to this host" {
				continue
			}
			for _, end := range []string{"answered", "answered once the seat was free", "timed out"} {
				t.Run(class.name+" "+side+" "+end, func(t *testing.T) {
					k := openKernel(t)
					k.crowdSeats(0)
					k.pass(packets[0].in, packets[0].frame)
					at, key := k.waiting()
					seat := k.seats.of(at.side, &key)
					others := func(want uint32) {
						t.Helper()
						if got := atomic.LoadUint32(&seat.Others); got != want {
							t.Errorf("the seat knows %d others, want %d", got, want)
						}
					}
					if at.seat != nil {
						t.Fatal("in a seat")
					}
					others(1)
					if end == "answered once the seat was free" {
						seat.Holder = 0
					}
					k.pass(packets[0].in, packets[0].frame)
					k.counted(counts{"requests": 1, "repeats": 1})
					if end == "timed out" {
						k.sweep(time.Minute, 10*time.Second)
						k.sweep(time.Hour, 10*time.Second)
						k.counted(counts{"timed_out": 1})
					} else {
						k.pass(packets[1].in, packets[1].frame)
						k.counted(counts{"finished": 1})
					}
					if k.pending() != 0 {
						t.Errorf("%d requests are left", k.pending())
					}
					others(0)
				})
			}
		}
	}
}

// A daemon that was killed while it emptied a seat leaves it to the next.
func TestASeatCutShortIsFreed(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	k.seats.all[7].Holder = holderLeaving
	k.leave()
	if k = session(t, path); k.seats.all[7].Holder != 0 {
		t.Errorf("it is still held, by %#x", k.seats.all[7].Holder)
	}
}

// Requests that differ in a port alone, as those of one host to another do, come
// to each seat and to each set of flows about equally often.
func TestHashesAreSpreadEvenly(t *testing.T) {
	const keys = 60000
	for _, of := range []int{1024, 32768} { // SEATS, FLOW_SETS
		for _, port := range []func(*kernelFlatKey) *uint16{
			func(k *kernelFlatKey) *uint16 { return &k.LocalPort },
			func(k *kernelFlatKey) *uint16 { return &k.RemotePort },
		} {
			key := kernelFlatKey{Kind: kindTCP, LocalPort: 443, RemotePort: 443, Ifindex: 2}
			times := make([]float64, of)
			for i := range uint16(keys) {
				*port(&key) = i
				times[keyHash(&key)%uint64(of)]++
			}
			mean := float64(keys) / float64(of)
			chi := 0.0 // squared, of each degree of freedom
			for _, n := range times {
				chi += (n - mean) * (n - mean) / mean / float64(of-1)
			}
			if chi > 1.25 {
				t.Errorf("over %d: chi squared is %.2f, want about 1", of, chi)
			}
		}
	}
}
