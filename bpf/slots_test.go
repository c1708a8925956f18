package bpf

import (
	"testing"
	"time"
)

// A request waits in the slot that its hash names, by the same arithmetic here and
// in the kernel, and leaves it with its end.
func TestARequestHasItsSlot(t *testing.T) {
	needObject(t, objectFlat)
	k := openKernel(t, objectFlat)
	for _, class := range exchangeClasses {
		for _, f := range []flow{flow4, flow6} {
			for side, packets := range bothSides(t, class) {
				for _, end := range []string{"answered", "timed out"} {
					t.Run(class.name+" "+side+" "+end, func(t *testing.T) {
						k.t = t
						k.clear()
						all := packets(f)
						k.pass(all[0].in, all[0].frame)
						r := k.openRequests()[0]
						if want := keyHash(k.shared.Seed, &r.Key); r.hash != want {
							t.Errorf("hash %#x, want %#x", r.hash, want)
						}
						if want := r.hash ^ r.FirstNs; r.Version != want {
							t.Errorf("version %#x, want %#x", r.Version, want)
						}
						slot := k.slotOf(r.side, r.hash)
						if !slot.holds(r) {
							t.Errorf("its slot has %#x, want the tag of %#x", slot.Word, r.hash)
						}
						k.end(end, all[1:])
						if n := len(k.openRequests()); n != 0 || slot.Word != 0 {
							t.Errorf("%d requests in the end, the slot has %#x", n, slot.Word)
						}
						k.balanced()
					})
				}
			}
		}
	}
}

// end ends the one open request, by its answer or by its timeout.
func (k *kernel) end(how string, answer []packet) {
	k.t.Helper()
	before := k.count(Finished) + k.count(TimedOut) + k.count(HalfOpen)
	if how == "timed out" {
		k.sweep(time.Minute, limit)
	} else {
		for _, p := range answer {
			k.pass(p.in, p.frame)
		}
	}
	if got := k.count(Finished) + k.count(TimedOut) + k.count(HalfOpen) - before; got != 1 {
		k.t.Errorf("%d ended, want 1", got)
	}
	var err error
	if k.lastCounts, err = k.Counters(); err != nil {
		k.t.Fatal(err)
	}
}

// One whose slot is another's is in the hash map, and found there whatever becomes of
// the slot.
func TestARequestWithoutASlotIsInTheMap(t *testing.T) {
	needObject(t, objectFlat)
	k := openKernel(t, objectFlat)
	for _, class := range exchangeClasses {
		for side, packets := range bothSides(t, class) {
			for _, end := range []string{"answered", "answered once the slot was free", "timed out"} {
				t.Run(class.name+" "+side+" "+end, func(t *testing.T) {
					k.t = t
					k.clear()
					k.crowdSlots(0)
					all := packets(flow4)
					k.pass(all[0].in, all[0].frame)
					r := k.openRequests()[0]
					slot := k.slotOf(r.side, r.hash)
					others := func(want uint64) {
						t.Helper()
						if got := slot.others(); got != want {
							t.Errorf("the slot knows %d others, want %d", got, want)
						}
					}
					if slot.holds(r) {
						t.Fatal("in its slot")
					}
					others(1)
					if end == "answered once the slot was free" {
						slot.Word = slot.others()
					}
					k.pass(all[0].in, all[0].frame)
					k.counted(counts{"requests": 1, "repeats": 1})
					if n := len(k.openRequests()); n != 1 {
						t.Fatalf("%d requests are open, want 1", n)
					}
					k.end(end, all[1:])
					if n := len(k.openRequests()); n != 0 {
						t.Errorf("%d requests are left", n)
					}
					others(0)
					k.balanced()
				})
			}
		}
	}
}

// Two requests with one slot are two exchanges, whichever is answered first.
func TestTwoRequestsWithOneSlot(t *testing.T) {
	needObject(t, objectFlat)
	k := openKernel(t, objectFlat)
	for _, first := range []int{0, 1} {
		k.clear()
		pair := k.twoOfOneSlot()
		for i, f := range pair {
			k.out(f.syn(t, uint32(100*i)))
		}
		if n := len(k.openRequests()); n != 2 {
			t.Fatalf("%d requests are open, want 2", n)
		}
		for _, i := range []int{first, 1 - first} {
			k.in(pair[i].back().synAck(t, uint32(100*i+1)))
		}
		k.counted(counts{"requests": 2, "finished": 2})
		k.balanced()
	}
}

