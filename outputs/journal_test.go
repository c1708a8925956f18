package outputs

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flatd/flatd/flows"
	"golang.org/x/sys/unix"
)

func newTestJournal(t testing.TB, o JournalOptions) *Journal {
	t.Helper()
	o.Host = thisHost
	j, err := NewJournal(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// listener stands in for a journald that can be made to stall.
func listener(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func vanish(t testing.TB, conn *net.UnixConn, path string) {
	t.Helper()
	conn.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// sequence reads one entry and returns its EVENT_SEQUENCE.
func sequence(t testing.TB, conn *net.UnixConn) uint64 {
	t.Helper()
	buffer := make([]byte, 1<<16)
	n, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(buffer[:n], []byte("EVENT_SEQUENCE="))
	digits, _, _ := bytes.Cut(rest, []byte("\n"))
	number, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil {
		t.Fatalf("no sequence in %q", buffer[:n])
	}
	return number
}

// discard reads entries until conn is closed.
func discard(conn *net.UnixConn) {
	buffer := make([]byte, 1<<16)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return
		}
	}
}

// A journald that stops reading costs one deadline; what it had room for is not
// sent again.
func TestJournalStalls(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn := listener(t, path)
	out := newTestJournal(t, JournalOptions{Socket: path, Profile: ProfileAll})
	events := samples(1, 2000)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	tally, err := out.Write(ctx, events)
	if !errors.Is(err, errJournalStalled) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	if tally.Delivered == 0 || tally.Delivered == len(events) {
		t.Fatalf("a queue that nobody reads took %d of %d", tally.Delivered, len(events))
	}

	done := make(chan error, 1)
	go func() {
		rest, err := out.Write(t.Context(), events[tally.Delivered:])
		if rest.Delivered != len(events)-tally.Delivered {
			err = errors.Join(err, errors.New("not all delivered"))
		}
		done <- err
	}()
	for n := range events {
		if got := sequence(t, conn); got != uint64(n+1) {
			t.Fatalf("entry %d is event %d", n+1, got)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestJournalStallIsCancelled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	listener(t, path)
	out := newTestJournal(t, JournalOptions{Socket: path, Profile: ProfileAll})
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := out.Write(ctx, samples(1, 2000))
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestJournalVanishes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	out := newTestJournal(t, JournalOptions{Socket: path})
	if _, err := out.Write(t.Context(), samples(1, 1)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("nothing there: %v", err)
	}
	conn := listener(t, path)
	if _, err := out.Write(t.Context(), samples(2, 2)); err != nil {
		t.Errorf("there now: %v", err)
	}
	vanish(t, conn, path)
	if _, err := out.Write(t.Context(), samples(3, 3)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("gone: %v", err)
	}
	conn = listener(t, path)
	if _, err := out.Write(t.Context(), samples(3, 3)); err != nil {
		t.Errorf("back: %v", err)
	}
	if got := sequence(t, conn); got != 3 {
		t.Errorf("received %d", got)
	}
	// Replaced in between: the connected socket is dead, the path is not.
	vanish(t, conn, path)
	conn = listener(t, path)
	if tally, err := out.Write(t.Context(), samples(4, 4)); err != nil || tally.Delivered != 1 {
		t.Errorf("restarted: %+v, %v", tally, err)
	}
	if got := sequence(t, conn); got != 4 {
		t.Errorf("received %d", got)
	}
}

func TestJournalBudget(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	go discard(listener(t, path)) // outside the bubble, whose clock must not wait for it
	synctest.Test(t, func(t *testing.T) {
		out := newTestJournal(t, JournalOptions{Socket: path})
		write := func(what string, events []*flows.Event, delivered int) {
			t.Helper()
			tally, err := out.Write(t.Context(), events)
			want := Tally{Delivered: delivered, Withheld: len(events) - delivered}
			if err != nil || tally != want {
				t.Errorf("%s: %+v, %v; want %+v", what, tally, err, want)
			}
		}
		var bad []*flows.Event
		for n := range uint64(1500) {
			bad = append(bad, refused(n), slow(n))
		}
		write("a burst of successes", samples(1, 1000), 200)
		write("a burst of failures", bad, 2000)
		write("status and summary", []*flows.Event{status("a"), summary()}, 2)
		write("more of both", append(samples(1, 10), bad[:10]...), 0)
		time.Sleep(time.Second)
		write("successes after a second", samples(1, 100), 10)
		write("failures after a second", bad, 200)
	})
}

// An event that could not be sent has cost nothing.
func TestJournalBudgetIsGivenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	out := newTestJournal(t, JournalOptions{Socket: path, SuccessRate: 1, SuccessBurst: 1})
	for range 3 {
		if tally, err := out.Write(t.Context(), samples(1, 1)); err == nil || tally.Total() != 0 {
			t.Fatalf("%+v, %v", tally, err)
		}
	}
	listener(t, path)
	if tally, err := out.Write(t.Context(), samples(1, 1)); err != nil || tally.Delivered != 1 {
		t.Errorf("%+v, %v", tally, err)
	}
}

func TestJournalProfiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	go discard(listener(t, path))
	events := append(samples(1, 300), refused(301), slow(302), status("x"), summary())
	for profile, want := range map[string]Tally{
		ProfileAll:     {Delivered: 304},
		ProfileNotable: {Delivered: 4, Withheld: 300},
	} {
		out := newTestJournal(t, JournalOptions{Socket: path, Profile: profile})
		if tally, err := out.Write(t.Context(), events); err != nil || tally != want {
			t.Errorf("%s: %+v, %v; want %+v", profile, tally, err, want)
		}
	}
	if _, err := NewJournal(JournalOptions{Host: thisHost, Profile: "some"}); err == nil {
		t.Error("profile \"some\" passes")
	}
}

func TestJournalAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	path := filepath.Join(t.TempDir(), "socket")
	go discard(listener(t, path))
	out := newTestJournal(t, JournalOptions{Socket: path})
	events := []*flows.Event{sample(1), refused(2), slow(3)}
	ctx := t.Context()
	if allocs := testing.AllocsPerRun(500, func() { out.Write(ctx, events) }); allocs != 0 {
		t.Errorf("%v allocations per batch", allocs)
	}
}

func TestJournalSocketLeavesNoDescriptors(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	path := filepath.Join(t.TempDir(), "socket")
	conn := listener(t, path)
	go discard(conn)
	before := count()
	socket := journalSocket{path: path, fd: -1}
	for range 20 {
		if err := socket.Send(t.Context(), make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		socket.Close()
	}
	// The receiver has not taken the descriptors out of the messages.
	if after := count(); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func BenchmarkJournal(b *testing.B) {
	path := filepath.Join(b.TempDir(), "socket")
	go discard(listener(b, path))
	out := newTestJournal(b, JournalOptions{Socket: path, Profile: ProfileAll})
	events := samples(1, 256)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := out.Write(b.Context(), events); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*len(events))/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(len(events)), "events/op")
}

// What went wrong with a unit is in that unit's journal, what went well is not.
func TestJournalObjectUnit(t *testing.T) {
	const object = "OBJECT_SYSTEMD_UNIT=nginx.service\n"
	for _, c := range []struct {
		name  string
		off   bool
		event *flows.Event
		want  bool
	}{
		{"success", false, sample(1), false},
		{"refused", false, refused(1), true},
		{"slow", false, slow(1), true},
		{"refused, switched off", true, refused(1), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			conn := listener(t, path)
			out := newTestJournal(t, JournalOptions{Socket: path, NoObjectUnit: c.off})
			c.event.Cgroup, c.event.Owner = 4711, flows.OwnerOf("/system.slice/nginx.service")
			if _, err := out.Write(t.Context(), []*flows.Event{c.event}); err != nil {
				t.Fatal(err)
			}
			buffer := make([]byte, 1<<16)
			n, err := conn.Read(buffer)
			if err != nil {
				t.Fatal(err)
			}
			if got := bytes.Contains(buffer[:n], []byte(object)); got != c.want {
				t.Errorf("%s: %t, want %t, in\n%s", object, got, c.want, buffer[:n])
			}
			if !bytes.Contains(buffer[:n], []byte("\nSERVICE_NAME=nginx.service\n")) {
				t.Errorf("no service in\n%s", buffer[:n])
			}
		})
	}
}
