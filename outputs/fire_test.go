package outputs

import (
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// soak is a long form of the tests in which something is away for a while.
func soak(t testing.TB) bool {
	t.Helper()
	text := os.Getenv("FLATD_SOAK")
	if text == "" {
		return false
	}
	if n, err := strconv.Atoi(text); err != nil || n < 1 {
		t.Fatalf("FLATD_SOAK=%q: want a number of rounds", text)
	}
	return true
}

// away is how long what is under fire is gone.
func away(t testing.TB) time.Duration {
	if soak(t) {
		return time.Minute
	}
	return time.Second
}

// trial has an output under fire beside one that is well, and counts.
type trial struct {
	t      *testing.T
	fanout *Fanout
	well   *probe
	name   string // of the output under fire
	pool   Pool

	mu        sync.Mutex
	published uint64
	failures  []error // as told: the first of each outage
}

func newTrial(t *testing.T, out Output, capacity int) *trial {
	tr := &trial{t: t, name: out.Name(), well: &probe{name: "well", write: deliver}}
	told := func(_ string, err error) {
		if err != nil {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			tr.failures = append(tr.failures, err)
		}
	}
	tr.fanout = NewFanout(time.Second, NewQueue(out, capacity, told), NewQueue(tr.well, 1<<16, nil))
	return tr
}

// publish offers n more events, which are numbered from 1.
func (tr *trial) publish(n int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for range n {
		tr.published++
		i := tr.pool.Get()
		i.Event = *sample(tr.published)
		tr.fanout.Publish(i)
	}
}

// steadily publishes until stop is called.
func (tr *trial) steadily() (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-pace.C:
				tr.publish(5)
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

func (tr *trial) stats() Stats { return tr.fanout.Queue(tr.name).Stats() }

// told is how many outages have been told of. The books know a little earlier.
func (tr *trial) told() int {
	tr.t.Helper()
	s := tr.stats()
	for late := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		tr.mu.Lock()
		n := len(tr.failures)
		tr.mu.Unlock()
		if n > 0 || !s.Down || time.Now().After(late) {
			return n
		}
	}
}

// await waits until the books are as wanted, and balance.
func (tr *trial) await(what string, wanted func(Stats) bool) Stats {
	tr.t.Helper()
	for late := time.Now().Add(2 * patience); ; time.Sleep(5 * time.Millisecond) {
		s := tr.stats()
		checkBalance(tr.t, s)
		if wanted(s) {
			return s
		}
		if time.Now().After(late) {
			tr.t.Fatalf("waited in vain for %s: %+v", what, s)
		}
	}
}

func isDown(s Stats) bool { return s.Down }
func isIdle(s Stats) bool { return s.Queued == 0 && !s.Down }

// moreThan is for a number of events delivered since before.
func moreThan(n int, before Stats) func(Stats) bool {
	return func(s Stats) bool { return s.Delivered > before.Delivered+uint64(n) }
}

// end has the queues write out what they hold. Both have been offered all that
// was published, and the one that is well has delivered it.
func (tr *trial) end() Stats {
	tr.t.Helper()
	s := tr.await("the end of the queue", isIdle)
	if err := tr.fanout.Drain(deadline(tr.t)); err != nil {
		tr.t.Error(err)
	}
	if got := uint64(len(tr.well.sequences())); got != tr.published {
		tr.t.Errorf("the output that is well got %d of %d events", got, tr.published)
	}
	if s.Offered != tr.published {
		tr.t.Errorf("%d published: %+v", tr.published, s)
	}
	return s
}

// endWhole is end for an output that has lost nothing.
func (tr *trial) endWhole() int {
	tr.t.Helper()
	if s := tr.end(); s.Delivered != s.Offered {
		tr.t.Errorf("not everything is delivered: %+v", s)
	}
	return int(tr.published)
}
