package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Previous is the state of another layout, whose programs are still attached. They
// finish what they have begun and begin nothing, then they are removed. It may be of an
// older flatd, after an upgrade, or of a newer one, when somebody went back.
//
// All layouts from 3 on have in common: struct flat_shared_words at the beginning of the
// variables, the struct flat_request and how it is found and hashed, struct flat_overdue,
// the records and the marks. What layout 2 has
// is in layout2.go.
type Previous struct {
	layout  layout
	root    string
	dir     string
	maps    kernelMaps // those that are of use, nil where they are not as expected
	program *ebpf.Program
	shared  *shared
	marks   *marks
	open    openTable
	two     *layout2 // of layout 2

	reader *Reader
}

// Name says which layout it is.
func (p *Previous) Name() string { return p.layout.String() }

// Previous finds the state that a flatd of another layout left below the pin path, and
// from which this one takes over; nil if there is none. Its programs go on until
// TakeOver; from now on ours note what these begin, and begin nothing.
func (s *State) Previous() (*Previous, error) {
	layouts, err := layoutsIn(s.root)
	if err != nil {
		return nil, err
	}
	var found *Previous
	for _, l := range layouts {
		if l == s.layout {
			continue
		}
		p, err := openPrevious(s.root, l)
		if err == nil && (found != nil || p.isHalfMade() || s.isAhead(p)) {
			err = p.discard()
		} else if err == nil {
			found = p
		}
		if err != nil {
			return nil, err
		}
	}
	if found != nil && found.two != nil {
		found.two.skipTimeouts = s.options.SkipResults>>resultTimeout2&1 == 1
	}
	return found, s.beginWatch(found)
}

// isHalfMade reports whether a start was cut short before it had attached anything: maps
// are pinned before programs, and these before they are attached.
func (p *Previous) isHalfMade() bool {
	return p.reader == nil || p.two == nil && (p.shared == nil || p.program == nil)
}

// isAhead reports whether the other state is that of a start that was cut short before
// its programs had begun anything: ours are still in charge. So it is where they are to
// finish, too: then it is half removed. If they had begun, their take-over is completed
// here, and is followed by one of ours.
func (s *State) isAhead(p *Previous) bool {
	if p.two != nil || p.shared == nil {
		return false
	}
	ours, theirs := s.shared.phase(), p.shared.phase()
	began := theirs == phaseBoth || theirs == phaseAfter
	last := atomic.LoadUint64(&p.shared.BothNs) > atomic.LoadUint64(&s.shared.BothNs)
	switch {
	case began && (ours == phaseAlone || (ours == phaseBoth || ours == phaseAfter) && last) && s.attachedAnywhere():
		// model: ONE_AT_A_TIME
		time.Sleep(handoverGrace) // theirs may have begun to begin just now; model: GRACE_BOTH
		s.shared.setPhase(phaseFinish)
		time.Sleep(handoverGrace)
		p.shared.setPhase(phaseAfter)
		return false
	case ours == phaseAlone: // model: AHEAD_FINISH
		return s.attachedAnywhere()
	}
	return false
}

// attachedAnywhere reports whether our programs have been attached before this start.
func (s *State) attachedAnywhere() bool {
	indexes, err := s.Leftovers()
	return err == nil && len(indexes) > 0
}

// beginWatch brings our programs into the phase in which they are beside those of p.
func (s *State) beginWatch(p *Previous) error {
	phase := s.shared.phase()
	switch {
	case p == nil && phase != phaseAlone:
		if err := s.keepAttempts(); err != nil {
			return err
		}
		s.shared.setPhase(phaseAlone)
		return s.clearSeen()
	case p != nil && (phase == phaseAlone || phase == phaseWatch || phase == phaseFinish):
		// In phaseWatch again: a start that was cut short may have copied what is over by now
		// (model: CLEAR_SEEN). What is still open is copied once more.
		if err := s.clearSeen(); err != nil {
			return err
		}
		if p.two == nil && p.shared != nil { // before ours are attached: it is in what they note
			atomic.StoreUint64(&s.shared.Seed, p.shared.Seed)
		}
		atomic.StoreUint64(&s.shared.BothNs, BootTime()) // model: BOTH_SINCE
		s.shared.setPhase(phaseWatch)
	}
	return nil
}

