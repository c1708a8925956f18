package bpf

import (
	"fmt"
	"math"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The gates, as in enum flat_gate of gate.h.
const (
	gateHandshakes = iota
	gateOurSYNs
	gateTheirSYNs
	gatesCount
)

// gates are those of gate.h, in the programs' memory. Nil ones stay open.
type gates struct {
	memory    []byte
	all       *[gatesCount]gate
	suspended *uint64 // flat_suspended_ns of owner.h
}

// gate is in units of 2^30 ns of CLOCK_BOOTTIME, from 1.
type gate struct{ opened, shut uint32 }

// gateMargin is how many units a gate has to have been left alone before it is
// shut: more than a program takes from opening it to putting something behind it.
const gateMargin = 2

func openGates(dir string, spec *ebpf.CollectionSpec) (*gates, error) {
	all, suspended := spec.Variables[kernelVarFlatGates], spec.Variables[kernelVarFlatSuspendedNs]
	if all == nil || uintptr(all.Size()) != unsafe.Sizeof([gatesCount]gate{}) || suspended == nil {
		return nil, fmt.Errorf("the programs have no %s, of %d, or no %s", kernelVarFlatGates, gatesCount, kernelVarFlatSuspendedNs)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, variablesPin), nil)
	if err != nil {
		return nil, explain(fmt.Errorf("open the pinned variables: %w", err))
	}
	defer m.Close() // the memory keeps the map
	memory, err := mapMemory(m)
	if err != nil {
		return nil, err
	}
	g := &gates{memory, (*[gatesCount]gate)(unsafe.Pointer(&memory[all.Offset])), (*uint64)(unsafe.Pointer(&memory[suspended.Offset]))}
	g.tellSuspended()
	return g, nil
}

// tellSuspended tells the programs for how long the host was suspended since it
// was booted, as near as it can be found.
func (g *gates) tellSuspended() {
	if g == nil {
		return
	}
	shortest := uint64(math.MaxUint64)
	var suspended uint64
	for range 3 { // a task switch may come between
		before, boot, after := clock(unix.CLOCK_MONOTONIC), BootTime(), clock(unix.CLOCK_MONOTONIC)
		if after-before < shortest {
			shortest, suspended = after-before, max(boot, after)-after
		}
	}
	// What is less is the time it took to ask.
	if suspended < uint64(time.Millisecond) {
		suspended = 0
	}
	atomic.StoreUint64(g.suspended, suspended)
}

// gateOfSYNs is that before the TCP requests of a side.
func gateOfSYNs(side uint8) int {
	if side == SideClient {
		return gateOurSYNs
	}
	return gateTheirSYNs
}

func gateUnit() uint32 { return uint32(BootTime()>>30) + 1 }

// quiet is when each gate was opened last, or 0 of one that may just be passed.
// That of one never opened is the first unit there is.
func (g *gates) quiet() (since [gatesCount]uint32) {
	if g == nil {
		return since
	}
	for i := range g.all {
		opened := &g.all[i].opened
		atomic.CompareAndSwapUint32(opened, 0, 1)
		if last := atomic.LoadUint32(opened); last+gateMargin <= gateUnit() {
			since[i] = last
		}
	}
	return since
}

// shut shuts a gate, if there has been nothing behind it since a call of quiet,
// which returned since for it.
func (g *gates) shut(gate int, since uint32) {
	if since != 0 {
		atomic.StoreUint32(&g.all[gate].shut, since)
	}
}

// open is for user space that puts something behind a gate.
func (g *gates) open(gate int) { atomic.StoreUint32(&g.all[gate].opened, gateUnit()) }

func (g *gates) close() error {
	if g == nil {
		return nil
	}
	return unix.Munmap(g.memory)
}
