package bpf

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A take-over, in its order: Previous finds the state of other programs and sets ours to
// note what these begin; the daemon attaches ours in front of them; TakeOver copies what
// they have open, has ours begin what is new and them nothing; the daemon reads their ring
// until they have finished; Detach removes them, End their pins. handover.h is what the
// programs do meanwhile, model/takeover.pml why each step is there.

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
		p, err := s.openPrevious(l)
		if err == nil && (found != nil || p.isHalfMade() || p.isAhead()) {
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
		found.two.noteReturn(found.dir)
	}
	if err := s.beginWatch(found); err != nil {
		return found, err
	}
	if found != nil && found.TakingOver() {
		s.Start = StartBeside
	}
	return found, nil
}

// isAhead reports whether the other state is that of a start that was cut short before
// its programs had begun anything: ours are still in charge. So it is where they are to
// finish, too: then it is half removed. If they had begun, their take-over is completed
// here, and is followed by one of ours.
func (p *Previous) isAhead() bool {
	if p.two != nil || p.open.shared == nil {
		return false
	}
	s, their := p.ours, p.open.shared
	ours, theirs := s.shared.phase(), their.phase()
	began := theirs == phaseBoth || theirs == phaseAfter
	last := atomic.LoadUint64(&their.BothNs) > atomic.LoadUint64(&s.shared.BothNs)
	switch {
	case began && (ours == phaseAlone || (ours == phaseBoth || ours == phaseAfter) && last) && s.Attacher.attachedAnywhere():
		// model: ONE_AT_A_TIME
		time.Sleep(handoverGrace) // theirs may have begun to begin just now; model: GRACE_BOTH
		s.shared.setPhase(phaseFinish)
		time.Sleep(handoverGrace)
		their.setPhase(phaseAfter)
		return false
	case ours == phaseAlone: // model: AHEAD_FINISH
		return s.Attacher.attachedAnywhere()
	}
	return false
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
	case p != nil && (phase == phaseAlone || phase == phaseWatch || phase == phaseFinish || p.two != nil && p.two.back):
		// In phaseWatch again: a start that was cut short may have copied what is over by now
		// (model: CLEAR_SEEN). What is still open is copied once more.
		if err := s.clearSeen(); err != nil {
			return err
		}
		if p.two == nil && p.open.shared != nil { // before ours are attached: it is in what they note
			atomic.StoreUint64(&s.shared.Seed, p.open.shared.Seed)
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
func (p *Previous) TakingOver() bool {
	phase := p.ours.shared.phase()
	return phase == phaseWatch || phase == phaseBoth
}

// handoverGrace is longer than any run of a program: what one has looked at before, it
// has acted upon after.
const handoverGrace = 10 * time.Millisecond

// TakeOver has our programs begin what is new, and those of p nothing any more. A kill
// between any two of its steps is made good by the next start.
func (p *Previous) TakeOver() error {
	s := p.ours
	if s.shared.phase() == phaseWatch {
		time.Sleep(handoverGrace) // model: GRACE_WATCH, what ours have not noted, p has in its table
		if err := p.inherit(); err != nil {
			return err
		}
		if p.two != nil {
			if err := p.two.watch(); err != nil {
				return err
			}
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

// Detach removes the programs of p from every interface. They must have finished.
func (p *Previous) Detach() error {
	if err := p.ours.maps.FlatSettings2.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("watch the settings of layout 2 no more: %w", err)
	}
	return p.detach()
}

// End removes the pins of p, closes p, and ends the phases: our programs are alone.
func (p *Previous) End() error { return errors.Join(p.remove(), p.ours.beginWatch(nil)) }

// inherit gives our programs what those of p have open, and which flows and attempts
// they know: a SYN that is sent again, an answer, a further datagram is nothing new.
func (p *Previous) inherit() error {
	s := p.ours
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
	if err == nil && len(asked) > 0 {
		err = p.two.noteFlows(asked)
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
	var mapped memory
	p, err := mapped.of(m)
	if err != nil {
		return err
	}
	words := unsafe.Slice((*uint64)(p), m.MaxEntries()*m.ValueSize()/8)
	return errors.Join(use(words), mapped.close())
}
