package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// marks are what user space must not forget when it is killed: up to where records,
// losses and the like have reached every output. They are the memory of a pinned map that
// no program uses, so what is stored there outlives the process at once, without a
// system call. They change as a whole: two copies take turns.
type marks struct {
	memory []byte
	*marksPage

	mu sync.Mutex // guards the copies
}

const marksPin = "flat_marks"

type marksPage struct {
	active uint32 // which of the copies is in force
	_      uint32
	copies [2]markValues
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

func openMarks(dir string) (*marks, error) {
	m, err := pinnedMarks(filepath.Join(dir, marksPin))
	if err != nil {
		return nil, err
	}
	defer m.Close() // the memory keeps the map
	memory, err := mapMemory(m)
	if err != nil {
		return nil, err
	}
	return &marks{memory: memory, marksPage: (*marksPage)(unsafe.Pointer(&memory[0]))}, nil
}

func pinnedMarks(path string) (*ebpf.Map, error) {
	spec := &ebpf.MapSpec{
		Name: marksPin, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(marksPage{})), MaxEntries: 1,
		Flags: unix.BPF_F_MMAPABLE,
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := spec.Compatible(m); err != nil {
			m.Close()
			return nil, otherLayout(filepath.Dir(path), fmt.Errorf("%s: %w", marksPin, err))
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, explain(fmt.Errorf("open the pinned marks: %w", err))
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, explain(fmt.Errorf("make the marks: %w", err))
	}
	if err := m.Pin(path); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin the marks: %w", err)
	}
	return m, nil
}

func (m *marks) close() error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	memory := m.memory
	m.memory, m.marksPage = nil, nil
	return unmap(memory)
}

func unmap(memory []byte) error {
	if memory == nil {
		return nil
	}
	return unix.Munmap(memory)
}

// read returns the values in force.
func (m *marks) read() markValues {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.copies[atomic.LoadUint32(&m.active)&1]
}

// change puts other values into force, in one step.
func (m *marks) change(to func(*markValues)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := atomic.LoadUint32(&m.active) ^ 1
	m.copies[next&1] = m.copies[(next^1)&1]
	to(&m.copies[next&1])
	atomic.StoreUint32(&m.active, next)
}

// resume has a ring continue where the marks say. They are what counts (model:
// MARK_FIRST): the daemon that wrote them may have been killed before it released
// the ring.
func (m *marks) resume(r *Reader) { r.continueAt(m.read().Position) }

// set puts marks into force, all at once, and then lets the kernel reuse the ring up to
// the position. No mark goes back but Unreported.
func (m *marks) set(r *Reader, to Marks) {
	if to != m.read().Marks { // model: MARK_FIRST
		m.change(func(v *markValues) { v.Marks = to })
	}
	r.commitTo(to.Position)
}

// Marks returns the marks as the last SetMarks left them, by this daemon or one before it.
func (s *State) Marks() Marks { return s.marks.read().Marks }

// SetMarks puts the marks into force. r is the reader of the state's ring.
func (s *State) SetMarks(r *Reader, to Marks) { s.marks.set(r, to) }
