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

// ledger is what user space must not forget when it is killed: the books it
// keeps itself, and the timeouts it has claimed and not delivered yet. It is
// the memory of a pinned map that no program uses, so what is stored there
// outlives the process at once, without a system call.
//
// Books change as a whole: two copies take turns. A claim is written down
// before the table of open requests is touched (intent), and entered into the
// books after; a process that is killed between the two leaves the last claim
// in doubt, which the next one resolves by looking at the table.
type ledger struct {
	memory []byte
	*ledgerPage

	mu sync.Mutex // guards the books
}

const ledgerPin = "flat_ledger"

// timeoutsMax is how many timeouts can wait for their delivery. Of more, the
// newest are remembered; what the outputs' queues alone know, a crash loses.
const timeoutsMax = 4096

type ledgerPage struct {
	active   uint32 // which of the books is in force
	_        uint32
	books    [2]ledgerBooks
	intent   claimed
	timeouts [timeoutsMax]claimed // timeout n is in slot n % timeoutsMax
}

type ledgerBooks struct {
	timedOut, halfOpen uint64 // claims ever; the first is also the latest timeout's number
	confirmed          uint64 // timeouts up to this one need not be reported again
	released, before   released
	since              uint64 // when these programs took over from older ones
	notFollowed        uint64 // how many of the requests that found no room have been reported
}

func (b *ledgerBooks) claims() uint64 { return b.timedOut + b.halfOpen }

// released is how many records have ever been read and released up to a
// position of the ring.
type released struct{ records, position uint64 }

// claimed is a request that the sweep took out of the table of open ones.
type claimed struct {
	// number is that of the timeout or, of the intent, that of the claim among
	// all claims; 0: none.
	number   uint64
	limitNs  uint64
	side     uint64
	key      kernelFlatKey
	pending  kernelFlatPending
	question kernelFlatQuestion
}

// halfOpen says that this is counted, not reported: one event for each forged
// SYN would be an attacker's delight.
func (c *claimed) halfOpen() bool { return c.side == SideServer && c.key.Kind == kindTCP }

func openLedger(dir string) (*ledger, error) {
	m, err := pinnedLedger(filepath.Join(dir, ledgerPin))
	if err != nil {
		return nil, err
	}
	defer m.Close() // the memory keeps the map
	memory, err := mapMemory(m)
	if err != nil {
		return nil, err
	}
	return &ledger{memory: memory, ledgerPage: (*ledgerPage)(unsafe.Pointer(&memory[0]))}, nil
}

func pinnedLedger(path string) (*ebpf.Map, error) {
	spec := &ebpf.MapSpec{
		Name: ledgerPin, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(ledgerPage{})), MaxEntries: 1,
		Flags: unix.BPF_F_MMAPABLE,
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := spec.Compatible(m); err != nil {
			m.Close()
			return nil, otherLayout(filepath.Dir(path), fmt.Errorf("%s: %w", ledgerPin, err))
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, explain(fmt.Errorf("open the pinned ledger: %w", err))
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, explain(fmt.Errorf("make the ledger: %w", err))
	}
	if err := m.Pin(path); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin the ledger: %w", err)
	}
	return m, nil
}

func (l *ledger) close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	memory := l.memory
	l.memory, l.ledgerPage = nil, nil
	return unix.Munmap(memory)
}

// read returns the books in force.
func (l *ledger) read() ledgerBooks {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ledgerPage.books[atomic.LoadUint32(&l.active)&1]
}

// change puts other books into force, in one step.
func (l *ledger) change(to func(*ledgerBooks)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := atomic.LoadUint32(&l.active) ^ 1
	l.ledgerPage.books[next&1] = l.ledgerPage.books[(next^1)&1]
	to(&l.ledgerPage.books[next&1])
	atomic.StoreUint32(&l.active, next)
}

// intend writes down what is about to be taken out of the table.
func (l *ledger) intend(c claimed) {
	b := l.read()
	c.number = 0
	l.intent = c
	atomic.StoreUint64(&l.intent.number, b.claims()+1)
}

// cancel says that somebody else was faster.
func (l *ledger) cancel() { atomic.StoreUint64(&l.intent.number, 0) }

// enter puts what was intended into the books.
func (l *ledger) enter() {
	if l.intent.halfOpen() {
		l.change(func(b *ledgerBooks) { b.halfOpen++ })
		return
	}
	number := l.read().timedOut + 1
	slot := l.slot(number)
	*slot = l.intent
	slot.number = number
	l.change(func(b *ledgerBooks) {
		b.timedOut = number
		b.confirmed = max(b.confirmed, number-min(number, timeoutsMax))
	})
}

func (l *ledger) slot(number uint64) *claimed { return &l.timeouts[number%timeoutsMax] }

// inDoubt is the claim that a killed process may or may not have carried out,
// or nil.
func (l *ledger) inDoubt() *claimed {
	b := l.read()
	if l.intent.number != b.claims()+1 {
		return nil
	}
	return &l.intent
}

// LastTimeout is the number of the timeout that Sweep has handed over last,
// by this daemon or one before it; 0: none yet.
func (s *State) LastTimeout() uint64 { return s.ledger.read().timedOut }

// ConfirmTimeouts says that all timeouts up to this number have been delivered
// and need not be reported after a restart.
func (s *State) ConfirmTimeouts(number uint64) {
	s.ledger.change(func(b *ledgerBooks) { b.confirmed = max(b.confirmed, number) })
}

// A Timeout is one that a daemon before this one claimed and did not confirm.
// The bytes are as Sweep gives them.
type Timeout struct {
	Number                 uint64
	LimitNs                uint64 // how long it waited
	Side                   uint8
	Key, Pending, Question []byte
}

// UnconfirmedTimeouts calls visit for each, oldest first. The bytes are valid
// during the call.
func (s *State) UnconfirmedTimeouts(visit func(Timeout)) {
	b := s.ledger.read()
	for number := b.confirmed + 1; number <= b.timedOut; number++ {
		c := s.ledger.slot(number)
		if c.number != number {
			continue
		}
		visit(Timeout{
			Number: number, LimitNs: c.limitNs, Side: uint8(c.side),
			Key: bytesOf(&c.key), Pending: bytesOf(&c.pending), Question: c.question.bytes(),
		})
	}
}

// ConfirmNotFollowed says that of the requests which found no room in the tables
// so many have been reported, since the pins were made.
func (s *State) ConfirmNotFollowed(number uint64) {
	s.ledger.change(func(b *ledgerBooks) { b.notFollowed = number })
}

// NotFollowed is how many requests found no room in the tables since the pins
// were made, and how many of them have been reported.
func (s *State) NotFollowed() (number, reported uint64, err error) {
	number, err = s.sum(PendingFull)
	return number, min(s.ledger.read().notFollowed, number), err
}

// Released is how many records were read and released before r was opened, by
// all daemons since the pins were made.
func (s *State) Released(r *Reader) uint64 {
	b := s.ledger.read()
	if r.committed() == b.before.position && b.before != b.released {
		return b.before.records // killed between the entry and the deed
	}
	return b.released.records
}

// Release lets the kernel reuse the records before position, or all that have
// been read if that is 0. records is how many that makes since the pins were
// made: what Released says to the next daemon.
func (s *State) Release(r *Reader, position, records uint64) {
	end := r.end(position)
	if end == r.committed() {
		return
	}
	s.ledger.change(func(b *ledgerBooks) {
		b.before, b.released = b.released, released{records: records, position: end}
	})
	r.commitTo(end)
}
