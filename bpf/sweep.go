package bpf

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The sides, as in enum flat_side of record.h.
const (
	SideClient = 1
	SideServer = 2
)

const (
	stateOpen     = 0 // STATE_OPEN
	stateReported = 1 // STATE_REPORTED
	stateHalfOpen = 2 // STATE_HALF_OPEN

	kindTCP = 1 // KIND_TCP
	kindDNS = 2 // KIND_DNS

	// Linux sends a SYN for the last time 64 s after the one before
	// (tcp_syn_retries = 6); until then it belongs to the same attempt.
	synMemory = 70 * time.Second

	sweepBatch = 512
)

// batch is what is read of a table at once. There is a sweep each second, which
// would else make more garbage than all that flatd does while little happens.
type batch struct {
	keys   [sweepBatch]kernelFlatKey
	values [sweepBatch]kernelFlatPending
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// Swept is what one sweep saw.
type Swept struct {
	OpenOurs, OpenTheirs int // requests still waiting for their answer
	TimedOut             int
	HalfOpen             int // TCP attempts from outside that were not completed
}

// Sweep goes through the open requests and calls timedOut for each that has
// waited longer than limit, with its struct flat_key, its flat_pending and, of
// a DNS request, the question section as on the wire; all valid during the
// call, in which LastTimeout is its number. TCP attempts from outside are
// counted alone. An exchange is reported by this or by the programs, never by
// both: the kernel half says whose it is (own in pending.h). The entry stays, by
// which later packets of that request are recognised.
func (s *State) Sweep(now uint64, limit time.Duration, timedOut func(side uint8, key, pending, question []byte)) (Swept, error) {
	var swept Swept
	idle := time.Duration(s.options.UdpIdleNs)
	if idle == 0 {
		idle = 30 * time.Second // UDP_IDLE_DEFAULT_NS
	}
	behind := [gatesCount]int{} // how much is, of each gate
	s.gates.tellSuspended()
	quiet := s.gates.quiet()
	err := s.eachRequest(func(at place, key *kernelFlatKey, p *kernelFlatPending) error {
		if key.Kind == kindTCP {
			behind[gateOfSYNs(at.side)]++
		}
		quiet := since(now, p.LastNs)
		switch {
		case isOpen(p) && p.Seal == 0 && quiet > max(idle, limit):
			return s.forget(at, key, p) // its owner has reported it, and was kept from that
		case isOpen(p) && since(now, p.FirstNs) <= limit:
			if at.side == SideClient {
				swept.OpenOurs++
			} else {
				swept.OpenTheirs++
			}
		case isOpen(p):
			c := claimed{side: uint64(at.side), limitNs: uint64(limit), key: *key, pending: *p}
			ok, err := s.claim(&c)
			switch {
			case !ok:
			case c.halfOpen():
				swept.HalfOpen++
			default:
				swept.TimedOut++
				timedOut(at.side, bytesOf(&c.key), bytesOf(&c.pending), c.question.bytes())
			}
			return err
		case p.State == stateReported && key.Kind == kindTCP && quiet <= max(idle, synMemory):
		case quiet > idle:
			return s.forget(at, key, p)
		}
		return nil
	})
	if err != nil {
		return swept, err
	}
	behind[gateHandshakes] = swept.OpenTheirs
	for gate := range behind {
		if behind[gate] == 0 {
			s.gates.shut(gate, quiet[gate])
		}
	}
	return swept, nil
}

func (s *State) table(side uint8) *ebpf.Map {
	if side == SideClient {
		return s.maps.FlatOurs
	}
	return s.maps.FlatTheirs
}

// bytes is the question section.
func (q *kernelFlatQuestion) bytes() []byte {
	if q.Length == 0 {
		return nil
	}
	return q.Question[:min(int(q.Length), len(q.Question))]
}

func isOpen(p *kernelFlatPending) bool { return p.State == stateOpen || p.State == stateHalfOpen }

// since is 0 for a time that another CPU took a little after now.
func since(now, then uint64) time.Duration { return time.Duration(max(int64(now-then), 0)) }

// place is where a request is: in its seat, or in the table of its side.
type place struct {
	side uint8
	seat *seat // nil: in the table
}

// eachRequest visits every request that is known, until visit returns an error.
// What it is given is a copy, of a request in a seat perhaps of two that followed
// each other there; whoever changes something has to look again.
func (s *State) eachRequest(visit func(at place, key *kernelFlatKey, p *kernelFlatPending) error) error {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	for i := range s.seats.all {
		at := place{SideClient, &s.seats.all[i]}
		if i >= len(s.seats.all)/2 {
			at.side = SideServer
		}
		if !at.seat.read(&b.keys[0], &b.values[0]) {
			continue
		}
		if err := visit(at, &b.keys[0], &b.values[0]); err != nil {
			return err
		}
	}
	for _, side := range []uint8{SideClient, SideServer} {
		err := eachPending(s.table(side), func(key *kernelFlatKey, p *kernelFlatPending) error {
			return visit(place{side: side}, key, p)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// find reads what is known of a request; ErrKeyNotExist: nothing.
func (s *State) find(side uint8, key *kernelFlatKey, p *kernelFlatPending) error {
	var seated kernelFlatKey
	if s.seats.of(side, key).read(&seated, p) && seated == *key {
		return nil
	}
	return s.table(side).Lookup(key, p)
}

func eachPending(table *ebpf.Map, visit func(*kernelFlatKey, *kernelFlatPending) error) error {
	var cursor ebpf.MapBatchCursor
	b := batches.Get().(*batch)
	defer batches.Put(b)
	for {
		n, err := table.BatchLookup(&cursor, b.keys[:], b.values[:], nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("list open requests: %w", err)
		}
		for i := range n {
			if visitErr := visit(&b.keys[i], &b.values[i]); visitErr != nil {
				return visitErr
			}
		}
		if err != nil {
			return nil // the last batch
		}
	}
}

// claim turns an open entry into one that has timed out, unless it has been
// answered, repeated under a new ISN or claimed meanwhile. It completes c.
func (s *State) claim(c *claimed) (bool, error) {
	var current kernelFlatPending
	err := s.find(uint8(c.side), &c.key, &current)
	if err != nil || current.FirstNs != c.pending.FirstNs || !isOpen(&current) {
		return false, unlessGone("look at an open request", err)
	}
	c.pending = current
	if c.key.Kind == kindDNS && s.maps.FlatQuestions.Lookup(&c.key, &c.question) != nil {
		c.question = kernelFlatQuestion{} // forgotten, which costs the name alone
	}
	s.ledger.intend(*c)
	granted, err := s.granted(c)
	if !granted {
		s.ledger.cancel()
		return false, err
	}
	s.ledger.enter()
	return true, nil
}

// etherHeader is what a program that is run without a packet has in front.
const etherHeader = 14

// granted asks the kernel half for a request, which it gives to one alone.
func (s *State) granted(c *claimed) (bool, error) {
	overdue := kernelFlatOverdue{Key: c.key, FirstNs: c.pending.FirstNs, Side: c.side}
	frame := append(make([]byte, etherHeader), bytesOf(&overdue)...)
	verdict, err := s.programs.FlatClaim.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		return false, fmt.Errorf("claim an open request: %w", err)
	}
	return verdict == 1, nil
}

// enter puts what is known of a request into the table of its side. If the same
// key, or the last room, has been taken meanwhile, that request stays.
func (s *State) enter(side uint8, key *kernelFlatKey, p *kernelFlatPending) error {
	if key.Kind == kindTCP {
		s.gates.open(gateOfSYNs(side))
	}
	seat := s.seats.of(side, key)
	seat.addOthers(1)
	err := s.table(side).Update(key, p, ebpf.UpdateNoExist)
	if err != nil {
		seat.addOthers(-1)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) && !errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("enter a request into the table: %w", err)
	}
	return nil
}

// resolveClaim finishes the claim that a killed daemon began, unless it never
// came to it. That the entry says so because of an ICMP error, seen between two
// system calls of that daemon, one of which was its last, is not told apart; nor is
// it known what became of a claim where another request has the key by now.
func (s *State) resolveClaim() error {
	c := s.ledger.inDoubt()
	if c == nil {
		return nil
	}
	var current kernelFlatPending
	err := s.find(uint8(c.side), &c.key, &current)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("look at the last claim: %w", err)
	}
	if err == nil && current.FirstNs == c.pending.FirstNs && current.State == stateReported {
		s.ledger.enter()
	} else {
		s.ledger.cancel()
	}
	return nil
}

// forget removes a request that is no longer needed, unless it has changed.
func (s *State) forget(at place, key *kernelFlatKey, p *kernelFlatPending) error {
	if at.seat != nil {
		at.seat.leave(p)
		return nil
	}
	table := s.table(at.side)
	var current kernelFlatPending
	err := table.Lookup(key, &current)
	if err != nil || current != *p {
		return unlessGone("look at an old request", err)
	}
	if err = table.Delete(key); err == nil {
		s.seats.of(at.side, key).addOthers(-1)
	}
	return unlessGone("forget an old request", err)
}

func unlessGone(what string, err error) error {
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
