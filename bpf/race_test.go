package bpf

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/flatd/flatd/packaging/testbed"
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

// An answer that is seen at the moment in which the daemon has the request time out
// belongs to one of the two. After the timeout it is a late one.
func TestOneAloneEndsAnExchange(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU does one thing at a time")
	}
	eachObject(t, func(t *testing.T, o object) {
		for _, class := range exchangeClasses {
			t.Run(class.name, func(t *testing.T) { race(t, openKernel(t, o), class) })
		}
	})
}

func race(t *testing.T, k *kernel, class exchangeClass) {
	const exchanges = 2000
	var won [2]int // by the answer, by the timeout
	for i := range exchanges {
		f := flow4
		f.from = netip.AddrPortFrom(f.from.Addr(), uint16(20000+i))
		k.out(class.request(t, f))
		r := k.openRequests()[0]
		together(
			func() { k.in(class.answer(t, f)) },
			func() {
				if err := k.Requests.timeOut(r.overdue(limit)); err != nil {
					t.Error(err)
				}
			},
		)
		first, late := 0, 0
		for _, r := range k.records() {
			switch {
			case r.Flags&recordLate != 0:
				late++
			case r.Result == timedOut:
				first++
				won[1]++
			default:
				first++
				won[0]++
			}
		}
		if first != 1 || late > 1 {
			t.Fatalf("exchange %d: %d records, and %d of a late answer", i, first, late)
		}
		if n := len(k.openRequests()); n != 0 {
			t.Fatalf("exchange %d: %d are open", i, n)
		}
	}
	c, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if m := c.Map(); c[Requests] != exchanges || c[Finished] != uint64(won[0]) || c[TimedOut] != uint64(won[1]) ||
		m["late"]+m["ended"] != uint64(won[1]) || m["unmatched"] != 0 {
		t.Errorf("the answer was first %d times, the timeout %d times: %v", won[0], won[1], m)
	}
	k.balanced()
	t.Logf("%d answered, %d timed out", won[0], won[1])
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
			options := [2]ebpf.RunOptions{}
			see := func(i int) {
				if _, err := k.programs.FlatEgress.Run(&options[i]); err != nil {
					t.Error(err)
				}
			}
			for i := range exchanges {
				if i%500 == 0 { // more flows at once might not all find a place
					k.flows(func(words []uint64) { clear(words) })
				}
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