// twoOfOneSlot finds two flows from this host whose TCP requests have one slot.
func (k *kernel) twoOfOneSlot() (pair [2]flow) {
	k.t.Helper()
	slots := make(map[*kernelFlatSlot]flow)
	for i := range 10000 {
		f := numbered(flow4, i)
		key := kernelFlatKey{LocalPort: networkOrder(f.from.Port()), RemotePort: networkOrder(f.to.Port()), Ifindex: runIfindex, Id: kindTCP << kindShift}
		key.Local.Bytes, key.Remote.Bytes = f.from.Addr().As16(), f.to.Addr().As16()
		slot := k.slotOf(SideClient, keyHash(k.shared.Seed, &key))
		if other, ok := slots[slot]; ok {
			return [2]flow{other, f}
		}
		slots[slot] = f
	}
	k.t.Fatal("each of 10000 requests has its own slot, of 1024")
	panic("not reached")
}

// Requests that differ in a port alone, as those of one host to another do, come
// to each slot, to each set of flows and of attempts about equally often.
func TestHashesAreSpreadEvenly(t *testing.T) {
	const keys, seed = 60000, 0x9e3779b97f4a7c15
	for name, of := range map[string]struct {
		number uint64
		hash   func(*kernelFlatKey) uint64
	}{
		"slots":    {1024, func(key *kernelFlatKey) uint64 { return keyHash(seed, key) }},          // SLOTS
		"flows":    {32768, func(key *kernelFlatKey) uint64 { return flowHash(seed, key) }},        // FLOW_SETS
		"attempts": {8192, func(key *kernelFlatKey) uint64 { return seenHash(seed, 1, key, 100) }}, // ATTEMPT_SETS
	} {
		for _, port := range []func(*kernelFlatKey) *uint16{
			func(k *kernelFlatKey) *uint16 { return &k.LocalPort },
			func(k *kernelFlatKey) *uint16 { return &k.RemotePort },
		} {
			key := kernelFlatKey{Id: kindTCP << kindShift, LocalPort: 443, RemotePort: 443, Ifindex: 2}
			times := make([]float64, of.number)
			for i := range uint16(keys) {
				*port(&key) = i
				times[of.hash(&key)%of.number]++
			}
			mean := float64(keys) / float64(of.number)
			chi := 0.0 // squared, of each degree of freedom
			for _, n := range times {
				chi += (n - mean) * (n - mean) / mean / float64(of.number-1)
			}
			if chi > 1.25 {
				t.Errorf("%s: chi squared is %.2f, want about 1", name, chi)
			}
		}
	}
}

// Nobody can find the requests of one slot who does not know the seed: it is another
// on each host, and from each start to the next the same.
func TestTheSeedIsSetOnce(t *testing.T) {
	first, second := openKernel(t), openKernel(t)
	if first.shared.Seed == 0 || first.shared.Seed == second.shared.Seed {
		t.Errorf("seeds %#x and %#x", first.shared.Seed, second.shared.Seed)
	}
	seed := first.shared.Seed
	if first.shared.setSeed(); first.shared.Seed != seed {
		t.Errorf("seed %#x, was %#x", first.shared.Seed, seed)
	}
	// A difference in any bit of the key makes another hash, whatever the seed.
	key := kernelFlatKey{Id: kindTCP << kindShift}
	for _, seed := range []uint64{0, 1, seed} {
		seen := map[uint64]bool{keyHash(seed, &key): true}
		for i := range 8 * len(bytesOf(&key)) {
			bytesOf(&key)[i/8] ^= 1 << (i % 8)
			if hash := keyHash(seed, &key); seen[hash] || hash>>tagShift == 0 {
				t.Errorf("bit %d with the seed %#x: hash %#x", i, seed, hash)
			} else {
				seen[hash] = true
			}
			bytesOf(&key)[i/8] ^= 1 << (i % 8)
		}
	}
}
