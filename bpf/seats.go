package bpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mapMemory is the memory of an array map, the kernel's own. The caller unmaps it.
func mapMemory(m *ebpf.Map) ([]byte, error) {
	memory, err := unix.Mmap(m.FD(), 0, int(m.MaxEntries()*m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory of %v: %w", m, err)
	}
	return memory, nil
}

// seats are those of seat.h, of this host's requests and then of those to it.
type seats struct {
	memory []byte
	all    []seat
}

type seat kernelFlatSeat

func openSeats(m *ebpf.Map) (*seats, error) {
	memory, err := mapMemory(m)
	if err != nil {
		return nil, err
	}
	return &seats{memory, unsafe.Slice((*seat)(unsafe.Pointer(&memory[0])), m.MaxEntries())}, nil
}

// repair frees the seats that a killed daemon was about to empty.
func (s *seats) repair() {
	for i := range s.all {
		atomic.CompareAndSwapUint64(&s.all[i].Holder, holderLeaving, 0)
	}
}

func (s *seats) close() error {
	if s == nil {
		return nil
	}
	return unix.Munmap(s.memory)
}

// of is the seat of a request.
func (s *seats) of(side uint8, key *kernelFlatKey) *seat {
	each := len(s.all) / 2
	i := int(keyHash(key) % uint64(each))
	if side == SideServer {
		i += each
	}
	return &s.all[i]
}

// keyHash is key_hash of half.h.
func keyHash(key *kernelFlatKey) uint64 {
	word := func(i int) uint64 { return *(*uint64)(unsafe.Add(unsafe.Pointer(key), 8*i)) }
	mixed := func(hash, more uint64) uint64 {
		hash = (hash ^ more) * 0x9e3779b97f4a7c15
		return hash ^ hash>>32
	}
	hash := mixed(uint64(key.Ifindex)<<32|uint64(key.Id), word(0)) // the addresses are the first four words
	for i := 1; i < 4; i++ {
		hash = mixed(hash, word(i))
	}
	hash = mixed(hash, uint64(key.Kind)<<32|uint64(key.LocalPort)<<16|uint64(key.RemotePort))
	return mixed(hash, hash>>17)
}

// addOthers counts a request into the table, before it is put there, or out of it,
// after it was deleted. A daemon that is killed between the two leaves one too many,
// which costs a look into the table.
func (s *seat) addOthers(number int32) { atomic.AddUint32(&s.Others, uint32(number)) }

// holderLeaving is HOLDER_LEAVING of seat.h: who empties a seat is alone with it.
const holderLeaving = 1

// holderTimeMask is of that part of a holder which tells requests apart that follow
// each other in a seat: the lower bits of when they began.
const holderTimeMask = 1<<24 - 1

// read copies what is in a seat, or reports that nothing is. A request that is just
// being written is not there yet.
func (s *seat) read(key *kernelFlatKey, p *kernelFlatPending) bool {
	holder := atomic.LoadUint64(&s.Holder)
	if holder == 0 {
		return false
	}
	*key, *p = s.Key, *(*kernelFlatPending)(unsafe.Pointer(&s.Request))
	return atomic.LoadUint64(&s.Holder) == holder && holder&holderTimeMask == p.FirstNs&holderTimeMask && p.LastNs >= p.FirstNs
}

// leave empties the seat, if this request is still in it as it was.
func (s *seat) leave(p *kernelFlatPending) {
	var key kernelFlatKey
	var current kernelFlatPending
	holder := atomic.LoadUint64(&s.Holder)
	if s.read(&key, &current) && current == *p {
		if atomic.CompareAndSwapUint64(&s.Holder, holder, holderLeaving) {
			s.Key.Kind = 0
			atomic.StoreUint64(&s.Holder, 0)
		}
	}
}
