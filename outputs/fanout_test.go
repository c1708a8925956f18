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

// published is an event as the test remembers it; the item itself is gone once
// every queue has let go of it.
type published struct {
	item     *Item
	position uint64
}

// oldestHeld is the position before which no queue holds anything.
func oldestHeld(all []published) (uint64, bool) {
	for _, p := range all {
		if p.position != 0 && p.item.refs.Load() > 0 {
			return p.position, true
		}
	}
	return 0, false
}

// Whatever outputs do, the books balance at every moment, no event is passed by
// the position that is held, and that position never goes back.
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
	var all []published
	var position, last uint64
	for range 3000 {
		i := &Item{pool: pool} // never reused: the test goes on looking at it
		i.refs.Store(1)
		i.Event.Kind, i.Event.Sequence = flows.KindTCP, uint64(len(all)+1)
		if random.IntN(8) > 0 {
			position += 1 + random.Uint64N(300)
			i.Position = position
		}
		all = append(all, published{i, i.Position})
		f.Publish(i)

		switch random.IntN(100) {
		case 0:
			time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
		case 1:
			f.Replace([]*Queue{f.Queue("a"), newQueue("b"), f.Queue("c")})
		}
		last = checkHeld(t, f, all, last)
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

// checkHeld asks first and looks afterwards: what is still held then was held
// when it asked.
func checkHeld(t *testing.T, f *Fanout, all []published, last uint64) uint64 {
	t.Helper()
	held, ok := f.Held()
	if oldest, any := oldestHeld(all); any && (!ok || held > oldest) {
		t.Fatalf("holds %d, %v, but the event at %d is not disposed of", held, ok, oldest)
	}
	if !ok {
		return last
	}
	if held < last {
		t.Fatalf("held position went back from %d to %d", last, held)
	}
	return held
}

func checkEnd(t *testing.T, f *Fanout, all []published) {
	t.Helper()
	stats := f.Stats()
	if len(stats) != 3 {
		t.Fatalf("%d names in %+v", len(stats), stats)
	}
	for _, s := range stats {
		checkBalance(t, s)
		if s.Offered != uint64(len(all)) || s.Queued != 0 {
			t.Errorf("%d published: %+v", len(all), s)
		}
	}
	if p, ok := f.Held(); ok {
		t.Errorf("holds %d at the end", p)
	}
	for _, p := range all {
		if refs := p.item.refs.Load(); refs != 0 {
			t.Fatalf("%d references to the event at %d are left", refs, p.position)
		}
	}
}

// When nothing moves, Held is exactly the oldest event that is left.
func TestHeldIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pool Pool
		good := &probe{name: "good", write: deliver}
		taken := 0
		bad := &probe{name: "bad", write: func(_ context.Context, e []*flows.Event) (Tally, error) {
			if taken++; taken == 1 {
				return Tally{Delivered: 2}, errors.New("stopped short")
			}
			return Tally{}, errors.New("gone")
		}}
		q := NewQueue(bad, 100, nil)
		for n := uint64(1); n <= 5; n++ {
			i := item(&pool, n)
			if n == 3 {
				i.Position = 0
			}
			q.Offer(i)
		}
		f := NewFanout(time.Second, NewQueue(good, 100, nil), q)
		synctest.Wait()
		if p, ok := f.Held(); p != 400 || !ok {
			t.Errorf("holds %d, %v; want 400: 1 and 2 are written, 3 has no position", p, ok)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.Drain(ctx)
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
		f.Publish(item(&pool, 1))
		f.Publish(item(&pool, 2))
		f.Replace([]*Queue{f.Queue("keep"), NewQueue(next, 100, nil)})
		if p, ok := f.Held(); !ok || p != 100 {
			t.Errorf("holds %d, %v while the replaced queue still writes 1", p, ok)
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
