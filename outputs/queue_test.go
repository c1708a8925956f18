package outputs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flatd/flatd/flows"
)

// probe is an Output at whose gate a test stands: each Write asks it what to do.
type probe struct {
	name   string
	write  func(ctx context.Context, events []*flows.Event) (Tally, error)
	ready  chan struct{}
	closed bool

	mu  sync.Mutex
	got []uint64 // sequences of the events disposed of
}

func (p *probe) Name() string           { return p.name }
func (p *probe) Ready() <-chan struct{} { return p.ready }

func (p *probe) Write(ctx context.Context, events []*flows.Event) (Tally, error) {
	t, err := p.write(ctx, events)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range events[:t.Total()] {
		p.got = append(p.got, e.Sequence)
	}
	return t, err
}

func (p *probe) Close() error { p.closed = true; return nil }

func (p *probe) sequences() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func deliver(_ context.Context, events []*flows.Event) (Tally, error) {
	return Tally{Delivered: len(events)}, nil
}

func fail(context.Context, []*flows.Event) (Tally, error) {
	return Tally{}, errors.New("gone")
}

// item makes event n.
func item(p *Pool, n uint64) *Item {
	i := p.Get()
	i.Event.Kind, i.Event.Sequence = flows.KindTCP, n
	return i
}

// report makes event n, which reports as many events as lost.
func report(p *Pool, n uint64) *Item {
	i := item(p, n)
	i.Event.Kind, i.Event.Status = flows.KindStatus, &flows.Status{Action: flows.ActionLoss, Lost: n}
	return i
}

// held makes event n, which the test goes on looking at.
func held(p *Pool, n uint64) *Item {
	i := item(p, n)
	i.Hold()
	return i
}

func checkBalance(t *testing.T, s Stats) {
	t.Helper()
	if sum := s.Delivered + s.Withheld + s.Failed + s.Dropped + s.Queued; sum != s.Offered {
		t.Fatalf("books of %s do not balance: %d accounted for: %+v", s.Name, sum, s)
	}
}

// An item starts empty, whatever it was before.
func TestItemsAreEmpty(t *testing.T) {
	var pool Pool
	for n := range uint64(100) {
		i := pool.Get()
		if i.Event != (flows.Event{}) || i.Lost() {
			t.Fatalf("item with %+v, lost: %t", i.Event, i.Lost())
		}
		i.Event.Sequence = n + 1
		i.lost.Store(true)
		i.Release()
	}
}

func TestQueueDropsOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		out := &probe{name: "probe", write: fail}
		q := NewQueue(out, 4, nil)
		go q.Run(t.Context())
		var all []*Item
		for n := uint64(1); n <= 6; n++ {
			all = append(all, held(&pool, n))
			q.Offer(all[n-1])
			synctest.Wait()
		}
		if s := q.Stats(); s.Dropped != 2 || s.Queued != 4 || !s.Down || s.LastError != "gone" {
			t.Errorf("stats of a full queue: %+v", s)
		}
		for n, i := range all {
			if dropped := n < 2; i.Disposed() != dropped || i.Lost() != dropped {
				t.Errorf("event %d is disposed of: %t, lost: %t", n+1, i.Disposed(), i.Lost())
			}
		}
		out.write = deliver // the queue is waiting to try again
		if err := q.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := out.sequences(); !slices.Equal(got, []uint64{3, 4, 5, 6}) {
			t.Errorf("delivered %v", got)
		}
		if i := all[5]; !i.Disposed() || i.Lost() {
			t.Errorf("what was delivered is disposed of: %t, lost: %t", i.Disposed(), i.Lost())
		}
		if !out.closed {
			t.Error("output not closed")
		}
		checkBalance(t, q.Stats())
	})
}

