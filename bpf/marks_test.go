package bpf

import (
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// The marks are what counts, also where a daemon was killed before it released the ring.
func TestMarksOutliveTheDaemon(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	again := func() (left int) {
		k.leave()
		k = session(t, path)
		found, _ := sequences(k.reader)
		return len(found)
	}
	check := func(what string, want Marks) {
		t.Helper()
		if got := k.reader.Marks(); got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	check("before all", Marks{})
	for n := range uint32(5) {
		k.handshake(n)
	}
	_, positions := sequences(k.reader)
	end := k.reader.Position()
	third := Marks{Records: 3, Position: positions[3] - recordHeader, Unreported: 2, RingFull: 7, TableFull: 8}
	k.reader.SetMarks(third)
	if left := again(); left != 2 {
		t.Fatalf("%d records come again, want 2", left)
	}
	check("set", third)

	fifth := Marks{Records: 5, Position: end, Unreported: 4, RingFull: 9, TableFull: 10}
	for range 2 { // killed before the ring is released, and once more
		k.reader.marks.change(func(v *markValues) { v.Marks = fifth })
		if left := again(); left != 0 {
			t.Errorf("%d records come again after the marks of all, want none", left)
		}
		check("marks alone", fifth)
	}
	fifth.Unreported = 1 // without another position
	k.reader.SetMarks(fifth)
	if left := again(); left != 0 {
		t.Errorf("%d records come again after all were released", left)
	}
	check("all", fifth)
}

// A timeout is a record as any other: it waits for the daemon that comes next.
func TestTimeoutsOutliveTheDaemon(t *testing.T) {
	eachObject(t, func(t *testing.T, o object) {
		path := testbed.BPFFS(t)
		open := func() *kernel { return newSession(t, openState(t, path, o)) }
		first := open()
		first.out(flow4.syn(t, 1))
		first.out(flow4.port(53).dns(t, 7, nil))
		first.timeOutAll()
		first.leave()

		second := open().started(StartAdopt)
		if swept := second.sweep(time.Minute, limit); swept != (Swept{}) {
			t.Errorf("swept again: %+v", swept)
		}
		read, positions := sequences(second.reader)
		if len(read) != 2 {
			t.Fatalf("%d records, want 2", len(read))
		}
		second.reader.SetMarks(Marks{Records: 1, Position: positions[1] - recordHeader})
		second.leave()

		third := open()
		again, _ := sequences(third.reader)
		if len(again) != 1 || again[0] != read[1] || third.reader.Marks().Records != 1 {
			t.Errorf("records %v after %d released, want %d after 1", again, third.reader.Marks().Records, read[1])
		}
		third.counted(counts{"requests": 2, "timed_out": 2})
	})
}

// Attempts from outside that were not completed are counted for good, and make no
// records.
func TestHalfOpenAttemptsAreCountedOverRestarts(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	k.out(flow4.syn(t, 1))
	for n := range uint16(50) {
		k.in(flow6.port(1000+n).syn(t, 1))
	}
	k.sweep(time.Minute, limit)
	k.leave()
	k = session(t, path)
	if got := k.one(); got.Result != timedOut || got.Side != SideClient {
		t.Errorf("record %+v", got)
	}
	k.counted(counts{"requests": 51, "half_open": 50, "timed_out": 1})
	k.balanced()
}

func TestMarksOfAnotherLayoutAreRefused(t *testing.T) {
	path := testbed.BPFFS(t)
	session(t, path).leave()
	foreignMap(t, pinOf(path, marksPin))
	_, err := Open(path, Auto)
	says(t, err, path, "another layout", marksPin, "flatctl detach")
}