// keepAttempts remembers the attempts of the others as answered ones are (attempt.h): a SYN
// that is sent again after they have gone is still no new attempt.
func (s *State) keepAttempts() error {
	var hash, value uint64
	return withWords(s.maps.FlatAttempts, func(words []uint64) error {
		const ways = len(kernelFlatAttemptSet{}.Ways)
		entries := s.maps.FlatSeen.Iterate()
		for entries.Next(&hash, &value) {
			set := words[int(hash%uint64(len(words)/ways))*ways:][:ways]
			way := max(slices.Index(set, 0), 0)
			unit := (value&^seenOurs>>30 + 1) & (1<<tagShift - 1)
			atomic.StoreUint64(&set[way], hash>>tagShift<<tagShift|unit)
		}
		if err := entries.Err(); err != nil {
			return fmt.Errorf("list what other programs have begun: %w", err)
		}
		return nil
	})
}

func (s *State) clearSeen() error {
	return deleteKeys[uint64, uint64](s.maps.FlatSeen, "what other programs have begun", func(uint64) bool { return true })
}

// TakingOver reports whether TakeOver is still to be called, or to be completed.
func (s *State) TakingOver() bool {
	phase := s.shared.phase()
	return phase == phaseWatch || phase == phaseBoth
}

// handoverGrace is longer than any run of a program: what one has looked at before, it
// has acted upon after.
const handoverGrace = 10 * time.Millisecond

// TakeOver has our programs begin what is new, and those of p nothing any more. A kill
// between any two of its steps is made good by the next start.
func (s *State) TakeOver(p *Previous) error {
	if s.shared.phase() == phaseWatch {
		time.Sleep(handoverGrace) // model: GRACE_WATCH, what ours have not noted, p has in its table
		if err := s.inherit(p); err != nil {
			return err
		}
		s.shared.setPhase(phaseBoth) // model: BOTH, before p begins nothing
	}
	time.Sleep(handoverGrace) // model: GRACE_BOTH
	if err := p.beginNothing(); err != nil {
		return err
	}
	time.Sleep(handoverGrace)
	s.shared.setPhase(phaseAfter)
	return nil
}

// EndTakeOver is called once p has been removed.
func (s *State) EndTakeOver() error { return s.beginWatch(nil) }

// inherit gives our programs what those of p have open, and which flows and attempts
// they know: a SYN that is sent again, an answer, a further datagram is nothing new.
func (s *State) inherit(p *Previous) error {
	if p.two == nil {
		if err := errors.Join(inheritWords(s.maps.FlatFlows, p.maps.FlatFlows), inheritWords(s.maps.FlatAttempts, p.maps.FlatAttempts)); err != nil {
			return err
		}
	}
	noted := make(map[uint64]bool)
	var asked []askedFlow // whose words layout 2 has by another hash
	// model: COPY
	err := p.each(s.shared.Seed, func(side uint8, key *kernelFlatKey, isn uint32, lastNs uint64) error {
		hash := seenHash(s.shared.Seed, side, key, isn)
		noted[hash] = true
		if p.two != nil && key.Id>>kindShift == kindUDP {
			asked = append(asked, askedFlow{side, *key, lastNs})
		}
		return s.noteSeen(hash, lastNs)
	})
	if err == nil {
		err = s.noteFlows(asked)
	}
	if err != nil {
		return err
	}
	// What was answered meanwhile is over: its key is free. An answer that comes after the
	// note passes our programs, which then forget it; one that has passed them before has
	// passed those of p after the grace. model: COPY_AGAIN, GRACE_COPY
	time.Sleep(handoverGrace)
	err = p.each(s.shared.Seed, func(side uint8, key *kernelFlatKey, isn uint32, _ uint64) error {
		delete(noted, seenHash(s.shared.Seed, side, key, isn))
		return nil
	})
	for hash := range noted {
		if deleteErr := s.maps.FlatSeen.Delete(hash); deleteErr != nil && !errors.Is(deleteErr, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, fmt.Errorf("forget what other programs have ended: %w", deleteErr))
		}
	}
	return err
}

