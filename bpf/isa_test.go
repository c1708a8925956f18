package bpf

import (
	"bytes"
	"embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/gopacket/gopacket/layers"

	"github.com/flatd/flatd/packaging/testbed"
)

//go:embed flat510_bpfel.o flat510_bpfeb.o
var objects510 embed.FS

// oldest is the kernel that the programs have to load on, 510 for Linux 5.10.
const oldest = 510

// helperSince is the kernel in which each helper appeared, for programs of tc.
var helperSince = map[asm.BuiltinFunc]int{
	asm.FnMapLookupElem:        319,
	asm.FnMapUpdateElem:        319,
	asm.FnMapDeleteElem:        319,
	asm.FnGetPrandomU32:        401,
	asm.FnSkbLoadBytes:         405,
	asm.FnSkbPullData:          409,
	asm.FnGetSocketCookie:      412,
	asm.FnGetSocketUid:         412,
	asm.FnSkbCgroupId:          418,
	asm.FnSkbLoadBytesRelative: 418,
	asm.FnSpinLock:             501,
	asm.FnSpinUnlock:           501,
	asm.FnRingbufReserve:       508,
	asm.FnRingbufSubmit:        508,
	asm.FnRingbufDiscard:       508,
	asm.FnRingbufQuery:         508,
	asm.FnKtimeGetBootNs:       508,
}

var (
	// What -mcpu=v2 has; v3 adds 32-bit arithmetic and jumps, v4 signed division and moves.
	aluOps = []asm.ALUOp{asm.Add, asm.Sub, asm.Mul, asm.Div, asm.Or, asm.And, asm.LSh,
		asm.RSh, asm.Neg, asm.Mod, asm.Xor, asm.Mov, asm.ArSh}
	jumpOps = []asm.JumpOp{asm.Ja, asm.JEq, asm.JGT, asm.JGE, asm.JSet, asm.JNE, asm.JSGT,
		asm.JSGE, asm.JLT, asm.JLE, asm.JSLT, asm.JSLE, asm.Call, asm.Exit}
)

// tooNew says what about an instruction the oldest kernel does not know.
func tooNew(ins asm.Instruction) string {
	op := ins.OpCode
	switch class := op.Class(); {
	case ins.IsBuiltinCall():
		switch version, known := helperSince[asm.BuiltinFunc(ins.Constant)]; {
		case !known:
			return "a helper that is not listed in helperSince"
		case version > oldest:
			return fmt.Sprintf("a helper of Linux %d.%d", version/100, version%100)
		}
	case ins.IsKfuncCall():
		return "a kfunc (5.13)"
	case ins.IsLoadOfFunctionPointer():
		return "a pointer to a function (5.13)"
	case class == asm.Jump32Class:
		return "a 32-bit jump (-mcpu=v3)"
	case class == asm.JumpClass && (!slices.Contains(jumpOps, op.JumpOp()) || op.JumpOp() == asm.Call && op.Source() == asm.RegSource):
		return "a new jump"
	case class == asm.ALUClass && op.ALUOp() != asm.Swap:
		return "32-bit arithmetic (-mcpu=v3)"
	case class == asm.ALU64Class && !slices.Contains(aluOps, op.ALUOp()):
		return "new arithmetic (-mcpu=v4)"
	case op.Mode() == asm.AtomicMode && op.AtomicOp() != asm.AddAtomic:
		return "an atomic that is more than an addition (5.12)"
	case op.Mode() == asm.MemSXMode:
		return "a load with sign extension (-mcpu=v4)"
	}
	return ""
}

func TestInstructionsAreKnownToLinux510(t *testing.T) {
	for _, object := range []string{"flat510_bpfel.o", "flat510_bpfeb.o"} {
		raw, err := objects510.ReadFile(object)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if len(spec.Programs) != 5 {
			t.Errorf("%s has %d programs, want 5", object, len(spec.Programs))
		}
		for name, program := range spec.Programs {
			t.Logf("%s: %s: %d instructions with the functions it calls", object, name, len(program.Instructions))
			for i, ins := range program.Instructions {
				if problem := tooNew(ins); problem != "" {
					t.Errorf("%s: %s: instruction %d (%v) is %s", object, name, i, ins, problem)
				}
			}
		}
	}
}

