package outputs

import (
	"os"
	"syscall"
	"testing"
)

// checkJournal wants each of the events in the journal that were delivered.
func checkJournal(t *testing.T, daemon *journald, delivered uint64) {
	t.Helper()
	seen := make(map[any]bool)
	for _, entry := range daemon.entries(int(delivered)) {
		seen[entry["EVENT_SEQUENCE"]] = true
	}
	if uint64(len(seen)) != delivered {
		t.Errorf("%d different events in the journal, %d were delivered", len(seen), delivered)
	}
}

// A journald that does not read for a while, as when its disk hangs, costs what
// the queue has no room for and no more; that is counted.
func TestJournaldStopped(t *testing.T) {
	t.Parallel()
	daemon := startJournald(t)
	out := newTestJournal(t, JournalOptions{Socket: daemon.socket(), Profile: ProfileAll})
	const room, events = 1000, 5000
	tr := newTrial(t, out, room)
	tr.publish(10)
	tr.await("the first events", isIdle)

	if err := daemon.process.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tr.publish(events)
	s := tr.await("the outage", isDown)
	if s.Dropped == 0 || s.Queued == 0 || tr.told() != 1 {
		t.Errorf("while journald is stopped, told %d times: %+v", tr.told(), s)
	}
	if err := daemon.process.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s = tr.end()
	if s.Dropped == 0 || s.Delivered+s.Dropped != events+10 {
		t.Errorf("in the end: %+v", s)
	}
	checkJournal(t, daemon, s.Delivered)
}

// journald is killed, with and without its socket, and comes back, under load.
func TestJournaldGone(t *testing.T) {
	t.Parallel()
	daemon := startJournald(t)
	out := newTestJournal(t, JournalOptions{Socket: daemon.socket(), Profile: ProfileAll})
	tr := newTrial(t, out, 1<<16)
	for outage, remove := range []bool{false, true} {
		before := tr.stats()
		stop := tr.steadily()
		tr.await("some events", moreThan(100, before))
		daemon.stop()
		if remove {
			if err := os.Remove(daemon.socket()); err != nil {
				t.Fatal(err)
			}
		}
		before = tr.await("the outage", isDown)
		tr.await("some events to wait", func(s Stats) bool { return s.Queued > 100 })
		daemon.start()
		tr.await("some events after it", moreThan(100, before))
		stop()
		if tr.told() != outage+1 {
			t.Errorf("%d outages were told %d times", outage+1, tr.told())
		}
	}
	s := tr.end()
	if s.Delivered != s.Offered {
		t.Errorf("not everything is delivered: %+v", s)
	}
	// That is not to say that the journal has all: what a journald had not read
	// from its socket when it was killed is gone with it.
}

// The budget holds flatd within what a journal bears: what is withheld is
// counted, and the journal has the rest.
func TestJournaldBudgetUnderLoad(t *testing.T) {
	t.Parallel()
	daemon := startJournald(t)
	tr := newTrial(t, newTestJournal(t, JournalOptions{Socket: daemon.socket()}), 1<<16)
	const events = 20000
	tr.publish(events)
	s := tr.end()
	if s.Withheld == 0 || s.Delivered < 200 || s.Delivered+s.Withheld != events {
		t.Errorf("%+v", s)
	}
	checkJournal(t, daemon, s.Delivered)
}
