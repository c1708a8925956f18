package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// marks are what user space must not forget when it is killed: up to where records,
// losses and the like have reached every output. They are the memory of a pinned map that
// no program uses, so what is stored there outlives the process at once, without a
// system call.
type marks = twoCopies[markValues]

const marksPin = "flat_marks"

// twoCopies is a value in a map's memory that changes as a whole: the copies take turns.
type twoCopies[T any] struct {
	active uint32 // which of the copies is in force
	_      uint32
	copies [2]T
}

// read returns the value in force.
func (c *twoCopies[T]) read() T { return c.copies[atomic.LoadUint32(&c.active)&1] }

// change puts another value into force, in one step.
func (c *twoCopies[T]) change(to func(*T)) {
	next := atomic.LoadUint32(&c.active) ^ 1
	c.copies[next&1] = c.copies[(next^1)&1]
	to(&c.copies[next&1])
	atomic.StoreUint32(&c.active, next)
}

// markValues are the Marks, with room for more.
type markValues struct {
	Marks
	spare [27]uint64
}

// Marks are how far each thing has come that the daemon has every output have
// before the kernel's half may forget it. They outlive the daemon, and the next
// one continues from them.
type Marks struct {
	// Records is how many records of the ring have been read and released since
	// the pins were made, Position where the last of them ends in the ring. What
	// comes after is read again.
	Records, Position uint64
	// Unreported is how many events are not in the ring any more, have not been
	// disposed of by every output, and are in no report of lost events that every
	// output has: the next daemon has to report them as lost.
	Unreported uint64
	RingFull   uint64 // reported, of the exchanges that found the ring full
	TableFull  uint64 // reported, of the requests that found the table full
}

// openMarks maps the marks of a layout, and makes them if there are none.
func openMarks(dir string, mapped *memory) (*marks, error) {
	m, err := ebpf.NewMapWithOptions(&ebpf.MapSpec{
		Name: marksPin, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(marks{})), MaxEntries: 1,
		Flags: unix.BPF_F_MMAPABLE, Pinning: ebpf.PinByName,
	}, ebpf.MapOptions{PinPath: dir})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, otherLayout(dir, err)
	}
	if err != nil {
		return nil, explain(fmt.Errorf("open the pinned marks: %w", err))
	}
	defer m.Close() // the memory keeps the map
	p, err := mapped.of(m)
	return (*marks)(p), err
}
