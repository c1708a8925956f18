package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Older is the state of a release whose maps have another layout, in a
// directory of its own. Its programs measure on beside those of State until
// what they follow has come to its end (see TakeOver); then it is removed.
//
// Of its methods those of State may be used that read the ring, those that find
// and confirm timeouts if CanSweep says so, and UntoldLoss and TellLoss if
// CanCount does.
type Older struct {
	*State
	ABI int
}

// Older finds the state that other releases left below the pin path; nil if
// there is none. Of several, which no daemon leaves, the others are removed.
func (s *State) Older() (*Older, error) {
	versions, err := otherVersions(s.root)
	if err != nil {
		return nil, err
	}
	var found *Older
	for _, abi := range versions {
		o, err := openOlder(s, abi)
		switch {
		case err != nil:
			return nil, err
		case found == nil && o.maps.FlatEvents != nil:
			found = o
		default: // without a ring there is nothing to take over
			err = errors.Join(o.Detach(), o.Remove())
		}
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// otherVersions lists the layouts, but for our own, that have a directory.
func otherVersions(root string) (abis []int, err error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list the pin path: %w", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() || !versionDir.MatchString(entry.Name()) {
			continue
		}
		abi, err := strconv.Atoi(strings.TrimPrefix(entry.Name(), "v"))
		if err == nil && abi != ABI {
			abis = append(abis, abi)
		}
	}
	return abis, nil
}

func openOlder(s *State, abi int) (*Older, error) {
	o := &Older{ABI: abi, State: &State{root: s.root, dir: layoutDir(s.root, abi), options: s.options}}
	if err := checkOwner(o.dir); err != nil {
		return nil, err
	}
	o.maps.FlatEvents = o.take(kernelMapFlatEvents, ebpf.RingBuf, 0, 0)
	if m := o.take(kernelMapFlatCounters, ebpf.PerCPUArray, 4, 8); m != nil && m.MaxEntries() == uint32(countersMax) {
		o.maps.FlatCounters = m
	} else if m != nil {
		m.Close() // who knows which counter is which
	}
	key, value := uint32(unsafe.Sizeof(kernelFlatKey{})), uint32(unsafe.Sizeof(kernelFlatPending{}))
	o.maps.FlatOurs = o.take(kernelMapFlatOurs, ebpf.Hash, key, value)
	o.maps.FlatTheirs = o.take(kernelMapFlatTheirs, ebpf.Hash, key, value)
	o.maps.FlatSeats = o.take(kernelMapFlatSeats, ebpf.Array, 4, uint32(unsafe.Sizeof(kernelFlatSeat{})))
	o.maps.FlatFlows = o.take(kernelMapFlatFlows, ebpf.Array, 4, uint32(unsafe.Sizeof(kernelFlatFlowSet{})))
	o.maps.FlatQuestions = o.take(kernelMapFlatQuestions, ebpf.LRUHash, key, uint32(unsafe.Sizeof(kernelFlatQuestion{})))
	if o.maps.FlatSeats != nil {
		o.seats, _ = openSeats(o.maps.FlatSeats) // nil: see CanSweep
	}
	o.programs.FlatClaim, _ = ebpf.LoadPinnedProgram(filepath.Join(o.dir, kernelProgFlatClaim), nil) // nil: see CanSweep
	var err error
	if o.ledger, err = openLedger(o.dir); err != nil {
		o.ledger = nil // of another layout too
	}
	if o.CanSweep() {
		err = o.resolveClaim()
	} else {
		err = nil
	}
	return o, err
}

// take opens a map, or returns nil if it is not one that we can read.
func (o *Older) take(name string, kind ebpf.MapType, key, value uint32) *ebpf.Map {
	m, err := ebpf.LoadPinnedMap(filepath.Join(o.dir, name), nil)
	if err != nil {
		return nil
	}
	if m.Type() != kind || m.KeySize() != key || m.ValueSize() != value {
		m.Close()
		return nil
	}
	return m
}

