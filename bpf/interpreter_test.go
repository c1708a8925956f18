package bpf

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// interpreter runs the programs of an object without a kernel and counts what
// they execute, which is the same at each run and on every machine. It knows the
// instructions of RFC 9669 that clang makes of flat.c, and the helpers that this
// calls. It is no verifier: what is out of bounds ends the test.
//
// A pointer is the number of a region of memory in its upper half and an offset
// in the lower.
type interpreter struct {
	t       testing.TB
	code    map[string][]instruction
	maps    map[string]*memoryMap
	handles []*memoryMap // by region, for pointers to maps
	memory  [][]byte     // by region
	kept    int          // regions that outlive a run

	packet uint64 // pointer to it
	length int
	now    uint64
	r      [11]uint64

	instructions, calls int
	ring                int // records
}

// instruction is one slot of eight octets (RFC 9669, 3).
type instruction struct {
	op       uint8
	dst, src uint8
	offset   int16
	constant int32
	table    string // the map that a wide load is about
}

// memoryMap is a map of any type: what tells them apart does not matter here.
type memoryMap struct {
	spec    *ebpf.MapSpec
	array   uint64            // pointer to the values of an array
	entries map[string]uint64 // pointers to the values of others, by key
}

// octets is the size of an array.
func (m *memoryMap) octets() uint64 { return uint64(m.spec.MaxEntries * m.spec.ValueSize) }

const (
	stackSize = 512

	interpreterSeed = 0x9e3779b97f4a7c15 // of every hash
	runLimit        = 100_000            // instructions; no path comes near
)

