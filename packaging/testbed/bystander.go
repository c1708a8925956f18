package testbed

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Bystander is somebody else's program of tc, which counts the packets that it
// sees and says "next" as flatd's do.
type Bystander struct {
	*ebpf.Program
	t    testing.TB
	seen *ebpf.Map
}

// NewBystander loads one, until the test ends.
func NewBystander(t testing.TB) *Bystander {
	t.Helper()
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seen.Close() })
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "bystander",
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.LoadMapValue(asm.R1, seen.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
			asm.Mov.Imm(asm.R0, -1), // TCX_NEXT, TC_ACT_UNSPEC
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return &Bystander{program, t, seen}
}

// Packets is how many it has seen.
func (b *Bystander) Packets() (n uint64) {
	b.t.Helper()
	if err := b.seen.Lookup(uint32(0), &n); err != nil {
		b.t.Fatal(err)
	}
	return n
}
