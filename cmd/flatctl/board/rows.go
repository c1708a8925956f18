package board

import "github.com/flatd/flatd/flows"

// Row is the exchanges that have a key in common.
type Row struct {
	Key Key
	Counts
	Slots [Slots]uint32 // how many in each part of the window; a ring in a Board

	failures    [failuresMax]*Failure // a ring
	nextFailure int
}

// Failures are the latest, oldest first.
func (r *Row) Failures() (all []*Failure) {
	for i := range r.failures {
		if f := r.failures[(r.nextFailure+i)%failuresMax]; f != nil {
			all = append(all, f)
		}
	}
	return all
}

// Failure is an exchange that did not end as the initiator hoped.
type Failure struct {
	Host  flows.Host
	Event flows.Event
}

func (r *Row) add(one *exchange, slot int64, failure *Failure) {
	r.Count++
	r.Results[one.result]++
	r.Slots[slot]++
	if one.result != resultTimeout {
		r.Histogram.Add(one.duration)
	}
	if failure != nil {
		r.failures[r.nextFailure] = failure
		r.nextFailure = (r.nextFailure + 1) % failuresMax
	}
}

func (r *Row) remove(one *exchange, slot int64) {
	r.Count--
	r.Results[one.result]--
	r.Slots[slot]--
	if one.result != resultTimeout {
		r.Histogram.Remove(one.duration)
	}
}

// rowSet has the rows of a group, found by key or by number.
type rowSet struct {
	numbers map[Key]uint16
	rows    []*Row   // the first is of the others
	free    []uint16 // rows that can be used again
}

const others = 0

func newRowSet() rowSet { return rowSet{numbers: make(map[Key]uint16), rows: []*Row{{}}} }

// at returns the number of the row of a key, a new one if there is room.
func (s *rowSet) at(k Key) uint16 {
	if n, ok := s.numbers[k]; ok {
		return n
	}
	var n uint16
	switch {
	case len(s.numbers) == RowsMax:
		return others
	case len(s.free) > 0:
		n = s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
	default:
		n = uint16(len(s.rows))
		s.rows = append(s.rows, new(Row))
	}
	s.rows[n].Key = k
	s.numbers[k] = n
	return n
}

// remove takes an exchange back from the row of a number.
func (s *rowSet) remove(n uint16, one *exchange, slot int64) {
	row := s.rows[n]
	row.remove(one, slot)
	if row.Count == 0 && n != others {
		delete(s.numbers, row.Key)
		*row = Row{}
		s.free = append(s.free, n)
	}
}
