package outputs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flatd/flatd/flows"
)

// moody is an output with a temper: slow, failing, stopping short, all at
// random.
func moody(name string, random *rand.Rand) *probe {
	delays := []time.Duration{0, 0, time.Millisecond, 100 * time.Millisecond, 3 * time.Second, time.Minute}
	write := func(ctx context.Context, events []*flows.Event) (Tally, error) {
		select {
		case <-time.After(delays[random.IntN(len(delays))]):
		case <-ctx.Done():
			return Tally{}, ctx.Err()
		}
		var t Tally
		for range events {
			switch random.IntN(12) {
			case 0:
				t.Withheld++
			case 1:
				t.Failed++
			case 2:
				if random.IntN(2) == 0 {
					return t, errors.New("mood")
				}
				t.Delivered++
			default:
				t.Delivered++
			}
		}
		return t, nil
	}
	return &probe{name: name, write: write}
}

// Whatever outputs do, the books balance at every moment, and in the end every
// event is disposed of; it is lost if a queue has dropped it.
func TestBooksBalance(t *testing.T) {
	for seed := range uint64(15) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { checkBooks(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func checkBooks(t *testing.T, random *rand.Rand) {
	newQueue := func(name string) *Queue {
		out := moody(name, rand.New(rand.NewPCG(random.Uint64(), 2)))
		return NewQueue(out, 2+random.IntN(600), nil)
	}
	f := NewFanout(10*time.Second, newQueue("a"), newQueue("b"), newQueue("c"))
	pool := new(Pool)
	var all []*Item
	for range 3000 {
		i := held(pool, uint64(len(all)+1))
		all = append(all, i)
		f.Publish(i)

		switch random.IntN(100) {
		case 0:
			time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
		case 1:
			f.Replace([]*Queue{f.Queue("a"), newQueue("b"), f.Queue("c")})
		}
		for _, s := range f.Stats() {
			checkBalance(t, s)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := f.Drain(ctx); err != nil {
		t.Error(err)
	}
	synctest.Wait()
	checkEnd(t, f, all)
}

func checkEnd(t *testing.T, f *Fanout, all []*Item) {
	t.Helper()
	stats := f.Stats()
	if len(stats) != 3 {
		t.Fatalf("%d names in %+v", len(stats), stats)
	}
	var most, dropped, lost uint64
	for _, s := range stats {
		checkBalance(t, s)
		if s.Offered != uint64(len(all)) || s.Queued != 0 {
			t.Errorf("%d published: %+v", len(all), s)
		}
		most, dropped = max(most, s.Dropped), dropped+s.Dropped
	}
	for n, i := range all {
		if !i.Disposed() {
			t.Fatalf("%d references to event %d are left", i.refs.Load()-1, n+1)
		}
		if i.Lost() {
			lost++
		}
	}
	if lost < most || lost > dropped {
		t.Errorf("%d events are lost; one queue has dropped %d, all %d", lost, most, dropped)
	}
}

// An event is disposed of once every queue has, and not before.
func TestDisposedByEveryQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		taken := 0
		bad := &probe{name: "bad", write: func(context.Context, []*flows.Event) (Tally, error) {
			if taken++; taken == 1 {
				return Tally{Delivered: 2}, errors.New("stopped short")
			}
			return Tally{}, errors.New("gone")
		}}
		good := &probe{name: "good", write: deliver}
		gate := make(chan struct{})
		slow := &probe{name: "slow", write: func(ctx context.Context, e []*flows.Event) (Tally, error) {
			<-gate
			return deliver(ctx, e)
		}}
		q, late := NewQueue(bad, 100, nil), NewQueue(slow, 100, nil)
		f := NewFanout(time.Second, NewQueue(good, 100, nil))
		f.mu.Lock()
		f.queues = append(f.queues, q, late)
		f.mu.Unlock()
		var all []*Item
		for n := uint64(1); n <= 5; n++ {
			i := held(&pool, n)
			all = append(all, i)
			f.Publish(i)
		}
		disposed := func(what string, want int) {
			t.Helper()
			synctest.Wait()
			for n, i := range all {
				if i.Disposed() != (n < want) || i.Lost() {
					t.Errorf("%s: event %d is disposed of: %t, lost: %t", what, n+1, i.Disposed(), i.Lost())
				}
			}
		}
		go q.Run(t.Context())
		go late.Run(t.Context())
		disposed("one is slow", 0)
		close(gate)
		disposed("one fails", 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.Drain(ctx)
		if last := all[4]; !last.Disposed() || !last.Lost() {
			t.Error("what was left over is not lost")
		}
	})
}

func TestReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		keep := &probe{name: "keep", write: deliver}
		old := &probe{name: "swap", write: func(ctx context.Context, e []*flows.Event) (Tally, error) {
			time.Sleep(time.Second)
			return deliver(ctx, e)
		}}
		next := &probe{name: "swap", write: deliver}
		f := NewFanout(10*time.Second, NewQueue(keep, 100, nil), NewQueue(old, 100, nil))
		first := held(&pool, 1)
		f.Publish(first)
		f.Publish(item(&pool, 2))
		f.Replace([]*Queue{f.Queue("keep"), NewQueue(next, 100, nil)})
		if first.Disposed() {
			t.Error("event 1 is disposed of while the replaced queue still writes it")
		}
		f.Publish(item(&pool, 3))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !old.closed || keep.closed {
			t.Errorf("closed: old %v, kept %v", old.closed, keep.closed)
		}
		if !slices.Equal(old.sequences(), []uint64{1, 2}) || !slices.Equal(next.sequences(), []uint64{3}) {
			t.Errorf("old got %v, new got %v", old.sequences(), next.sequences())
		}
		for _, s := range f.Stats() {
			checkBalance(t, s)
			if s.Offered != 3 || s.Delivered != 3 {
				t.Errorf("the books do not go on: %+v", s)
			}
		}
		f.Drain(t.Context())
	})
}
