package outputs

// backlog holds the items that wait for an output, oldest first, in a ring of
// fixed size. Its owner keeps it from overflowing.
type backlog struct {
	slots []*Item
	// head and tail count items ever taken and ever added; a slot is found by
	// the count modulo the size.
	head, tail uint64
}

func newBacklog(size int) backlog { return backlog{slots: make([]*Item, size)} }

func (b *backlog) len() int { return int(b.tail - b.head) }

func (b *backlog) slot(n uint64) **Item { return &b.slots[n%uint64(len(b.slots))] }

// push adds the newest item.
func (b *backlog) push(i *Item) {
	*b.slot(b.tail) = i
	b.tail++
}

// pop takes the oldest item, or nil.
func (b *backlog) pop() *Item {
	if b.head == b.tail {
		return nil
	}
	slot := b.slot(b.head)
	i := *slot
	*slot = nil
	b.head++
	return i
}

// unpop puts items that were popped back in front, in their order.
func (b *backlog) unpop(items []*Item) {
	for n := len(items) - 1; n >= 0; n-- {
		b.head--
		*b.slot(b.head) = items[n]
	}
}