// CanSweep reports whether the open requests are of a layout that we know.
func (o *Older) CanSweep() bool {
	return o.maps.FlatOurs != nil && o.maps.FlatTheirs != nil && o.seats != nil && o.maps.FlatQuestions != nil && o.programs.FlatClaim != nil && o.ledger != nil
}

// CanCount reports whether the counters are those that we know, so that
// UntoldLoss and TellLoss may be used.
func (o *Older) CanCount() bool { return o.maps.FlatCounters != nil }

// Detach removes the older programs from every interface.
func (o *Older) Detach() error {
	var errs []error
	links := filepath.Join(o.dir, "links")
	pins, err := os.ReadDir(links)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("list pinned links: %w", err))
	}
	for _, pin := range pins {
		errs = append(errs, unpin(filepath.Join(links, pin.Name())))
	}
	filters := clsactOf(o.root, o.ABI)
	indexes, err := filters.interfaces()
	errs = append(errs, err)
	for _, index := range indexes {
		errs = append(errs, filters.detach(index))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach the programs of layout %d: %w", o.ABI, err)
	}
	return nil
}

// Remove removes the pins, and closes the state.
func (o *Older) Remove() error {
	_, err := removeDir(o.dir)
	return errors.Join(err, o.Close())
}

// Sleep has the programs do nothing until TakeOver: beside those of an older
// state that would be to measure everything twice.
func (s *State) Sleep() error { return s.RenewLease(1) }

// TakeOver wakes the programs, all at once, to work until the time that
// RenewLease would be given. It returns since when they do, of CLOCK_BOOTTIME:
// requests from then on are theirs, those before it the older programs'. That
// is kept, and returned by TakenOver, over restarts.
func (s *State) TakeOver(o *Older, until uint64) (since uint64, err error) {
	if err := s.inherit(o, BootTime()); err != nil {
		return 0, err
	}
	if err := s.RenewLease(until); err != nil {
		return 0, err
	}
	since = BootTime()
	s.ledger.change(func(b *ledgerBooks) { b.since = since })
	return since, s.inherit(o, since) // what has come meanwhile
}

// inherit has the programs know the requests from before a time that the older
// ones follow, and the flows, for what these are: a SYN that is sent again, an
// answer, a further datagram is nothing new, and not theirs to report.
func (s *State) inherit(o *Older, before uint64) error {
	if !o.CanSweep() {
		return nil
	}
	return errors.Join(s.inheritFlows(o), o.eachRequest(func(at place, key *kernelFlatKey, p *kernelFlatPending) error {
		if p.FirstNs >= before {
			return nil
		}
		known := *p
		if isOpen(p) {
			known.State = stateReported
			known.Seal = 0
		}
		return s.enter(at.side, key, &known)
	}))
}

// inheritFlows has the programs know the UDP flows that the older ones know.
func (s *State) inheritFlows(o *Older) error {
	if o.maps.FlatFlows == nil || o.maps.FlatFlows.MaxEntries() != s.maps.FlatFlows.MaxEntries() {
		return nil
	}
	return withFlows(o.maps.FlatFlows, func(theirs []uint64) error {
		return withFlows(s.maps.FlatFlows, func(ours []uint64) error {
			for i := range theirs {
				if word := atomic.LoadUint64(&theirs[i]); word != 0 {
					atomic.CompareAndSwapUint64(&ours[i], 0, word)
				}
			}
			return nil
		})
	})
}

// withFlows calls use with the words of flow.h, of all sets, in the kernel's memory.
func withFlows(flows *ebpf.Map, use func(words []uint64) error) error {
	memory, err := mapMemory(flows)
	if err != nil {
		return err
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(&memory[0])), len(memory)/8)
	return errors.Join(use(words), unix.Munmap(memory))
}

// TakenOver is what TakeOver returned to this daemon or one before it; 0: it
// has not been called.
func (s *State) TakenOver() uint64 { return s.ledger.read().since }