// A report of lost events costs a full queue none, and is not dropped for what
// comes after it; but reports alone do not fill the memory.
func TestQueueKeepsReportsOfLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		var back atomic.Bool
		out := &probe{name: "probe", write: func(ctx context.Context, e []*flows.Event) (Tally, error) {
			if back.Load() {
				return deliver(ctx, e)
			}
			return fail(ctx, e)
		}}
		q := NewQueue(out, 4, nil)
		go q.Run(t.Context())
		for n := uint64(1); n <= 4; n++ {
			q.Offer(item(&pool, n))
		}
		q.Offer(report(&pool, 5))
		q.Offer(report(&pool, 6))
		if s := q.Stats(); s.Dropped != 0 {
			t.Errorf("reports have cost events: %+v", s)
		}
		for n := uint64(7); n <= 20; n++ {
			q.Offer(item(&pool, n))
			synctest.Wait()
		}
		checkBalance(t, q.Stats())
		back.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		got := out.sequences()
		slices.Sort(got)
		if !slices.Equal(got, []uint64{5, 6, 17, 18, 19, 20}) {
			t.Errorf("delivered %v, want both reports and the latest events", got)
		}

		back.Store(false)
		for n := range uint64(10 * reportsMax) {
			q.Offer(report(&pool, 100+n))
		}
		q.Offer(item(&pool, 1))
		if s := q.Stats(); s.Queued != 4+reportsMax {
			t.Errorf("%d reports are queued", s.Queued)
		}
		checkBalance(t, q.Stats())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q.Drain(ctx)
	})
}

// A batch that is being written is not dropped, whatever is offered meanwhile.
func TestQueueKeepsWhatIsBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		gate := make(chan struct{})
		out := &probe{name: "probe", write: func(_ context.Context, e []*flows.Event) (Tally, error) {
			<-gate
			return Tally{Delivered: len(e)}, nil
		}}
		q := NewQueue(out, 2, nil)
		go q.Run(t.Context())
		first := held(&pool, 1)
		q.Offer(first)
		synctest.Wait()
		for n := uint64(2); n <= 5; n++ {
			q.Offer(item(&pool, n))
			synctest.Wait()
		}
		if first.Disposed() {
			t.Error("event 1 is disposed of while it is being written")
		}
		close(gate)
		q.Drain(t.Context())
		if got := out.sequences(); !slices.Equal(got, []uint64{1, 5}) {
			t.Errorf("delivered %v", got)
		}
	})
}

func TestQueueRetriesTheRestOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		var calls []string
		var changes []error
		out := &probe{name: "probe"}
		out.write = func(_ context.Context, e []*flows.Event) (Tally, error) {
			calls = append(calls, fmt.Sprint(e[0].Sequence, "+", len(e)))
			switch len(calls) {
			case 1:
				return Tally{Delivered: 1, Withheld: 1, Failed: 1}, errors.New("stopped short")
			case 2:
				return Tally{}, errors.New("still")
			}
			return Tally{Delivered: len(e)}, nil
		}
		q := NewQueue(out, 100, func(_ string, err error) { changes = append(changes, err) })
		for n := uint64(1); n <= 5; n++ {
			q.Offer(item(&pool, n))
		}
		go q.Run(t.Context())
		time.Sleep(time.Second) // of the bubble's clock
		synctest.Wait()
		if want := []string{"1+5", "4+2", "4+2"}; !slices.Equal(calls, want) {
			t.Errorf("writes %v, want %v", calls, want)
		}
		if len(changes) != 2 || changes[0] == nil || changes[1] != nil {
			t.Errorf("told of %v; want one failure, then one recovery", changes)
		}
		s := q.Stats()
		if s.Delivered != 3 || s.Withheld != 1 || s.Failed != 1 || s.Down || s.LastError != "still" {
			t.Errorf("stats %+v", s)
		}
		q.Drain(t.Context())
	})
}

// The pauses double from 50 ms to 5 s, and the output can cut one short.
func TestQueuePauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		var tries []time.Duration
		start := time.Now()
		out := &probe{name: "probe", ready: make(chan struct{})}
		out.write = func(context.Context, []*flows.Event) (Tally, error) {
			tries = append(tries, time.Since(start))
			return Tally{}, errors.New("down")
		}
		q := NewQueue(out, 100, nil)
		q.Offer(item(&pool, 1))
		go q.Run(t.Context())
		time.Sleep(20 * time.Second)
		synctest.Wait()
		var pauses []time.Duration
		for n := 1; n < len(tries); n++ {
			pauses = append(pauses, tries[n]-tries[n-1])
		}
		want := []time.Duration{50, 100, 200, 400, 800, 1600, 3200, 5000, 5000}
		for n := range want {
			want[n] *= time.Millisecond
		}
		if !slices.Equal(pauses, want) {
			t.Errorf("pauses %v, want %v", pauses, want)
		}
		if p := q.Progress(); time.Since(p) != 0 {
			t.Errorf("no progress for %v, though it keeps trying", time.Since(p))
		}

		tries = nil
		start = time.Now()
		out.ready <- struct{}{}
		synctest.Wait()
		if !slices.Equal(tries, []time.Duration{0}) {
			t.Errorf("tries after it was ready: %v", tries)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q.Drain(ctx)
		if s := q.Stats(); s.Dropped != 1 || s.Queued != 0 {
			t.Errorf("after Drain: %+v", s)
		}
	})
}

