package bpf

import (
	"errors"
	"fmt"
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

// OpenRequests are the requests that wait for an answer (table.h), and the way to the ring.
// One goroutine may use them, the one that reads the ring. The programs change the table
// and the words meanwhile, hence the atomics; the Attacher adds to blind, which has a lock.
type OpenRequests struct {
	events       *ebpf.Map     // the ring
	timeout      *ebpf.Program // flat_timeout
	slots        []kernelFlatSlot
	ours, theirs *ebpf.Map
	shared       *shared
	marks        *marks
	mapped       memory // of slots, shared and marks
	blind        blindness
	batch        batch
}

// batch is what is read of a map at once. There is a sweep each second, which
// would else make more garbage than all that flatd does while little happens.
type batch struct {
	hashes [sweepBatch]uint64
	values [sweepBatch]kernelFlatOpen
}

// openRequests opens what layouts from 3 on have in common. After an error the rest may
// still be of use. The caller closes it.
func openRequests(dir string, maps *kernelMaps, timeout *ebpf.Program) (*OpenRequests, error) {
	r := &OpenRequests{events: maps.FlatEvents, timeout: timeout, ours: maps.FlatOurs, theirs: maps.FlatTheirs}
	var errs [3]error
	r.marks, errs[0] = openMarks(dir, &r.mapped)
	r.shared, errs[1] = openShared(dir, &r.mapped)
	if maps.FlatSlots != nil {
		var p unsafe.Pointer
		if p, errs[2] = r.mapped.of(maps.FlatSlots); p != nil {
			r.slots = unsafe.Slice((*kernelFlatSlot)(p), maps.FlatSlots.MaxEntries())
		}
	}
	return r, errors.Join(errs[:]...)
}

func (o *OpenRequests) close() error {
	o.slots, o.shared, o.marks = nil, nil, nil
	return o.mapped.close()
}

// Reader opens the ring of finished exchanges, where the marks say. The caller closes it.
func (o *OpenRequests) Reader() (*Reader, error) {
	r, err := newReader(o.events)
	if err == nil && o.marks != nil {
		r.resume(o.marks)
	}
	return r, err
}

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
func (o *OpenRequests) Sweep(now uint64, limit time.Duration) (Swept, error) {
	handshakes := o.shared.quietHandshakes()
	o.blind.suspended(now, o.shared.setSuspended())
	swept, err := o.sweep(now, limit)
	if err == nil && swept.OpenTheirs == 0 {
		o.shared.shutHandshakes(handshakes)
	}
	return swept, err
}

// sweep is Sweep for the programs of any layout from 3 on: it changes none of their words.
func (o *OpenRequests) sweep(now uint64, limit time.Duration) (swept Swept, err error) {
	err = o.each(func(side uint8, hash uint64, r *kernelFlatRequest) error {
		overdue := o.blind.judge(now, limit, side, hash, r)
		if overdue != nil && !swept.Full {
			if err := o.timeOut(overdue); !errors.Is(err, errRingFull) {
				return err
			}
			swept.Full = true
		}
		if overdue != nil {
			swept.Overdue++
		}
		count(&swept, side)
		return nil
	})
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
func (o *OpenRequests) timeOut(overdue *kernelFlatOverdue) error {
	before := o.shared.refused()
	frame := append(make([]byte, etherHeader), bytesOf(overdue)...)
	if _, err := o.timeout.Run(&ebpf.RunOptions{Data: frame}); err != nil {
		return fmt.Errorf("report a timeout: %w", err)
	}
	if o.shared.refused() != before {
		return errRingFull
	}
	return nil
}

// since is 0 for a time that another CPU took a little after now.
func since(now, then uint64) time.Duration { return time.Duration(max(int64(now-then), 0)) }

// each visits every open request, until visit returns an error. What it is given is a
// copy, of a request in a slot perhaps of two that followed each other there: the kernel
// half looks again before it does anything.
func (o *OpenRequests) each(visit func(side uint8, hash uint64, r *kernelFlatRequest) error) error {
	for i := range o.slots {
		slot := &o.slots[i]
		word := atomic.LoadUint64(&slot.Word)
		if word>>tagShift == 0 {
			continue
		}
		request := slot.Request
		hash := keyHash(o.shared.Seed, &request.Key)
		// One that is just being written is not all there yet.
		if request.Key.Id == 0 || hash>>tagShift != word>>tagShift {
			continue
		}
		side := uint8(SideClient)
		if i >= len(o.slots)/2 {
			side = SideServer
		}
		if err := visit(side, hash, &request); err != nil {
			return err
		}
	}
	for side, m := range map[uint8]*ebpf.Map{SideClient: o.ours, SideServer: o.theirs} {
		if err := o.eachIn(m, func(hash uint64, r *kernelFlatRequest) error { return visit(side, hash, r) }); err != nil {
			return err
		}
	}
	return nil
}

func (o *OpenRequests) eachIn(table *ebpf.Map, visit func(uint64, *kernelFlatRequest) error) error {
	var cursor ebpf.MapBatchCursor
	b := &o.batch
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

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
