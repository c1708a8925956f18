package bpf

import (
	"sync"
	"time"
)

// blindness is when flatd did not see every packet. What waited for an answer then may
// have had one, so it is no timeout: it is counted, as not_looking.
type blindness struct {
	mu sync.Mutex
	// Of all interfaces: the programs were asleep, the host was suspended. A few of the
	// latest: an older one is no request's any more.
	spans []span
	// Until when programs were missing on an interface, by index.
	until map[int]uint64

	swept, asleep uint64 // when the last sweep was, and how long the host had been suspended
}

// span is from one time of CLOCK_BOOTTIME to another.
type span struct{ from, to uint64 }

const spansMax = 16

// suspendedLeast is more than the error in how long the host was suspended.
const suspendedLeast = time.Millisecond

func (b *blindness) add(from, to uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.spans) == spansMax {
		b.spans = append(b.spans[:0], b.spans[1:]...)
	}
	b.spans = append(b.spans, span{from, to})
}

// interfaceUntil says that on an interface not every packet was seen until then.
func (b *blindness) interfaceUntil(index int, now uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until == nil || len(b.until) > 4096 {
		b.until = make(map[int]uint64)
	}
	b.until[index] = now
}

// suspended takes how long the host has been suspended in all. If that is longer than at
// the last sweep, it was since then.
func (b *blindness) suspended(now, asleep uint64) {
	if b.swept != 0 && asleep > b.asleep+uint64(suspendedLeast) {
		b.add(b.swept, now)
	}
	b.swept, b.asleep = now, asleep
}

// during reports whether flatd was blind on an interface at any time of a span.
func (b *blindness) during(index int, from, to uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if from < b.until[index] {
		return true
	}
	for _, s := range b.spans {
		if from < s.to && s.from < to {
			return true
		}
	}
	return false
}
