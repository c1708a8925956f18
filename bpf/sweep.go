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
	stateAnswered = 1 // STATE_ANSWERED
	stateReported = 2 // STATE_REPORTED
	stateHalfOpen = 3 // STATE_HALF_OPEN

	kindTCP = 1 // KIND_TCP
	kindDNS = 2 // KIND_DNS
	kindUDP = 3 // KIND_UDP

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
	sweep := func(side uint8, open, flows *int) error {
		table := s.table(side)
		return eachPending(table, func(key *kernelFlatKey, p *kernelFlatPending) error {
			if key.Kind == kindUDP {
				*flows++
			}
			quiet := since(now, p.LastNs)
			switch {
			case isOpen(p) && p.Seal == 0 && quiet > max(idle, limit):
				return forget(table, key, p) // its owner has reported it, and was kept from that
			case isOpen(p) && since(now, p.FirstNs) <= limit:
				*open++
			case isOpen(p):
				c := claimed{side: uint64(side), limitNs: uint64(limit), key: *key, pending: *p}
				ok, err := s.claim(&c)
				switch {
				case !ok:
				case c.halfOpen():
					swept.HalfOpen++
				default:
					swept.TimedOut++
					timedOut(side, bytesOf(&c.key), bytesOf(&c.pending), c.question.bytes())
				}
				return err
			case p.State == stateReported && key.Kind == kindTCP && quiet <= max(idle, synMemory):
			case quiet > idle:
				return forget(table, key, p)
			}
			return nil
		})
	}
	var ourFlows, theirFlows int
	quiet := s.gates.quiet()
	err := errors.Join(sweep(SideClient, &swept.OpenOurs, &ourFlows), sweep(SideServer, &swept.OpenTheirs, &theirFlows))
	if err != nil {
		return swept, err
	}
	for gate, behind := range [gatesCount]int{
		gateHandshakes: swept.OpenTheirs, gateOurFlows: ourFlows, gateTheirFlows: theirFlows,
	} {
		if behind == 0 {
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
	err := s.table(uint8(c.side)).Lookup(&c.key, &current)
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

// enter puts what is known of a request into a table. If the same key, or the
// last room, has been taken meanwhile, that request stays.
func enter(table *ebpf.Map, key *kernelFlatKey, p *kernelFlatPending) error {
	err := table.Update(key, p, ebpf.UpdateNoExist)
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
	err := s.table(uint8(c.side)).Lookup(&c.key, &current)
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

// forget removes an entry that is no longer needed, unless it has changed.
func forget(table *ebpf.Map, key *kernelFlatKey, p *kernelFlatPending) error {
	var current kernelFlatPending
	err := table.Lookup(key, &current)
	if err != nil || current != *p {
		return unlessGone("look at an old request", err)
	}
	return unlessGone("forget an old request", table.Delete(key))
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
