package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
)

// Previous is the state of another layout, whose programs are still attached. They
// finish what they have begun and begin nothing, then they are removed. It may be of an
// older flatd, after an upgrade, or of a newer one, when somebody went back.
//
// All layouts from 3 on have in common: struct flat_shared_words at the beginning of the
// variables, the struct flat_request and how it is found and hashed, struct flat_overdue,
// the records and the marks. What layout 2 has
// is in layout2.go.
//
// The goroutine that has the OpenRequests may use it. Another may call TakeOver while that
// one does not sweep.
type Previous struct {
	ours   *State // whose programs take over
	layout layout
	dir    string
	maps   kernelMaps    // those that are of use, nil where they are not as expected
	open   *OpenRequests // nothing in it of layout 2, nil where it is not as expected
	two    *layout2      // of layout 2
	reader *Reader
}

// Name says which layout it is.
func (p *Previous) Name() string { return p.layout.String() }

// isHalfMade reports whether a start was cut short before it had attached anything: maps
// are pinned before programs, and these before they are attached.
func (p *Previous) isHalfMade() bool {
	return p.reader == nil || p.two == nil && (p.open.shared == nil || p.open.timeout == nil)
}

func (s *State) openPrevious(l layout) (*Previous, error) {
	p := &Previous{ours: s, layout: l, dir: l.dir(s.root), open: new(OpenRequests)}
	if err := checkOwner(p.dir); err != nil {
		return nil, err
	}
	p.maps.FlatEvents = p.take(kernelMapFlatEvents, ebpf.RingBuf, 0, 0)
	if p.maps.FlatEvents == nil {
		return p, nil // there is nothing to take over
	}
	p.maps.FlatCounters = p.take(kernelMapFlatCounters, ebpf.PerCPUArray, 4, 8)
	p.open.events = p.maps.FlatEvents
	if l.abi < 3 {
		p.two = openLayout2(p)
	} else {
		p.openLayout()
	}
	var err error
	if p.reader, err = p.open.Reader(); err != nil {
		return p, errors.Join(err, p.Close())
	}
	return p, nil
}

// openLayout opens what layouts from 3 on have in common.
func (p *Previous) openLayout() {
	request, slot := uint32(unsafe.Sizeof(kernelFlatOpen{})), uint32(unsafe.Sizeof(kernelFlatSlot{}))
	p.maps.FlatOurs = p.take(kernelMapFlatOurs, ebpf.Hash, 8, request)
	p.maps.FlatTheirs = p.take(kernelMapFlatTheirs, ebpf.Hash, 8, request)
	p.maps.FlatSlots = p.take(kernelMapFlatSlots, ebpf.Array, 4, slot)
	p.maps.FlatFlows = p.take(kernelMapFlatFlows, ebpf.Array, 4, uint32(unsafe.Sizeof(kernelFlatFlowSet{})))
	p.maps.FlatSeen = p.take(kernelMapFlatSeen, ebpf.Hash, 8, 8)
	p.maps.FlatAttempts = p.take(kernelMapFlatAttempts, ebpf.Array, 4, uint32(unsafe.Sizeof(kernelFlatAttemptSet{})))
	timeout, _ := ebpf.LoadPinnedProgram(filepath.Join(p.dir, kernelProgFlatTimeout), nil) // nil: see CanSweep
	p.open, _ = openRequests(p.dir, &p.maps, timeout)
}

// take opens a map, or returns nil if it is not one that we can read.
func (p *Previous) take(name string, kind ebpf.MapType, key, value uint32) *ebpf.Map {
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, name), nil)
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
func (p *Previous) CanSweep() bool {
	if p.two != nil {
		return p.two.canSweep()
	}
	o := p.open
	return o.ours != nil && o.theirs != nil && o.slots != nil && o.timeout != nil && o.shared != nil
}

// CanCount reports whether the counters are those that we know, so that RingFull and
// LeftOut may be used.
func (p *Previous) CanCount() bool {
	return p.maps.FlatCounters != nil && (p.two != nil || p.open.marks != nil)
}

// each visits the requests that are open, and those of layout 2 that are remembered.
func (p *Previous) each(seed uint64, visit func(side uint8, key *kernelFlatKey, isn uint32, lastNs uint64) error) error {
	if p.two != nil {
		return p.two.each(seed, visit)
	}
	if !p.CanSweep() {
		return nil
	}
	return p.open.each(func(side uint8, _ uint64, r *kernelFlatRequest) error {
		// Without a sequence number in the note, what is asked after the timeout is new.
		since := r.FirstNs
		if r.Key.Id>>kindShift == kindTCP {
			since = r.LastNs
		}
		return visit(side, &r.Key, r.Isn, since)
	})
}

