package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Phase is what the programs do while those of another layout are attached beside
// them: enum flat_phase of shared.h.
type phase uint32

const (
	phaseAlone phase = iota
	phaseWatch
	phaseBoth
	phaseAfter
	phaseFinish
)

// shared is struct flat_shared_words of shared.h, in the programs' memory. All that changes
// while they run is read and written by atomics, from any goroutine.
type shared struct{ kernelFlatSharedWords }

// openShared maps the words of a layout from 3 on, at the beginning of its variables.
func openShared(dir string, mapped *memory) (*shared, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, variablesPin), nil)
	if err != nil {
		return nil, explain(fmt.Errorf("open the pinned variables: %w", err))
	}
	defer m.Close() // the memory keeps the map
	p, err := mapped.of(m)
	return (*shared)(p), err
}

// memory is what is mapped of array maps: the kernel's own memory.
type memory [][]byte

// of maps the memory of an array map, until close.
func (all *memory) of(m *ebpf.Map) (unsafe.Pointer, error) {
	mapped, err := unix.Mmap(m.FD(), 0, int(m.MaxEntries()*m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory of %v: %w", m, err)
	}
	*all = append(*all, mapped)
	return unsafe.Pointer(&mapped[0]), nil
}

func (all *memory) close() error {
	var errs []error
	for _, mapped := range *all {
		errs = append(errs, unix.Munmap(mapped))
	}
	*all = nil
	return errors.Join(errs...)
}

// setSeed gives the hashes a seed that nobody knows, once.
func (s *shared) setSeed() {
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // never fails
	atomic.CompareAndSwapUint64(&s.Seed, 0, binary.NativeEndian.Uint64(seed[:])|1)
}

func (s *shared) phase() phase { return phase(atomic.LoadUint32(&s.Phase)) }

func (s *shared) setPhase(p phase) { atomic.StoreUint32(&s.Phase, uint32(p)) }

// setFlows says how long a UDP flow is quiet before it is new, and whether answers may
// arrive on another interface.
func (s *shared) setFlows(idle time.Duration, matchHost bool) {
	var host uint32
	if matchHost {
		host = 1
	}
	atomic.StoreUint64(&s.UdpIdleNs, uint64(idle))
	atomic.StoreUint32(&s.MatchHost, host)
}

// setAttaching has the programs begin nothing on an interface; 0: on none.
func (s *shared) setAttaching(index int) { atomic.StoreUint32(&s.Attaching, uint32(index)) }

// setTranslating says on which interfaces addresses are translated between the hooks.
func (s *shared) setTranslating(indexes []int) {
	var bits [len(kernelFlatSharedWords{}.Translating)]uint32
	for _, index := range indexes {
		bit := index % (32 * len(bits))
		bits[bit/32] |= 1 << (bit % 32)
	}
	for i := range bits {
		atomic.StoreUint32(&s.Translating[i], bits[i])
	}
}

// setSuspended sets for the programs how long the host was suspended since it was
// booted, as near as it can be found, and returns it.
func (s *shared) setSuspended() uint64 {
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
	atomic.StoreUint64(&s.SuspendedNs, suspended)
	return suspended
}

// awaitingMargin is how many units of awaiting.h, 2^30 ns, no handshake has to have begun
// before user space says that none is open: more than a program takes in between.
const awaitingMargin = 2

// quietHandshakes is when a handshake from outside was last begun; 0: just now.
func (s *shared) quietHandshakes() uint32 {
	atomic.CompareAndSwapUint32(&s.HandshakesOpened, 0, 1)
	if last := atomic.LoadUint32(&s.HandshakesOpened); last+awaitingMargin <= uint32(BootTime()>>30)+1 {
		return last
	}
	return 0
}

// shutHandshakes says that no handshake has been open since quietHandshakes returned that.
func (s *shared) shutHandshakes(since uint32) {
	if since != 0 {
		atomic.StoreUint32(&s.HandshakesShut, since)
	}
}

// refused is how many runs of flat_timeout found too little room in the ring.
func (s *shared) refused() uint64 { return atomic.LoadUint64(&s.TimeoutsRefused) }
