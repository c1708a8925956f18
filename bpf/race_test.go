package bpf

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/flatd/flatd/bpf/testbed"
)

// A datagram of a flow that is seen on one CPU at the moment in which another CPU
// sees the answer is of the same exchange: no second one is reported.
func TestDatagramBesideTheAnswer(t *testing.T) {
	testbed.Root(t)
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU does one thing at a time")
	}
	const flows = 20000
	k := openKernel(t)
	in, out := ebpf.RunOptions{}, ebpf.RunOptions{}
	run := func(p *ebpf.Program, o *ebpf.RunOptions) {
		if _, err := p.Run(o); err != nil {
			t.Error(err)
		}
	}
	for i := range flows {
		f := flow4
		f.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i >> 12)}), uint16(20000+i&0xfff))
		in.Data, out.Data = f.udp(t, 1), f.back().udp(t, 2)
		run(k.programs.FlatIngress, &in)
		together(
			func() { run(k.programs.FlatIngress, &in) },
			func() { run(k.programs.FlatEgress, &out) },
		)
		run(k.programs.FlatEgress, &out)
		if got := k.records(); len(got) != 1 {
			t.Fatalf("flow %d is reported %d times: %+v", i, len(got), got)
		}
	}
	k.balanced()
}

// An answer that is seen at the moment in which the sweep claims its request
// belongs to one of the two.
func TestOneAloneOwnsAnExchange(t *testing.T) {
	testbed.Root(t)
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU does one thing at a time")
	}
	for _, class := range exchangeClasses {
		t.Run(class.name, func(t *testing.T) {
			const exchanges = 2000
			k := openKernel(t)
			reported, claimed := 0, 0
			for i := range exchanges {
				f := flow4
				f.from = netip.AddrPortFrom(f.from.Addr(), uint16(20000+i))
				k.out(class.request(t, f))
				c := k.openRequest()
				var granted bool
				together(
					func() { k.in(class.answer(t, f)) },
					func() {
						var err error
						if granted, err = k.granted(c); err != nil {
							t.Error(err)
						}
					},
				)
				got := len(k.records())
				if granted {
					claimed++
					k.ledger.intend(*c)
					k.ledger.enter()
				}
				if reported += got; (got == 1) == granted {
					t.Fatalf("exchange %d: %d records, claim granted: %v", i, got, granted)
				}
				k.clear()
			}
			k.balanced()
			t.Logf("%d reported, %d claimed", reported, claimed)
		})
	}
}

// A request that two CPUs see at one moment, as of a flow whose first datagrams two
// threads send, is one.
func TestARequestSeenTwiceAtOnceIsOne(t *testing.T) {
	testbed.Root(t)
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU does one thing at a time")
	}
	for _, class := range exchangeClasses {
		t.Run(class.name, func(t *testing.T) {
			const exchanges = 3000
			k := openKernel(t)
			k.sweep(0, time.Hour)
			options := [2]ebpf.RunOptions{}
			see := func(i int) {
				if _, err := k.programs.FlatEgress.Run(&options[i]); err != nil {
					t.Error(err)
				}
			}
			for i := range exchanges {
				f := flow4
				f.from = netip.AddrPortFrom(f.from.Addr(), uint16(20000+i))
				options[0].Data = class.request(t, f)
				options[1].Data = options[0].Data
				together(func() { see(0) }, func() { see(1) })
				k.in(class.answer(t, f))
				if got := k.records(); len(got) != 1 {
					t.Fatalf("exchange %d is reported %d times: %+v", i, len(got), got)
				}
			}
			k.counted(counts{"requests": exchanges, "finished": exchanges, "repeats": exchanges})
			k.balanced()
		})
	}
}

// together has two functions begin at one moment, each on a thread of its own.
func together(a, b func()) {
	var ready atomic.Int32
	var done sync.WaitGroup
	for _, do := range []func(){a, b} {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for ready.Add(1); ready.Load() < 2; {
			}
			do()
		})
	}
	done.Wait()
}