func (s *State) noteSeen(hash, value uint64) error {
	err := s.maps.FlatSeen.Update(hash, value, ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) && !errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("note what other programs have begun: %w", err)
	}
	return nil
}

// askedFlow is a UDP flow with an open request.
type askedFlow struct {
	side   uint8
	key    kernelFlatKey
	lastNs uint64
}

// noteFlows has our programs know flows, so that the answer to one begins no other.
func (s *State) noteFlows(flows []askedFlow) error {
	return withWords(s.maps.FlatFlows, func(words []uint64) error {
		const ways = len(kernelFlatFlowSet{}.Ours) // and as many of the other side
		for i := range flows {
			f := &flows[i]
			hash := flowHash(s.shared.Seed, &f.key)
			first := int(hash%uint64(len(words)/(2*ways))) * 2 * ways
			if f.side == SideServer {
				first += ways
			}
			if way := slices.Index(words[first:first+ways], 0); way >= 0 {
				const asked, unitShift, unitMask = 1 << 22, 24, 1<<22 - 1 // FLOW_ASKED and the like
				word := hash>>tagShift<<tagShift | asked | f.lastNs>>unitShift&unitMask
				atomic.CompareAndSwapUint64(&words[first+way], 0, word)
			}
		}
		return nil
	})
}

// inheritWords copies the words of an array of them, where ours has none yet.
func inheritWords(ours, theirs *ebpf.Map) error {
	if theirs == nil || theirs.MaxEntries() != ours.MaxEntries() || theirs.ValueSize() != ours.ValueSize() {
		return nil
	}
	return withWords(theirs, func(from []uint64) error {
		return withWords(ours, func(to []uint64) error {
			for i := range from {
				if word := atomic.LoadUint64(&from[i]); word != 0 {
					atomic.CompareAndSwapUint64(&to[i], 0, word)
				}
			}
			return nil
		})
	})
}

// withWords calls use with the words of an array, in the kernel's memory.
func withWords(m *ebpf.Map, use func(words []uint64) error) error {
	memory, err := mapMemory(m)
	if err != nil {
		return err
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(&memory[0])), len(memory)/8)
	return errors.Join(use(words), unmap(memory))
}

// seenOurs is SEEN_OURS of handover.h.
const seenOurs = 1 << 63

// IsOurs reports whether a record of the ring of p is of a request that our programs
// report themselves: both have begun it.
func (s *State) IsOurs(p *Previous, record []byte) bool {
	var theirs uint64
	if p.shared != nil {
		theirs = atomic.LoadUint64(&p.shared.BothNs)
	}
	return isFromBefore(record, theirs, s.shared) && began(record, s.shared, s.maps.FlatSeen)
}

// IsTheirs reports whether a record of our ring is of a request that the programs of p
// report themselves, from when p took over from us.
func (s *State) IsTheirs(p *Previous, record []byte) bool {
	if p.two != nil || p.shared == nil || p.maps.FlatSeen == nil {
		return false
	}
	return isFromBefore(record, atomic.LoadUint64(&s.shared.BothNs), p.shared) && began(record, p.shared, p.maps.FlatSeen)
}