// The check above must be able to fail.
func TestTooNewInstructionsAreFound(t *testing.T) {
	for _, ins := range []asm.Instruction{
		asm.FnLoop.Call(), asm.FnTimerInit.Call(), asm.BuiltinFunc(9999).Call(),
		{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall},
		asm.FetchAdd.Mem(asm.R1, asm.R2, asm.DWord, 0), asm.CmpXchg.Mem(asm.R1, asm.R2, asm.DWord, 0),
		asm.Add.Imm32(asm.R1, 1), asm.JEq.Imm32(asm.R1, 1, "x"), asm.SDiv.Imm(asm.R1, 2),
		asm.MovSX8.Reg(asm.R1, asm.R2), asm.LoadMemSX(asm.R1, asm.R2, 0, asm.Word),
		asm.BSwap(asm.R1, asm.Word),
	} {
		if tooNew(ins) == "" {
			t.Errorf("%v passes for something that Linux 5.10 runs", ins)
		}
	}
}

// The verifier gives up after a million instructions, and kernels differ in how many paths
// they follow: stay well below. The object for Linux 5.10 writes out what flat calls a helper
// for, and may take half.
func TestVerifierHasRoomLeft(t *testing.T) {
	const most = 1_000_000
	limits := map[string]int{objectFlat.name: most / 4, objectFlat510.name: most / 2}
	processed := regexp.MustCompile(`processed (\d+) insns`)
	eachObject(t, func(t *testing.T, o object) {
		for name, program := range verified(t, o).Programs {
			match := processed.FindStringSubmatch(program.VerifierLog)
			if match == nil {
				t.Fatalf("%s: the verifier does not say how many instructions it went through: %q", name, program.VerifierLog)
			}
			n, err := strconv.Atoi(match[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d instructions verified", name, n)
			if limit := limits[o.name]; n > limit {
				t.Errorf("%s: the verifier went through %d instructions, want at most %d", name, n, limit)
			}
		}
	})
}

// verified is an object that was just loaded, each program with what the verifier says of it.
func verified(t *testing.T, o object) *ebpf.Collection {
	t.Helper()
	spec, err := o.spec()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	// Fails where the host does not allow it, and matters before Linux 5.11 only.
	_ = rlimit.RemoveMemlock()
	stats := ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats, LogSizeStart: 1 << 20}}
	collection, err := ebpf.NewCollectionWithOptions(spec, stats)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(collection.Close)
	return collection
}

// A program and the functions that it calls have 512 octets of stack between them. The
// verifier of older kernels rounds what each takes up to 32, so that a program which this
// kernel loads may be too much for an older one.
func TestStacksFitOlderKernels(t *testing.T) {
	const stackMax, rounded = 512, 32
	eachObject(t, func(t *testing.T, o object) {
		spec, err := o.spec()
		if err != nil {
			t.Fatal(err)
		}
		collection := verified(t, o)
		for name, program := range collection.Programs {
			functions, calls := functionsOf(spec.Programs[name].Instructions)
			depths := stackDepths(t, program.VerifierLog)
			if len(functions) != len(depths) {
				t.Fatalf("%s: %d functions, the verifier saw %d", name, len(functions), len(depths))
			}
			var deepest func(f string) (int, []string)
			deepest = func(f string) (below int, chain []string) {
				for called := range calls[f] {
					if d, c := deepest(called); d > below {
						below, chain = d, c
					}
				}
				own := depths[slices.Index(functions, f)]
				return below + (max(own, 1)+rounded-1)/rounded*rounded, append([]string{fmt.Sprintf("%s (%d)", f, own)}, chain...)
			}
			depth, chain := deepest(functions[0])
			t.Logf("%s: %d of %d octets: %s", name, depth, stackMax, strings.Join(chain, ", "))
			if depth > stackMax {
				t.Errorf("%s takes %d octets of stack, of %d: %s", name, depth, stackMax, strings.Join(chain, ", "))
			}
		}
	})
}

// functionsOf are the functions of a program in their order, the first is its own, and
// which each calls.
func functionsOf(program asm.Instructions) (functions []string, calls map[string]map[string]bool) {
	calls = make(map[string]map[string]bool)
	for _, ins := range program {
		if f := ins.Symbol(); f != "" && btf.FuncMetadata(&ins) != nil {
			functions = append(functions, f)
			calls[f] = make(map[string]bool)
		}
		if ins.IsFunctionCall() {
			calls[functions[len(functions)-1]][ins.Reference()] = true
		}
	}
	return functions, calls
}

// stackDepths are what the verifier says of each function.
func stackDepths(t *testing.T, log string) (depths []int) {
	t.Helper()
	_, rest, ok := strings.Cut(log, "\nstack depth ")
	if !ok {
		t.Skip("this kernel does not tell how deep the stack is")
	}
	for text := range strings.SplitSeq(strings.Fields(rest)[0], "+") {
		depth, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("stack depth %q: %v", rest, err)
		}
		depths = append(depths, depth)
	}
	return depths
}

