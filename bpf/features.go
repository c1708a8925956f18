package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// haveFetchAdd tells whether the kernel has atomics that return a value, as
// Linux has since 5.12 (commit 5ffa25502b5a). It is an error not to be permitted to
// ask: whoever took that for a no would make maps for another kernel.
var haveFetchAdd = sync.OnceValues(func() (bool, error) {
	add := asm.FetchAdd.Mem(asm.RFP, asm.R0, asm.DWord, -8)
	add.Constant = 1 // BPF_FETCH, which cilium/ebpf v0.22.0 loses: without it any kernel has it
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0),
			asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
			add,
			asm.Return(),
		},
		License: "Dual BSD/GPL",
	})
	switch {
	case errors.Is(err, unix.EPERM):
		return false, explain(fmt.Errorf("ask what the kernel has: %w", err))
	case err != nil:
		return false, nil
	}
	p.Close()
	return true, nil
})

// haveHelper tells whether programs of tc may call a helper.
func haveHelper(f asm.BuiltinFunc) bool {
	return features.HaveProgramHelper(ebpf.SchedCLS, f) == nil
}

// outerFirst tells whether packets from a tunnel have the headers around them in
// front, as before Linux 5.14. Nothing short of a tunnel would show it, so this
// goes by the version.
var outerFirst = func() bool {
	version, err := features.LinuxVersionCode()
	return err == nil && version < 5<<16|14<<8
}
