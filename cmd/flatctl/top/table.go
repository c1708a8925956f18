package top

import "time"

// table has the rows of a group, found by key or by number.
type table struct {
	numbers map[Key]uint16
	rows    []*Row   // the first is of the others
	free    []uint16 // rows that can be used again
}

const others = 0

func newTable() table { return table{numbers: make(map[Key]uint16), rows: []*Row{{}}} }

// at returns the number of the row of a key, a new one if there is room.
func (t *table) at(k Key) uint16 {
	if n, ok := t.numbers[k]; ok {
		return n
	}
	var n uint16
	switch {
	case len(t.numbers) == RowsMax:
		return others
	case len(t.free) > 0:
		n = t.free[len(t.free)-1]
		t.free = t.free[:len(t.free)-1]
	default:
		n = uint16(len(t.rows))
		t.rows = append(t.rows, new(Row))
	}
	t.rows[n].Key = k
	t.numbers[k] = n
	return n
}

// remove takes an exchange back from the row of a number.
func (t *table) remove(n uint16, one *exchange, slot int64) {
	row := t.rows[n]
	row.remove(one, slot)
	if row.Count == 0 && n != others {
		delete(t.numbers, row.Key)
		*row = Row{}
		t.free = append(t.free, n)
	}
}

// exchange is what has to be known of one to take it back.
type exchange struct {
	rows     [groups]uint16 // by number
	result   uint8
	duration time.Duration
}

// history is a queue of exchanges, in a ring that grows up to historyMax.
type history struct {
	ring     []exchange
	first, n int
}

func (h *history) push(one exchange) {
	if h.n == len(h.ring) {
		h.grow()
	}
	h.ring[(h.first+h.n)%len(h.ring)] = one
	h.n++
}

func (h *history) grow() {
	ring := make([]exchange, min(max(2*len(h.ring), 1024), historyMax))
	behind := copy(ring, h.ring[h.first:])
	copy(ring[behind:], h.ring[:h.first])
	h.ring, h.first = ring, 0
}

func (h *history) pop() exchange {
	one := h.ring[h.first]
	h.first = (h.first + 1) % len(h.ring)
	h.n--
	return one
}