// entries are the programs that see packets.
func (k *kernel) entries() map[string]*ebpf.Program {
	k.t.Helper()
	if err := k.needL3(); err != nil {
		k.t.Fatal(err)
	}
	return map[string]*ebpf.Program{
		kernelProgFlatIngress:   k.programs.FlatIngress,
		kernelProgFlatEgress:    k.programs.FlatEgress,
		kernelProgFlatIngressL3: k.programs.FlatIngressL3,
		kernelProgFlatEgressL3:  k.programs.FlatEgressL3,
	}
}

// segments are what most packets of a host are: TCP that opens and closes nothing.
func segments(t testing.TB, f flow) [][]byte {
	tagged, double := f, f
	tagged.vlans, double.vlans = []uint16{7}, []uint16{7, 8}
	return [][]byte{
		f.data(t), tagged.data(t), double.data(t),
		f.tcp(t, func(h *layers.TCP) { h.ACK = true }),
		f.tcp(t, func(h *layers.TCP) { h.ACK = true; h.FIN = true }),
	}
}

// ordinary is the segments and the SYNs to run through a program.
func ordinary(t testing.TB, program string) (data, syns [][]byte) {
	if program == kernelProgFlatIngress || program == kernelProgFlatEgress {
		data = append(segments(t, flow4), segments(t, flow6)...)
		return data, [][]byte{flow4.syn(t, 1), flow6.syn(t, 1)}
	}
	for _, f := range []flow{bare4, bare6} {
		data = append(data, f.data(t)[etherHeader:])
		syns = append(syns, f.syn(t, 1)[etherHeader:])
	}
	return data, syns
}

func TestHotPathCountsNothing(t *testing.T) {
	setOuterFirst(t, false)
	k := openKernel(t)
	for name, program := range k.entries() {
		data, syns := ordinary(t, name)
		for _, frame := range data {
			if _, err := program.Run(&ebpf.RunOptions{Data: frame, Repeat: 1000}); err != nil {
				t.Fatal(err)
			}
		}
		k.counted(nil)
		for _, syn := range syns {
			k.run(program, syn)
		}
		k.counted(counts{"requests": 2})
		k.clear()
	}
}

// Ordinary segments must cost no helper call, and with it no map lookup: in
// copies of the programs each call goes to a function that leaves a mark.
func TestHotPathCallsNothing(t *testing.T) {
	setOuterFirst(t, false)
	testbed.Root(t)
	for _, name := range []string{kernelProgFlatIngress, kernelProgFlatEgress, kernelProgFlatIngressL3, kernelProgFlatEgressL3} {
		t.Run(name, func(t *testing.T) {
			program, mark := withCallsMarked(t, name)
			called := func(frame []byte) bool {
				t.Helper()
				if _, err := program.Run(&ebpf.RunOptions{Data: frame}); err != nil {
					t.Fatal(err)
				}
				var marked uint32
				if err := mark.Lookup(uint32(0), &marked); err != nil {
					t.Fatal(err)
				}
				return marked != 0
			}
			data, syns := ordinary(t, name)
			for _, frame := range data {
				if called(frame) {
					t.Fatalf("an ordinary segment led to a call:\n% x", frame)
				}
			}
			if !called(syns[0]) {
				t.Error("no call for a SYN: the copy is no good")
			}
		})
	}
}

// withCallsMarked loads the entry function of a program with a mark in place
// of every call it makes.
func withCallsMarked(t *testing.T, name string) (*ebpf.Program, *ebpf.Map) {
	t.Helper()
	spec, err := objectFlat.spec()
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(spec.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	spec.Maps["mark"] = &ebpf.MapSpec{Name: "mark", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	entry := spec.Programs[name]
	entry.Instructions = markCalls(entry.Instructions)

	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(collection.Close)
	return collection.Programs[name], collection.Maps["mark"]
}

// markCalls returns the first function of a program with its calls changed.
// Debug information is left behind: it would not fit any more.
func markCalls(program asm.Instructions) (marked asm.Instructions) {
	for i, ins := range program {
		if i > 0 && ins.Symbol() != "" {
			break // the next function
		}
		if ins.IsBuiltinCall() || ins.IsFunctionCall() {
			ins = asm.Call.Label("mark_call")
		}
		bare := ins.WithMetadata(asm.Metadata{}).WithSymbol(ins.Symbol())
		marked = append(marked, bare.WithReference(ins.Reference()))
	}
	return append(marked,
		asm.LoadMapValue(asm.R1, 0, 0).WithReference("mark").WithSymbol("mark_call"),
		asm.StoreImm(asm.R1, 0, 1, asm.Word),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return())
}