// isFromBefore reports whether others, with these words, took over from the programs of a
// record after these had begun its request. If each took over from the other, the last one
// to do so reports it, whoever reads: a daemon of either may be killed. model: BOTH_SINCE
func isFromBefore(record []byte, since uint64, others *shared) bool {
	r := (*kernelFlatRecord)(unsafe.Pointer(&record[0]))
	if len(record) < int(unsafe.Sizeof(*r)) {
		return false
	}
	return atomic.LoadUint64(&others.BothNs) > since || r.EndNs-r.DurationNs < since
}

// began reports whether the programs that noted it in seen have begun the request of a
// record of others: before it ended. Not before it was sent, for after a roll-back the
// others are in front and see each packet first. What ended before the note is only the
// others'. model: SEEN_SINCE
func began(record []byte, words *shared, seen *ebpf.Map) bool {
	r := (*kernelFlatRecord)(unsafe.Pointer(&record[0]))
	since := atomic.LoadUint64(&words.BothNs)
	if len(record) < int(unsafe.Sizeof(*r)) || since == 0 || r.EndNs < since {
		return false
	}
	side, key := keyOf(record, words)
	var value uint64
	err := seen.Lookup(seenHash(words.Seed, side, &key, 0), &value)
	return err == nil && value&seenOurs != 0 && value&^seenOurs <= r.EndNs
}

// keyOf is the key of the exchange that a record is about, for programs with these words.
func keyOf(record []byte, words *shared) (side uint8, key kernelFlatKey) {
	r := (*kernelFlatDnsRecord)(unsafe.Pointer(&record[0]))
	h := &r.Record
	key.Local, key.LocalPort = h.Source, h.SourcePort
	key.Remote, key.RemotePort = h.Destination, h.DestinationPort
	if h.Side == SideServer {
		key.Local, key.LocalPort, key.Remote, key.RemotePort = key.Remote, key.RemotePort, key.Local, key.LocalPort
	}
	if atomic.LoadUint32(&words.MatchHost) == 0 {
		key.Ifindex = h.Ifindex
	}
	id := uint64(0)
	switch h.Kind {
	case kindICMP:
		id = uint64(h.Id)
	case kindDNS:
		question := r.Question[:min(int(h.QuestionLength), len(r.Question))]
		id = uint64(h.Id)<<dnsIDShift | questionHash(words.Seed, question)
	}
	key.Id = uint64(h.Kind)<<kindShift | id
	return h.Side, key
}

