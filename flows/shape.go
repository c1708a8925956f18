package flows

import (
	"maps"
	"sync"
	"sync/atomic"
)

// shape is what the fixed fields of an exchange follow from.
type shape struct {
	kind        Kind
	side        Side
	result      Result
	addressBits uint8
	quic        bool
	rcode       uint16 // of DNS alone, as is truncated
	truncated   bool
}

func (e *Event) shape() shape {
	s := shape{kind: e.Kind, side: e.Side, result: e.Result, addressBits: uint8(e.Source.Addr().BitLen()), quic: e.QUIC}
	if e.Kind == KindDNS {
		s.rcode, s.truncated = e.DNS.RCode, e.DNS.Truncated
	}
	return s
}

// shapesMax bounds the shapes that are remembered, at some 3 kB each. A host has
// a dozen as a rule; the response codes of DNS are what others can make more of.
const shapesMax = 128

// shapes has, for each shape that was seen, its forms for JSON: what is the
// same in all events of a shape is made once. The zero value is ready.
type shapes struct {
	last   atomic.Pointer[shaped]            // most events are like the one before
	known  atomic.Pointer[map[shape]*shaped] // replaced, never changed
	adding sync.Mutex
}

// shaped is a shape with its forms.
type shaped struct {
	shape
	forms []form
}

var seenShapes shapes

// forms returns those of an event, of an exchange with its fixed fields as text.
func (s *shapes) forms(e *Event) []form {
	if !e.Exchange() {
		return formsOf(e)
	}
	is := e.shape()
	if last := s.last.Load(); last != nil && last.shape == is {
		return last.forms
	}
	if known := s.known.Load(); known != nil {
		if found, ok := (*known)[is]; ok {
			s.last.Store(found)
			return found.forms
		}
		if len(*known) >= shapesMax {
			return formsOf(e)
		}
	}
	return s.add(e)
}

// add remembers the shape of e, the first of it.
func (s *shapes) add(e *Event) []form {
	s.adding.Lock()
	defer s.adding.Unlock()
	more := make(map[shape]*shaped)
	if known := s.known.Load(); known != nil {
		maps.Copy(more, *known)
	}
	added := &shaped{e.shape(), withFixed(formsOf(e), e)}
	more[added.shape] = added
	s.known.Store(&more)
	return added.forms
}

// withFixed returns the forms with text in place of each run of fixed fields, as
// e has them, and without those that no event of its shape has.
func withFixed(table []form, e *Event) (made []form) {
	shared := uint8(objectsMax)
	for _, f := range table {
		f.shared = min(f.shared, shared)
		shared = f.shared // for the next, if this one is left out
		if f.kind != 0 && f.kind != e.Kind {
			continue
		}
		if f.fixed {
			value := f.appendJSON(nil, nil, e)
			if len(value) == 0 {
				continue
			}
			f = f.withText(string(value))
		}
		shared = objectsMax
		if last := len(made) - 1; f.constant() && last >= 0 && made[last].constant() {
			made[last] = made[last].followedBy(f)
		} else {
			made = append(made, f)
		}
	}
	return made
}

// constant reports whether names are all there is, the value among them.
func (f *form) constant() bool { return f.value == nil && f.list == nil }

// withText returns the form of one whose value is always the same.
func (f form) withText(value string) form {
	f.value, f.list = nil, nil
	f.names += value
	return f
}

// followedBy joins two constant forms.
func (f form) followedBy(next form) form {
	closing := closeObjects(nil, int(f.depth-next.shared))
	f.names += string(closing) + "," + next.names[next.starts[next.shared]:]
	f.depth = next.depth
	return f
}
