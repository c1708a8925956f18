package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/asm"
)

// help does what a helper would (bpf-helpers(7)), for one packet that is linear
// and belongs to a process in cgroup 1.
func (x *interpreter) help(f asm.BuiltinFunc) uint64 {
	switch f {
	case asm.FnMapLookupElem:
		return x.lookup()
	case asm.FnMapUpdateElem:
		return x.update()
	case asm.FnMapDeleteElem:
		return x.remove()
	case asm.FnKtimeGetNs, asm.FnKtimeGetBootNs, asm.FnKtimeGetCoarseNs:
		return x.now
	case asm.FnSkbLoadBytes:
		if x.r[2]+x.r[4] > uint64(x.length) {
			return failure(14) // EFAULT
		}
		copy(x.at(x.r[3], x.r[4]), x.at(x.packet+x.r[2], x.r[4]))
		return 0
	case asm.FnRingbufReserve:
		return x.allocate(make([]byte, x.r[2]))
	case asm.FnRingbufSubmit:
		x.ring++
		return 0
	case asm.FnRingbufQuery, asm.FnRingbufDiscard: // it is empty
		return 0
	case asm.FnSkbCgroupId, asm.FnGetCurrentCgroupId, asm.FnGetCurrentPidTgid, asm.FnGetSocketUid, asm.FnGetSocketCookie:
		return 1
	case asm.FnSkbPullData, asm.FnGetCurrentComm, asm.FnSpinLock, asm.FnSpinUnlock, asm.FnGetPrandomU32:
		return 0
	}
	x.t.Fatalf("unknown helper %v", f)
	return 0
}

func failure(errno int64) uint64 { return uint64(-errno) }

// table is the map and the key of a call, in the registers 1 and 2.
func (x *interpreter) table() (m *memoryMap, key []byte) {
	m = x.handles[x.r[1]-1]
	return m, x.at(x.r[2], uint64(m.spec.KeySize))
}

func (x *interpreter) lookup() uint64 {
	m, key := x.table()
	if m.array == 0 {
		return m.entries[string(key)]
	}
	n := binary.LittleEndian.Uint32(key)
	if n >= m.spec.MaxEntries {
		return 0
	}
	return m.array + uint64(n*m.spec.ValueSize)
}

func (x *interpreter) update() uint64 {
	m, key := x.table()
	const noExist = 1
	if m.entries[string(key)] != 0 && x.r[4] == noExist {
		return failure(17) // EEXIST
	}
	m.entries[string(key)] = x.allocate(bytes.Clone(x.at(x.r[3], uint64(m.spec.ValueSize))))
	return 0
}

func (x *interpreter) remove() uint64 {
	m, key := x.table()
	if m.entries[string(key)] == 0 {
		return failure(2) // ENOENT
	}
	delete(m.entries, string(key))
	return 0
}

// counters are the kernel's, by name.
func (x *interpreter) counters() counts {
	moved := make(counts)
	raw := x.at(x.maps["flat_counters"].array, uint64(8*len(counterNames)))
	for i, name := range counterNames {
		if n := binary.LittleEndian.Uint64(raw[8*i:]); n != 0 {
			moved[name] = n
		}
	}
	return moved
}

// clear forgets all exchanges and counts anew.
func (x *interpreter) clear() {
	for name, m := range x.maps {
		if name != "flat_histograms" { // which are made once
			clear(m.entries)
		}
	}
	clear(x.at(x.maps["flat_counters"].array, uint64(8*len(counterNames))))
	for _, name := range []string{"flat_flows", "flat_slots", "flat_attempts", "flat_hints"} {
		clear(x.at(x.maps[name].array, x.maps[name].octets()))
	}
	x.ring = 0
}

// interpreted are the two objects that kernels on machines like this may load.
func interpreted(t testing.TB) map[string]*interpreter {
	t.Helper()
	if endian := uint16(1); *(*byte)(unsafe.Pointer(&endian)) != 1 {
		t.Skip("the interpreter takes the memory of a little-endian machine")
	}
	return map[string]*interpreter{
		"flat":    newInterpreter(t, _KernelBytes),
		"flat510": newInterpreter(t, _Kernel510Bytes),
	}
}

// TestInterpreter: whatever the kernel makes of a packet, the interpreter does.
func TestInterpreter(t *testing.T) {
	for object, x := range interpreted(t) {
		for _, table := range tables {
			for i, family := range []string{"ipv4", "ipv6"} {
				f := paths[0].flows[i]
				for _, e := range table.build(t, f) {
					t.Run(fmt.Sprintf("%s %s %s %s", object, table.name, family, e.name), func(t *testing.T) {
						x.t = t
						x.try(e)
					})
				}
			}
		}
	}
}

// try runs an exchange as kernel.try does.
func (x *interpreter) try(e exchange) {
	x.t.Helper()
	x.clear()
	for _, p := range e.packets {
		if p.frame == nil {
			x.timeOutAll()
			continue
		}
		x.run(programFor(p), p.frame)
	}
	if x.ring != len(e.records) {
		x.t.Errorf("%d records, want %d", x.ring, len(e.records))
	}
	got := x.counters()
	for name, n := range e.counts {
		if got[name] != n {
			x.t.Errorf("counter %s moved by %d, want %d", name, got[name], n)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		x.t.Errorf("these counters moved, too: %v", got)
	}
}

// timeOutAll is that of kernel.
func (x *interpreter) timeOutAll() {
	x.t.Helper()
	x.now += uint64(time.Second)
	slots := x.maps[kernelMapFlatSlots]
	all := x.at(slots.array, slots.octets())
	for i := range slots.spec.MaxEntries {
		slot := (*kernelFlatSlot)(ptr(all[i*slots.spec.ValueSize:]))
		if slot.tag() != 0 {
			side := uint8(SideClient)
			if i >= slots.spec.MaxEntries/2 {
				side = SideServer
			}
			x.timeOut(openRequest{side, keyHash(interpreterSeed, &slot.Request.Key), slot.Request})
		}
	}
	for side, name := range map[uint8]string{SideClient: kernelMapFlatOurs, SideServer: kernelMapFlatTheirs} {
		m := x.maps[name]
		for key := range m.entries {
			open := (*kernelFlatOpen)(ptr(x.at(m.entries[key], uint64(m.spec.ValueSize))))
			x.timeOut(openRequest{side, binary.LittleEndian.Uint64([]byte(key)), open.Request})
		}
	}
}

func (x *interpreter) timeOut(r openRequest) {
	x.t.Helper()
	x.run(kernelProgFlatTimeout, append(make([]byte, etherHeader), bytesOf(r.overdue(waited))...))
}

func programFor(p packet) string {
	if p.in {
		return kernelProgFlatIngress
	}
	return kernelProgFlatEgress
}
