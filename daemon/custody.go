package daemon

// custody is what has been published and not disposed of by every output yet.
// Until it is, the kernel's half has to remember it, so that a daemon which is
// killed costs nothing: the record stays in the ring, the timeout in the
// ledger, the loss untold.
type custody struct {
	entries []charge // in the order of their tickets
	first   int      // those before it are settled
	ticket  uint64
	older   int // entries of an older state
}

// charge is one event in custody. Exactly one of position, timeout, lost,
// notFollowed and older is set.
type charge struct {
	ticket   uint64
	position uint64 // in the ring
	records  uint64 // how many were read before this one
	timeout  uint64 // its number
	lost     uint64 // how many events the loss is about
	older    bool   // from an older state, which forgets all such at once
	// How many requests have found no room, with those that this event is about.
	notFollowed uint64
}

// take returns the ticket by which the queues hold the event.
func (c *custody) take(e charge) (ticket uint64) {
	c.ticket++
	e.ticket = c.ticket
	if c.first > len(c.entries)/2 {
		c.entries = append(c.entries[:0], c.entries[c.first:]...)
		c.first = 0
	}
	c.entries = append(c.entries, e)
	if e.older {
		c.older++
	}
	return e.ticket
}

// settled is what the kernel's half may forget.
type settled struct {
	timeout     uint64 // up to this number; 0: none
	lost        uint64 // so many more
	notFollowed uint64 // up to this number; 0: none
}

// settle gives up what comes before the ticket that the queues still hold, or
// everything if they hold none.
func (c *custody) settle(held uint64, holding bool) (s settled) {
	for ; c.first < len(c.entries); c.first++ {
		e := c.entries[c.first]
		if holding && e.ticket >= held {
			break
		}
		s.timeout = max(s.timeout, e.timeout)
		s.lost += e.lost
		s.notFollowed = max(s.notFollowed, e.notFollowed)
		if e.older {
			c.older--
		}
	}
	return s
}

// record is the oldest record in custody, if there is one.
func (c *custody) record() (e charge, ok bool) {
	for _, e := range c.entries[c.first:] {
		if e.position != 0 {
			return e, true
		}
	}
	return charge{}, false
}

// dropRecords gives up the records alone: from now on the queues are the only
// ones to know them.
func (c *custody) dropRecords() {
	kept := c.entries[:0]
	for _, e := range c.entries[c.first:] {
		if e.position == 0 {
			kept = append(kept, e)
		}
	}
	c.entries, c.first = kept, 0
}

func (c *custody) empty() bool { return c.first == len(c.entries) }
