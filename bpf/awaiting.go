package bpf

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// awaiting is the end of flat_awaiting (awaiting.h), in the programs' memory:
// whether they need look at its slots at all. A nil one changes nothing.
type awaiting struct {
	memory          []byte
	latest, settled *uint32 // units of 2^30 ns of CLOCK_BOOTTIME, from 1
}

func openAwaiting(dir string, spec *ebpf.CollectionSpec) (*awaiting, error) {
	variable := spec.Variables[awaitingVariable]
	if variable == nil {
		return nil, fmt.Errorf("the programs have no variable %s", awaitingVariable)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, awaitingPin), nil)
	if err != nil {
		return nil, explain(fmt.Errorf("open the pinned map of awaited ACKs: %w", err))
	}
	defer m.Close() // the memory keeps the map
	size := int(m.ValueSize())
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map what is awaited: %w", err)
	}
	end := int(variable.Offset + variable.Size())
	word := func(at int) *uint32 { return (*uint32)(unsafe.Pointer(&memory[at])) }
	return &awaiting{memory: memory, latest: word(end - 8), settled: word(end - 4)}, nil
}

// quiet is when the latest slot was taken, or 0 if that may be now: one that is
// taken in the same unit could not be told from it.
func (a *awaiting) quiet() uint32 {
	if a == nil {
		return 0
	}
	now := uint32(BootTime()>>30) + 1
	latest := atomic.LoadUint32(a.latest)
	if latest >= now {
		return 0
	}
	return latest
}

// settle has the programs leave the slots alone until one is taken, if since a
// call of quiet, which returned latest, no handshake from outside was open.
func (a *awaiting) settle(latest uint32) {
	if latest != 0 {
		atomic.StoreUint32(a.settled, latest)
	}
}

func (a *awaiting) close() error {
	if a == nil {
		return nil
	}
	return unix.Munmap(a.memory)
}
