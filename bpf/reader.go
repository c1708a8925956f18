package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Reader reads the ring of finished exchanges. Unlike ringbuf.Reader of
// cilium/ebpf v0.22 it lets the kernel reuse a record only once the caller
// commits its position, so that what a crash interrupts is read again.
//
// The layout is that of include/uapi/linux/bpf.h and kernel/bpf/ringbuf.c: a
// page that we write with the consumer position, a page with the producer
// position, then the data twice in a row, so that no record is split. Each
// record begins with a header whose first word is its length and two flags,
// and is padded to 8 bytes.
//
// A Reader is for one goroutine, Wake alone may be called from any.
type Reader struct {
	consumerPage []byte
	producerPage []byte // with the data behind it
	consumer     *uintptr
	producer     *uintptr
	data         []byte
	mask         uintptr
	next         uintptr // where reading goes on; consumer <= next <= producer
	marks        *marks  // nil: none

	epoll int
	wake  int // eventfd
}

const (
	recordBusy    = 1 << 31 // BPF_RINGBUF_BUSY_BIT
	recordDiscard = 1 << 30 // BPF_RINGBUF_DISCARD_BIT
	recordHeader  = 8       // BPF_RINGBUF_HDR_SZ
)

func newReader(ring *ebpf.Map) (r *Reader, err error) {
	size := int(ring.MaxEntries())
	page := os.Getpagesize()
	r = &Reader{mask: uintptr(size - 1), epoll: -1, wake: -1}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the ring: %w", err), r.Close())
		}
	}()

	r.consumerPage, err = unix.Mmap(ring.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the consumer page: %w", err)
	}
	r.producerPage, err = unix.Mmap(ring.FD(), int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the data: %w", err)
	}
	r.consumer = (*uintptr)(unsafe.Pointer(&r.consumerPage[0]))
	r.producer = (*uintptr)(unsafe.Pointer(&r.producerPage[0]))
	r.data = r.producerPage[page:]
	r.next = atomic.LoadUintptr(r.consumer)

	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	// Edge-triggered: by level the ring is ready for as long as a record is
	// not committed, though there is nothing to read.
	for _, fd := range []int{ring.FD(), r.wake} {
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
		if err = unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return nil, fmt.Errorf("watch the ring: %w", err)
		}
	}
	return r, nil
}

// Next returns the next record and its position in the ring, which is never 0,
// or false if there is none yet. The record is the kernel's memory: it may be
// read until it is committed.
func (r *Reader) Next() (record []byte, position uint64, ok bool) {
	for r.next != atomic.LoadUintptr(r.producer) {
		begin := r.next
		start := begin & r.mask
		// Atomic, since the kernel clears the busy flag with release semantics.
		header := atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.data[start])))
		if header&recordBusy != 0 {
			return nil, 0, false
		}
		length := uintptr(header &^ (recordBusy | recordDiscard))
		r.next += recordHeader + (length+7)&^7
		if header&recordDiscard == 0 {
			data := r.data[start+recordHeader:][:length:length]
			return data, uint64(begin + recordHeader), true
		}
	}
	return nil, 0, false
}

// Wait returns when there may be records to read, after Wake, or after the
// timeout. The kernel wakes a reader only if it has committed all it read;
// with records outstanding the caller should come back by itself.
func (r *Reader) Wait(timeout time.Duration) error {
	if r.next != atomic.LoadUintptr(r.producer) && !r.busy() {
		return nil
	}
	var events [2]unix.EpollEvent
	n, err := unix.EpollWait(r.epoll, events[:], int(timeout.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for the ring: %w", err)
	}
	for i := range max(n, 0) {
		if events[i].Fd == int32(r.wake) {
			var count [8]byte
			_, _ = unix.Read(r.wake, count[:])
		}
	}
	return nil
}

func (r *Reader) busy() bool {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.data[r.next&r.mask])))&recordBusy != 0
}

// Wake ends a Wait, now or the next one.
func (r *Reader) Wake() {
	one := [8]byte{}
	*(*uint64)(unsafe.Pointer(&one[0])) = 1
	_, _ = unix.Write(r.wake, one[:])
}

// Commit lets the kernel reuse all records that Next has returned. What is not
// committed is read again after a restart.
func (r *Reader) Commit() { r.commitTo(uint64(r.next)) }

// commitTo lets the kernel reuse what is before a position.
func (r *Reader) commitTo(end uint64) {
	if int64(end-r.committed()) > 0 {
		atomic.StoreUintptr(r.consumer, uintptr(end))
	}
}

// resume has reading continue where the marks say. They are what counts (model:
// MARK_FIRST): the daemon that wrote them may have been killed before it released the ring.
func (r *Reader) resume(m *marks) {
	r.marks = m
	if position := r.Marks().Position; position <= uint64(atomic.LoadUintptr(r.producer)) {
		r.commitTo(position)
		r.next = atomic.LoadUintptr(r.consumer)
	}
}

// Marks returns the marks as the last SetMarks left them, by this daemon or one before it.
func (r *Reader) Marks() Marks { return r.marks.read().Marks }

// SetMarks puts the marks into force, all at once, and then lets the kernel reuse the ring
// up to the position. No mark goes back but Unreported.
func (r *Reader) SetMarks(to Marks) {
	if to != r.Marks() { // model: MARK_FIRST
		r.marks.change(func(v *markValues) { v.Marks = to })
	}
	r.commitTo(to.Position)
}

// committed is the consumer position.
func (r *Reader) committed() uint64 { return uint64(atomic.LoadUintptr(r.consumer)) }

// Position is where in the ring those records end that have been read.
func (r *Reader) Position() uint64 { return uint64(r.next) }

// Outstanding is how many bytes have been read and not committed.
func (r *Reader) Outstanding() int { return int(r.next - atomic.LoadUintptr(r.consumer)) }

// Backlog is how many bytes are still to be read.
func (r *Reader) Backlog() int { return int(atomic.LoadUintptr(r.producer) - r.next) }

// Size is that of the ring in bytes.
func (r *Reader) Size() int { return int(r.mask) + 1 }

// Close unmaps the ring; records from Next are gone. Uncommitted ones stay in
// the kernel.
func (r *Reader) Close() error {
	var errs []error
	for _, m := range []*[]byte{&r.consumerPage, &r.producerPage} {
		if *m != nil {
			errs = append(errs, unix.Munmap(*m))
			*m = nil
		}
	}
	for _, fd := range []*int{&r.epoll, &r.wake} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}
