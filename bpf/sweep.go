package bpf

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
)

// The sides, as in enum flat_side of record.h.
const (
	SideClient = 1
	SideServer = 2
)

const (
	kindTCP  = 1 // KIND_TCP
	kindDNS  = 2 // KIND_DNS
	kindUDP  = 3 // KIND_UDP
	kindICMP = 4 // KIND_ICMP

	tagShift   = 24 // TAG_SHIFT
	kindShift  = 56 // KIND_SHIFT
	dnsIDShift = 40 // DNS_ID_SHIFT

	// enum flat_unreported of timeout.h
	unreportedNot        = 0
	unreportedNotLooking = 1
	unreportedLeft       = 2

	sweepBatch = 512

	// leftAfter is how long after its last packet a request that was claimed, and never
	// taken out, is removed.
	leftAfter = time.Minute
)

// batch is what is read of a map at once. There is a sweep each second, which
// would else make more garbage than all that flatd does while little happens.
type batch struct {
	hashes [sweepBatch]uint64
	values [sweepBatch]kernelFlatOpen
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// Swept is what one sweep saw.
type Swept struct {
	OpenOurs, OpenTheirs int // requests still waiting for their answer
	Overdue              int // of these, those that have waited longer than the limit
	// Full: the ring had too little room for further timeouts. Once the reader has
	// made some, another sweep continues.
	Full bool
}

// errRingFull ends a sweep.
var errRingFull = errors.New("too little room in the ring")

// Sweep goes through the open requests and has the kernel half report each that has
// waited longer than limit, as a record in the ring. now is the time of CLOCK_BOOTTIME.
// User space only reads the table: what it finds may be over a moment later, and the
// kernel half decides.
func (s *State) Sweep(now uint64, limit time.Duration) (Swept, error) {
	var swept Swept
	handshakes := s.shared.quietHandshakes()
	s.blind.suspended(now, s.shared.setSuspended())
	err := s.requests.each(func(side uint8, hash uint64, r *kernelFlatRequest) error {
		overdue := s.blind.judge(now, limit, side, hash, r)
		if overdue == nil {
			count(&swept, side)
			return nil
		}
		if swept.Full {
			swept.Overdue++
			count(&swept, side)
			return nil
		}
		err := s.timeOut(overdue)
		if errors.Is(err, errRingFull) {
			swept.Full, err = true, nil
			swept.Overdue++
			count(&swept, side)
		}
		return err
	})
	if err == nil && swept.OpenTheirs == 0 {
		s.shared.shutHandshakes(handshakes)
	}
	return swept, err
}

func count(swept *Swept, side uint8) {
	if side == SideClient {
		swept.OpenOurs++
	} else {
		swept.OpenTheirs++
	}
}

// judge returns what the kernel half is to end, or nil for a request that may wait on.
func (b *blindness) judge(now uint64, limit time.Duration, side uint8, hash uint64, r *kernelFlatRequest) *kernelFlatOverdue {
	o := &kernelFlatOverdue{Hash: hash, FirstNs: r.FirstNs, LimitNs: uint64(limit), Side: uint32(side)}
	switch {
	case r.Version == 0:
		if since(now, r.LastNs) <= limit+leftAfter {
			return nil
		}
		o.Unreported = unreportedLeft
	case since(now, r.FirstNs) <= limit:
		return nil
	case b.during(int(r.Ifindex), r.FirstNs, r.FirstNs+uint64(limit)):
		o.Unreported = unreportedNotLooking
	}
	return o
}

// etherHeader is what a program that is run without a packet has in front.
const etherHeader = 14

// timeOut runs flat_timeout for a request. Nothing depends on what the run returns.
func (s *State) timeOut(o *kernelFlatOverdue) error {
	return runTimeout(s.programs.FlatTimeout, s.shared, o)
}

func runTimeout(program *ebpf.Program, words *shared, o *kernelFlatOverdue) error {
	before := words.refused()
	frame := append(make([]byte, etherHeader), bytesOf(o)...)
	if _, err := program.Run(&ebpf.RunOptions{Data: frame}); err != nil {
		return fmt.Errorf("report a timeout: %w", err)
	}
	if words.refused() != before {
		return errRingFull
	}
	return nil
}

// since is 0 for a time that another CPU took a little after now.
func since(now, then uint64) time.Duration { return time.Duration(max(int64(now-then), 0)) }

// openTable is the table of open requests, for reading: see table.h.
type openTable struct {
	shared       *shared
	slots        slots
	ours, theirs *ebpf.Map
}

// each visits every open request, until visit returns an error. What it is given is a
// copy, of a request in a slot perhaps of two that followed each other there: the kernel
// half looks again before it does anything.
func (t *openTable) each(visit func(side uint8, hash uint64, r *kernelFlatRequest) error) error {
	for i := range t.slots.all {
		slot := &t.slots.all[i]
		word := atomic.LoadUint64(&slot.Word)
		if word>>tagShift == 0 {
			continue
		}
		request := slot.Request
		hash := keyHash(t.shared.Seed, &request.Key)
		// One that is just being written is not all there yet.
		if request.Key.Id == 0 || hash>>tagShift != word>>tagShift {
			continue
		}
		side := uint8(SideClient)
		if i >= len(t.slots.all)/2 {
			side = SideServer
		}
		if err := visit(side, hash, &request); err != nil {
			return err
		}
	}
	for side, m := range map[uint8]*ebpf.Map{SideClient: t.ours, SideServer: t.theirs} {
		if err := eachOpen(m, func(hash uint64, r *kernelFlatRequest) error { return visit(side, hash, r) }); err != nil {
			return err
		}
	}
	return nil
}

func eachOpen(table *ebpf.Map, visit func(uint64, *kernelFlatRequest) error) error {
	var cursor ebpf.MapBatchCursor
	b := batches.Get().(*batch)
	defer batches.Put(b)
	for {
		n, err := table.BatchLookup(&cursor, b.hashes[:], b.values[:], nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("list open requests: %w", err)
		}
		for i := range n {
			if visitErr := visit(b.hashes[i], &b.values[i].Request); visitErr != nil {
				return visitErr
			}
		}
		if err != nil {
			return nil // the last batch
		}
	}
}

// slots are those of table.h: of this host's requests and then of those to it.
type slots struct {
	memory []byte
	all    []kernelFlatSlot
}

func openSlots(m *ebpf.Map) (slots, error) {
	memory, err := mapMemory(m)
	if err != nil {
		return slots{}, err
	}
	return slots{memory, unsafe.Slice((*kernelFlatSlot)(unsafe.Pointer(&memory[0])), m.MaxEntries())}, nil
}

func (s *slots) close() error {
	if s.memory == nil {
		return nil
	}
	memory := s.memory
	s.memory, s.all = nil, nil
	return unmap(memory)
}

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