func newInterpreter(t testing.TB, object []byte) *interpreter {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"have_pid", "have_comm"} { // what the newest kernels have costs most
		if v := spec.Variables[name]; v != nil {
			if err := v.Set(true); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Region 0 is empty, so that no pointer is 0.
	x := &interpreter{t: t, code: make(map[string][]instruction), maps: make(map[string]*memoryMap), memory: make([][]byte, 1), now: 1e12}
	for name, m := range spec.Maps {
		x.maps[name] = x.newMap(m)
	}
	// As by a daemon.
	binary.LittleEndian.PutUint64(x.at(x.maps[variablesMap].array+uint64(spec.Variables[kernelVarFlatShared].Offset), 8), interpreterSeed)
	x.kept = len(x.memory)
	for name, p := range spec.Programs {
		x.code[name] = x.decode(p)
	}
	return x
}

func (x *interpreter) newMap(spec *ebpf.MapSpec) *memoryMap {
	m := &memoryMap{spec: spec, entries: make(map[string]uint64)}
	if spec.Type == ebpf.Array || spec.Type == ebpf.PerCPUArray {
		values := make([]byte, spec.ValueSize*spec.MaxEntries)
		for _, c := range spec.Contents {
			copy(values, c.Value.([]byte))
		}
		m.array = x.allocate(values)
	}
	return m
}

// decode resolves a program's references and lays out its slots.
func (x *interpreter) decode(p *ebpf.ProgramSpec) (code []instruction) {
	var raw bytes.Buffer
	if err := p.Instructions.Marshal(&raw, binary.LittleEndian); err != nil {
		x.t.Fatal(err)
	}
	for slot := range slices.Chunk(raw.Bytes(), 8) {
		code = append(code, instruction{
			op: slot[0], dst: slot[1] & 0xf, src: slot[1] >> 4,
			offset:   int16(binary.LittleEndian.Uint16(slot[2:])),
			constant: int32(binary.LittleEndian.Uint32(slot[4:])),
		})
	}
	for at := p.Instructions.Iterate(); at.Next(); {
		if at.Ins.IsLoadFromMap() {
			code[at.Offset].table = at.Ins.Reference()
		}
	}
	return code
}

// allocate makes a region of memory and returns a pointer to it.
func (x *interpreter) allocate(b []byte) uint64 {
	x.memory = append(x.memory, b)
	return uint64(len(x.memory)-1) << 32
}

// at is the memory behind a pointer.
func (x *interpreter) at(pointer, size uint64) []byte {
	region, offset := pointer>>32, pointer&0xffffffff
	if region >= uint64(len(x.memory)) || offset+size > uint64(len(x.memory[region])) {
		x.t.Fatalf("%d octets at %#x are out of bounds", size, pointer)
	}
	return x.memory[region][offset : offset+size]
}

// run has a program see a frame.
func (x *interpreter) run(program string, frame []byte) {
	x.t.Helper()
	x.now += 1000
	x.length = len(frame)
	x.packet = x.allocate(bytes.Clone(frame))
	context := x.allocate(x.context(frame))
	x.instructions, x.calls = 0, 0
	x.r = [11]uint64{1: context}
	x.call(x.code[program], 0)
	if int32(x.r[0]) != -1 {
		x.t.Fatalf("verdict %d, want -1", int32(x.r[0]))
	}
	x.forget()
}

// context is what the programs read of struct __sk_buff. The packet's ends are
// pointers there, though of four octets (see load).
func (x *interpreter) context(frame []byte) []byte {
	const octets, protocol, ifindex, tstamp = 0, 16, 40, 152
	skb := make([]byte, 192)
	binary.LittleEndian.PutUint32(skb[octets:], uint32(len(frame)))
	copy(skb[protocol:], frame[12:14])
	binary.LittleEndian.PutUint32(skb[ifindex:], 2)
	binary.LittleEndian.PutUint64(skb[tstamp:], x.now)
	return skb
}

// forget drops what a run has allocated, but for the values of maps.
func (x *interpreter) forget() {
	memory := x.memory[:x.kept:x.kept]
	for _, m := range x.maps {
		for key, pointer := range m.entries {
			memory = append(memory, x.at(pointer, uint64(m.spec.ValueSize)))
			m.entries[key] = uint64(len(memory)-1) << 32
		}
	}
	x.memory = memory
}

// call runs a function from a slot on, with a stack of its own. Registers 6 to 9
// are the caller's.
func (x *interpreter) call(code []instruction, slot int) {
	saved := x.r
	x.r[10] = x.allocate(make([]byte, stackSize)) + stackSize
	for {
		i := code[slot]
		slot++
		if x.instructions++; x.instructions > runLimit {
			x.t.Fatal("the program does not end")
		}
		switch asm.OpCode(i.op).Class() {
		case asm.ALU64Class, asm.ALUClass:
			x.compute(i)
		case asm.LdClass:
			x.r[i.dst] = x.wide(i, code[slot])
			slot++
		case asm.LdXClass:
			x.r[i.dst] = x.load(x.r[i.src]+uint64(i.offset), size(i))
		case asm.StClass:
			x.store(x.r[i.dst]+uint64(i.offset), size(i), uint64(i.constant))
		case asm.StXClass:
			x.storeRegister(i)
		default:
			switch asm.OpCode(i.op).JumpOp() {
			case asm.Exit:
				copy(x.r[6:], saved[6:])
				return
			case asm.Call:
				if i.src == uint8(asm.PseudoCall) {
					x.call(code, slot+int(i.constant))
				} else {
					x.calls++
					x.r[0] = x.help(asm.BuiltinFunc(i.constant))
				}
			default:
				if x.taken(i) {
					slot += int(i.offset)
				}
			}
		}
	}
}

func size(i instruction) uint64 { return uint64(asm.OpCode(i.op).Size().Sizeof()) }

// wide is a load of 64 bits, or of a pointer to a map or to its value.
func (x *interpreter) wide(i, next instruction) uint64 {
	if i.table == "" {
		return uint64(uint32(i.constant)) | uint64(next.constant)<<32
	}
	m := x.maps[i.table]
	if i.src == uint8(asm.PseudoMapValue) {
		return m.array + uint64(next.constant)
	}
	x.handles = append(x.handles, m)
	return uint64(len(x.handles)) // no region: only helpers take it
}

func (x *interpreter) load(pointer, size uint64) uint64 {
	const data, dataEnd = 76, 80 // in the context, which is behind the packet
	if region := pointer >> 32; region == x.packet>>32+1 && size == 4 {
		switch pointer & 0xffffffff {
		case data:
			return x.packet
		case dataEnd:
			return x.packet + uint64(x.length)
		}
	}
	b := make([]byte, 8)
	copy(b, x.at(pointer, size))
	return binary.LittleEndian.Uint64(b)
}

func (x *interpreter) store(pointer, size, value uint64) {
	copy(x.at(pointer, size), binary.LittleEndian.AppendUint64(nil, value)[:size])
}

// storeRegister also knows the atomic operations that flat.c has.
func (x *interpreter) storeRegister(i instruction) {
	pointer := x.r[i.dst] + uint64(i.offset)
	if asm.OpCode(i.op).Mode() != asm.AtomicMode {
		x.store(pointer, size(i), x.r[i.src])
		return
	}
	const add, fetchAdd, and, compareAndSwap = 0, 1, 0x50, 0xf1
	old := x.load(pointer, size(i))
	switch i.constant {
	case add:
		x.store(pointer, size(i), old+x.r[i.src])
	case and:
		x.store(pointer, size(i), old&x.r[i.src])
	case fetchAdd:
		x.store(pointer, size(i), old+x.r[i.src])
		x.r[i.src] = old
	case compareAndSwap:
		if old == x.r[0] {
			x.store(pointer, size(i), x.r[i.src])
		}
		x.r[0] = old
	default:
		x.t.Fatalf("unknown atomic operation %#x", i.constant)
	}
}

// operand is the other one of an arithmetic or a jump: a register or the constant.
func (x *interpreter) operand(i instruction) uint64 {
	if asm.OpCode(i.op).Source() == asm.RegSource {
		return x.r[i.src]
	}
	return uint64(i.constant)
}

func (x *interpreter) compute(i instruction) {
	op := asm.OpCode(i.op)
	a, b := x.r[i.dst], x.operand(i)
	narrow := op.Class() == asm.ALUClass
	if op.ALUOp() == asm.Swap {
		x.r[i.dst] = reorder(a, i.constant, op.Endianness() == asm.BE || !narrow)
		return
	}
	shift := b & 63
	if narrow {
		a, b, shift = uint64(uint32(a)), uint64(uint32(b)), b&31
	}
	switch op.ALUOp() {
	case asm.Add:
		a += b
	case asm.Sub:
		a -= b
	case asm.Mul:
		a *= b
	case asm.Div:
		a = divided(a, b)
	case asm.Mod:
		if b != 0 {
			a %= b
		}
	case asm.Or:
		a |= b
	case asm.And:
		a &= b
	case asm.Xor:
		a ^= b
	case asm.LSh:
		a <<= shift
	case asm.RSh:
		a >>= shift
	case asm.ArSh:
		if narrow {
			a = uint64(int32(a) >> shift)
		} else {
			a = uint64(int64(a) >> shift)
		}
	case asm.Neg:
		a = -a
	case asm.Mov:
		a = b
	default:
		x.t.Fatalf("unknown arithmetic %v", op)
	}
	if narrow {
		a = uint64(uint32(a))
	}
	x.r[i.dst] = a
}

// divided is by RFC 9669, 4.1, which has 0 for a division by 0.
func divided(a, b uint64) uint64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// reorder takes the lower bits of a value, in the other order of octets or as they are.
func reorder(v uint64, width int32, reversed bool) uint64 {
	if reversed {
		return bits.ReverseBytes64(v) >> (64 - width)
	}
	return v << (64 - width) >> (64 - width)
}

// taken reports whether a jump is.
func (x *interpreter) taken(i instruction) bool {
	op := asm.OpCode(i.op)
	a, b := x.r[i.dst], x.operand(i)
	signedA, signedB := int64(a), int64(b)
	if op.Class() == asm.Jump32Class {
		a, b = uint64(uint32(a)), uint64(uint32(b))
		signedA, signedB = int64(int32(a)), int64(int32(b))
	}
	switch op.JumpOp() {
	case asm.Ja:
		return true
	case asm.JEq:
		return a == b
	case asm.JNE:
		return a != b
	case asm.JGT:
		return a > b
	case asm.JGE:
		return a >= b
	case asm.JLT:
		return a < b
	case asm.JLE:
		return a <= b
	case asm.JSet:
		return a&b != 0
	case asm.JSGT:
		return signedA > signedB
	case asm.JSGE:
		return signedA >= signedB
	case asm.JSLT:
		return signedA < signedB
	case asm.JSLE:
		return signedA <= signedB
	}
	x.t.Fatalf("unknown jump %v", op)
	return false
}