// An output that ignores its context shows up in Progress and cannot hold up
// Drain.
func TestQueueStuckOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		gate := make(chan struct{})
		out := &probe{name: "probe", write: func(context.Context, []*flows.Event) (Tally, error) {
			<-gate
			return Tally{Delivered: 1}, nil
		}}
		q := NewQueue(out, 2, nil)
		q.Offer(item(&pool, 1))
		go q.Run(t.Context())
		synctest.Wait()
		q.Offer(item(&pool, 2))
		time.Sleep(time.Minute)
		if d := time.Since(q.Progress()); d != time.Minute {
			t.Errorf("last progress %v ago, want a minute", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.Drain(ctx); !errors.Is(err, errHangs) {
			t.Errorf("Drain: %v", err)
		}
		if s := q.Stats(); s.Queued != 1 || s.Dropped != 1 {
			t.Errorf("stats %+v", s)
		}
		close(gate)
		synctest.Wait()
		if s := q.Stats(); s.Queued != 0 || s.Delivered != 1 || s.Down {
			t.Errorf("stats after it came loose: %+v", s)
		}
	})
}

func TestQueueCancelledRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		ctx, cancel := context.WithCancel(t.Context())
		out := &probe{name: "probe", write: func(ctx context.Context, _ []*flows.Event) (Tally, error) {
			<-ctx.Done()
			return Tally{}, ctx.Err()
		}}
		var changes int
		q := NewQueue(out, 10, func(string, error) { changes++ })
		q.Offer(item(&pool, 1))
		result := make(chan error)
		go func() { result <- q.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
		q.Offer(item(&pool, 2))
		if s := q.Stats(); s.Dropped != 2 || s.Down || changes != 0 {
			t.Errorf("stats %+v, %d changes", s, changes)
		}
	})
}

func TestWritesHaveTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		out := &probe{name: "probe", write: func(ctx context.Context, e []*flows.Event) (Tally, error) {
			until, ok := ctx.Deadline()
			if d := time.Until(until); !ok || d < WriteTimeout || d > 2*WriteTimeout {
				t.Errorf("a write has %v", d)
			}
			return deliver(ctx, e)
		}}
		q := NewQueue(out, 10, nil)
		go q.Run(t.Context())
		for n := range uint64(50) {
			q.Offer(item(&pool, n+1))
			time.Sleep(700 * time.Millisecond)
		}
		q.Drain(t.Context())
	})
}

func TestPublishAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("sync.Pool forgets on purpose under the race detector")
	}
	var pool Pool
	written := make(chan struct{})
	sink := outputFunc(func(ctx context.Context, e []*flows.Event) (Tally, error) {
		written <- struct{}{}
		return Tally{Delivered: len(e)}, nil
	})
	f := NewFanout(time.Second, NewQueue(sink, 1024, nil))
	var n uint64
	allocs := testing.AllocsPerRun(2000, func() {
		n++
		f.Publish(item(&pool, n))
		<-written
	})
	if allocs != 0 {
		t.Errorf("%v allocations per event", allocs)
	}
	if err := f.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// outputFunc is the smallest Output.
type outputFunc func(context.Context, []*flows.Event) (Tally, error)

func (outputFunc) Name() string { return "func" }
func (f outputFunc) Write(ctx context.Context, e []*flows.Event) (Tally, error) {
	return f(ctx, e)
}
func (outputFunc) Close() error { return nil }

func BenchmarkPublish(b *testing.B) {
	for _, queues := range []int{1, 3} {
		b.Run(fmt.Sprintf("queues=%d", queues), func(b *testing.B) {
			var pool Pool
			f := NewFanout(time.Second)
			var all []*Queue
			for range queues {
				all = append(all, NewQueue(outputFunc(deliver), 8192, nil))
			}
			f.Replace(all)
			b.ReportAllocs()
			var n uint64
			for b.Loop() {
				n++
				f.Publish(item(&pool, n))
			}
			if err := f.Drain(b.Context()); err != nil {
				b.Fatal(err)
			}
			s := f.Stats()[0]
			b.ReportMetric(100*float64(s.Dropped)/float64(s.Offered), "%dropped")
		})
	}
}
