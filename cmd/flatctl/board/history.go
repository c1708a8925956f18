package board

import "time"

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
