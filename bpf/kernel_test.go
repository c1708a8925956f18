package bpf

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/flatd/flatd/bpf/testbed"
)

// kernel is a State of the test's own, attached to nothing: packets are run
// through its programs one by one.
type kernel struct {
	*State
	t      testing.TB
	reader *Reader
	told   Counters
}

func openKernel(t testing.TB) *kernel {
	t.Helper()
	k := &kernel{t: t, State: openState(t, testbed.BPFFS(t))}
	r, err := k.Reader()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	k.reader = r
	return k
}

func openState(t testing.TB, path string) *State {
	t.Helper()
	s, err := Open(path, Auto)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// in and out run a frame through the program of that direction. The frame must
// come back as it was, the verdict must be "next".
func (k *kernel) in(frame []byte)  { k.t.Helper(); k.run(k.programs.FlatIngress, frame) }
func (k *kernel) out(frame []byte) { k.t.Helper(); k.run(k.programs.FlatEgress, frame) }

func (k *kernel) run(p *ebpf.Program, frame []byte) {
	k.t.Helper()
	verdict, after, err := p.Test(frame)
	if err != nil {
		k.t.Fatalf("run %d bytes: %v", len(frame), err)
	}
	if int32(verdict) != -1 {
		k.t.Fatalf("verdict %d, want -1", int32(verdict))
	}
	if !bytes.Equal(after, frame) {
		k.t.Fatalf("the packet was altered:\n% x\n% x", frame, after)
	}
}

// clear forgets all pending exchanges.
func (k *kernel) clear() {
	k.t.Helper()
	for _, table := range []*ebpf.Map{k.maps.FlatOurs, k.maps.FlatTheirs} {
		err := eachPending(table, func(key *kernelFlatKey, _ *kernelFlatPending) error { return table.Delete(key) })
		if err != nil {
			k.t.Fatal(err)
		}
	}
}

// records reads what the programs reported since the last call.
func (k *kernel) records() []kernelFlatRecord {
	k.t.Helper()
	var all []kernelFlatRecord
	for {
		raw, _, ok := k.reader.Next()
		if !ok {
			return all
		}
		if len(raw) < int(unsafe.Sizeof(kernelFlatRecord{})) {
			k.t.Fatalf("a record of %d bytes", len(raw))
		}
		all = append(all, *(*kernelFlatRecord)(unsafe.Pointer(&raw[0])))
		k.reader.Commit()
	}
}

// counted checks which counters moved since the last call, and by how much;
// no other may have moved.
func (k *kernel) counted(want map[string]uint64) {
	k.t.Helper()
	now, err := k.Counters()
	if err != nil {
		k.t.Fatal(err)
	}
	for i := range now {
		name := Counter(i).String()
		if got := now[i] - k.told[i]; got != want[name] {
			k.t.Errorf("counter %s moved by %d, want %d", name, got, want[name])
		}
	}
	k.told = now
}

func TestEveryCounterHasAName(t *testing.T) {
	seen := make(map[string]bool)
	for i, name := range counterNames {
		if name == "" || seen[name] {
			t.Errorf("counter %d is named %q", i, name)
		}
		seen[name] = true
	}
}

func TestNoiseComesBackUnaltered(t *testing.T) {
	k := openKernel(t)
	noise := make([]byte, 15)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	noise[12], noise[13] = 0x88, 0xb5 // an EtherType for experiments (IEEE 802), not IP by chance
	k.in(noise)
	k.out(noise)
	k.counted(map[string]uint64{"not_ip": 2})
}

func TestRandomPacketsNeverAlteredNorMisread(t *testing.T) {
	k := openKernel(t)
	seeds := [][]byte{
		flow4.syn(t, 1), flow4.back().synAck(t, 2), flow6.rst(t, 3), flow6.udp(t, 1, 2, 3),
		flow4.port(53).dns(t, 1, nil), flow4.echo(t, 1, 1, false), flow6.echo(t, 1, 1, true),
	}
	random := rand.New(rand.NewPCG(1, 2))
	const rounds = 4000
	for range rounds {
		frame := bytes.Clone(seeds[random.IntN(len(seeds))])
		for range 1 + random.IntN(8) {
			frame[12+random.IntN(len(frame)-12)] = byte(random.Uint32())
		}
		// The kernel refuses a test run on less than an IPv6 header.
		frame = frame[:min(len(frame), 54+random.IntN(40))]
		if len(frame) < 54 {
			frame = append(frame, make([]byte, 54-len(frame))...)
		}
		if random.IntN(2) == 0 {
			k.in(frame)
		} else {
			k.out(frame)
		}
	}
	c, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	// Whatever they were taken for, the books balance.
	swept, err := k.Sweep(BootTime(), 1<<62, func(uint8, []byte, []byte, []byte) {})
	if err != nil {
		t.Fatal(err)
	}
	open := uint64(swept.OpenOurs + swept.OpenTheirs)
	if c[Requests] != c[Finished]+c[Replaced]+c[PendingFull]+open {
		t.Errorf("requests %d != finished %d + replaced %d + full %d + open %d", c[Requests], c[Finished], c[Replaced], c[PendingFull], open)
	}
	if got := uint64(len(k.records())); c[Finished] != got {
		t.Errorf("finished %d, but read %d records", c[Finished], got)
	}
	if c[Requests] == 0 {
		t.Error("no mutated packet was taken for a request: the seeds are dead")
	}
}