func openPrevious(root string, l layout) (*Previous, error) {
	p := &Previous{layout: l, root: root, dir: l.dir(root)}
	if err := checkOwner(p.dir); err != nil {
		return nil, err
	}
	p.maps.FlatEvents = p.take(kernelMapFlatEvents, ebpf.RingBuf, 0, 0)
	if p.maps.FlatEvents == nil {
		return p, nil // there is nothing to take over
	}
	p.maps.FlatCounters = p.take(kernelMapFlatCounters, ebpf.PerCPUArray, 4, 8)
	if l.abi < 3 {
		p.two = openLayout2(p)
	} else {
		p.openLayout()
	}
	var err error
	if p.reader, err = newReader(p.maps.FlatEvents); err != nil {
		return p, errors.Join(err, p.Close())
	}
	if p.marks != nil {
		p.marks.resume(p.reader)
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
	p.program, _ = ebpf.LoadPinnedProgram(filepath.Join(p.dir, kernelProgFlatTimeout), nil) // nil: see CanSweep
	p.shared, _ = openShared(p.dir)
	p.marks, _ = openMarks(p.dir)
	if p.maps.FlatSlots != nil && p.shared != nil {
		p.open, _ = openTableOf(&p.maps, p.shared)
	}
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
	return p.open.ours != nil && p.open.theirs != nil && p.open.slots.all != nil && p.program != nil && p.shared != nil
}

// CanCount reports whether the counters are those that we know, so that RingFull and
// LeftOut may be used.
func (p *Previous) CanCount() bool {
	return p.maps.FlatCounters != nil && (p.two != nil || p.marks != nil)
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
	if p.shared == nil {
		return fmt.Errorf("%s has no variables to tell its programs to begin nothing", p.dir)
	}
	p.shared.setPhase(phaseFinish)
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
	var blind blindness
	err = p.open.each(func(side uint8, hash uint64, r *kernelFlatRequest) error {
		overdue := blind.judge(now, limit, side, hash, r)
		if overdue == nil || swept.Full {
			count(&swept, side)
			return nil
		}
		err := runTimeout(p.program, p.shared, overdue)
		if errors.Is(err, errRingFull) {
			swept.Full = true
			return nil
		}
		return err
	})
	return swept, err
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

// Marks are as those of State. If nothing but the ring and the counters of its layout is
// known, that is all they say.
func (p *Previous) Marks() (m Marks, err error) {
	if p.marks != nil {
		return p.marks.read().Marks, nil
	}
	m.Position = p.reader.committed()
	if p.two != nil && p.CanCount() {
		m.RingFull, err = p.two.count(lossTold2)
	}
	return m, err
}

// SetMarks is as that of State, as far as the layout is known.
func (p *Previous) SetMarks(to Marks) error {
	if p.marks != nil {
		p.marks.set(p.reader, to)
		return nil
	}
	p.reader.commitTo(to.Position)
	if p.two == nil || !p.CanCount() {
		return nil
	}
	return p.two.raiseLossTold(to.RingFull)
}

// RingFull is how many exchanges found no room in the ring, if CanCount says so.
func (p *Previous) RingFull() (uint64, error) { return p.count(RingFull) }

// LeftOut is how many exchanges the settings have left out, by their result, as too fast
// and by sampling, if CanCount says so.
func (p *Previous) LeftOut() (byResult, tooFast, sampledOut uint64, err error) {
	byResult, err = p.count(ResultOut)
	if p.two != nil {
		byResult += p.two.leftOut
	}
	if err == nil {
		tooFast, err = p.count(TooFast)
	}
	if err == nil {
		sampledOut, err = p.count(SampledOut)
	}
	return byResult, tooFast, sampledOut, err
}

// count reads a counter that all layouts have.
func (p *Previous) count(c Counter) (uint64, error) { return (&State{maps: p.maps}).sum(c) }

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
		p.two.change(func(b *books2) { b.confirmed = max(b.confirmed, number) })
	}
}

// discard removes a state that has begun nothing. Its programs begin nothing either while
// they are detached, lest a start that finds half of it takes it for whole.
func (p *Previous) discard() error {
	if p.shared != nil {
		p.shared.setPhase(phaseFinish)
	}
	return errors.Join(p.Detach(), p.Remove())
}

// Detach removes the programs from every interface.
func (p *Previous) Detach() error {
	var errs []error
	links := filepath.Join(p.dir, "links")
	pins, err := os.ReadDir(links)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("list pinned links: %w", err))
	}
	for _, pin := range pins {
		errs = append(errs, unpin(filepath.Join(links, pin.Name())))
	}
	filters := clsact{p.layout.handle(p.root)}
	indexes, err := filters.interfaces()
	errs = append(errs, err)
	for _, index := range indexes {
		errs = append(errs, filters.detach(index))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach the programs of layout %s: %w", p.layout, err)
	}
	return nil
}

// Remove removes the pins, and closes the state.
func (p *Previous) Remove() error {
	_, err := removeDir(p.dir)
	return errors.Join(err, p.Close())
}

// Close lets go of the state, whose programs stay as they are.
func (p *Previous) Close() error {
	errs := []error{p.maps.Close(), p.marks.close(), p.shared.close(), p.open.slots.close()}
	if p.two != nil {
		errs = append(errs, p.two.close())
	}
	if p.program != nil {
		errs = append(errs, p.program.Close())
	}
	if p.reader != nil {
		errs = append(errs, p.reader.Close())
	}
	return errors.Join(errs...)
}