// beginNothing has the programs finish what they have begun, and begin nothing.
func (p *Previous) beginNothing() error {
	if p.two != nil {
		return p.two.beginNothing()
	}
	if p.open.shared == nil {
		return fmt.Errorf("%s has no variables to tell its programs to begin nothing", p.dir)
	}
	p.open.shared.setPhase(phaseFinish)
	return nil
}

// Sweep has the programs' requests that have waited longer than limit reported: in the
// ring, or by a call of report, with a record that is valid during the call.
func (p *Previous) Sweep(now uint64, limit time.Duration, report func(record []byte)) (swept Swept, err error) {
	switch {
	case !p.CanSweep():
		return swept, nil
	case p.two != nil:
		return p.two.sweep(now, limit, report)
	}
	return p.open.sweep(now, limit)
}

// Next is as Reader.Next, with records as our own programs write them.
func (p *Previous) Next() (record []byte, position uint64, ok bool) {
	record, position, ok = p.reader.Next()
	if ok && p.two != nil {
		record = p.two.record(record)
	}
	return record, position, ok
}

// Backlog is how many bytes of the ring are still to be read.
func (p *Previous) Backlog() int { return p.reader.Backlog() }

// Position is where in the ring those records end that have been read.
func (p *Previous) Position() uint64 { return p.reader.Position() }

// Marks are as those of Reader. If nothing but the ring and the counters of its layout is
// known, that is all they say.
func (p *Previous) Marks() (m Marks, err error) {
	if p.open.marks != nil {
		return p.reader.Marks(), nil
	}
	m.Position = p.reader.committed()
	if p.two != nil && p.CanCount() {
		m.RingFull, err = p.two.lossTold()
	}
	return m, err
}

// SetMarks is as that of Reader, as far as the layout is known.
func (p *Previous) SetMarks(to Marks) error {
	if p.open.marks != nil {
		p.reader.SetMarks(to)
		return nil
	}
	p.reader.commitTo(to.Position)
	if p.two == nil || !p.CanCount() {
		return nil
	}
	return p.two.raiseLossTold(to.RingFull)
}

// RingFull is how many exchanges found no room in the ring, if CanCount says so.
func (p *Previous) RingFull() (uint64, error) { return sumOf(p.maps.FlatCounters, RingFull) }

// LeftOut is how many exchanges the settings have left out, by their result, as too fast
// and by sampling, if CanCount says so.
func (p *Previous) LeftOut() (n [3]uint64, err error) {
	for i, c := range [...]Counter{ResultOut, TooFast, SampledOut} {
		if n[i], err = sumOf(p.maps.FlatCounters, c); err != nil {
			return n, err
		}
	}
	if p.two != nil {
		n[0] += p.two.leftOut
	}
	return n, nil
}

// LastTimeout is the number of the timeout that Sweep has handed over last, of layout 2,
// which keeps them until ConfirmTimeouts.
func (p *Previous) LastTimeout() uint64 {
	if p.two == nil || !p.two.canSweep() {
		return 0
	}
	return p.two.last
}

// ConfirmTimeouts says that every output has the timeouts up to that number.
func (p *Previous) ConfirmTimeouts(number uint64) {
	if p.two != nil && p.two.canSweep() {
		p.two.ledger.change(func(b *books2) { b.confirmed = max(b.confirmed, number) })
	}
}

// discard removes a state that has begun nothing. Its programs begin nothing either while
// they are detached, lest a start that finds half of it takes it for whole.
func (p *Previous) discard() error {
	if p.open.shared != nil {
		p.open.shared.setPhase(phaseFinish)
	}
	return errors.Join(p.detach(), p.remove())
}

// detach removes the programs from every interface.
func (p *Previous) detach() error {
	var errs []error
	links := filepath.Join(p.dir, "links")
	pins, err := os.ReadDir(links)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("list pinned links: %w", err))
	}
	for _, pin := range pins {
		errs = append(errs, unpin(filepath.Join(links, pin.Name())))
	}
	_, err = removeFilters(clsact{p.layout.handle(p.ours.root)})
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach the programs of layout %s: %w", p.layout, err)
	}
	return nil
}

// remove removes the pins, and closes the state.
func (p *Previous) remove() error {
	_, err := removeDir(p.dir)
	return errors.Join(err, p.Close())
}

// Close lets go of the state, whose programs stay as they are.
func (p *Previous) Close() error {
	errs := []error{p.maps.Close(), p.open.timeout.Close(), p.open.close()}
	if p.two != nil {
		errs = append(errs, p.two.close())
	}
	if p.reader != nil {
		errs = append(errs, p.reader.Close())
	}
	return errors.Join(errs...)
}
