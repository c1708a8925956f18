package daemon

import "testing"

func TestCustody(t *testing.T) {
	var c custody
	for _, e := range []charge{{position: 8}, {timeout: 1}, {timeout: 2}, {position: 128, records: 1}, {lost: 5}, {older: true}, {notFollowed: 9}} {
		c.take(e)
	}
	check := func(what string, got, want settled) {
		t.Helper()
		if got != want {
			t.Errorf("%s: settled %+v, want %+v", what, got, want)
		}
	}
	record := func(position uint64) {
		t.Helper()
		if e, _ := c.record(); e.position != position {
			t.Errorf("oldest record at %d, want %d", e.position, position)
		}
	}
	check("all held", c.settle(1, true), settled{})
	record(8)
	check("held from the second timeout on", c.settle(3, true), settled{timeout: 1})
	record(128)
	c.dropRecords()
	record(0)
	if c.empty() || c.older != 1 {
		t.Errorf("empty %t, %d older; want what is not in the ring", c.empty(), c.older)
	}
	check("none held", c.settle(0, false), settled{timeout: 2, lost: 5, notFollowed: 9})
	if !c.empty() || c.older != 0 {
		t.Errorf("empty %t, %d older after all was settled", c.empty(), c.older)
	}
	if ticket := c.take(charge{position: 256}); ticket != 8 {
		t.Errorf("ticket %d after 7", ticket)
	}
}

// Room is reused: a steady stream of events makes no garbage.
func TestCustodyMakesNoGarbage(t *testing.T) {
	var c custody
	pass := func() {
		ticket := c.take(charge{position: 8})
		c.take(charge{position: 16})
		c.settle(ticket+1, true)
	}
	for range 100 {
		pass()
	}
	if n := testing.AllocsPerRun(1000, pass); n != 0 {
		t.Errorf("%v allocations for each event", n)
	}
}
