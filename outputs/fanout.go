package outputs

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Fanout hands every event to every queue and runs the queues. The set of
// queues can be replaced while it works, without losing an event.
type Fanout struct {
	// leave bounds how long a queue that is replaced may still write.
	leave time.Duration

	mu      sync.Mutex
	queues  []*Queue
	leaving []*Queue // replaced, still writing
	past    []Stats  // books of those that have left, one for each name
}

// NewFanout starts the queues. One that is replaced later has leave for
// writing out what it holds.
func NewFanout(leave time.Duration, queues ...*Queue) *Fanout {
	f := &Fanout{leave: leave}
	f.Replace(queues)
	return f
}

// Publish offers an event to each queue and never blocks. It takes over the
// caller's reference.
func (f *Fanout) Publish(i *Item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i.retain(len(f.queues))
	for _, q := range f.queues {
		q.Offer(i)
	}
	i.Release()
}

// Queue finds the queue of that name, or nil.
func (f *Fanout) Queue(name string) *Queue {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.IndexFunc(f.queues, func(q *Queue) bool { return q.Name() == name }); i >= 0 {
		return f.queues[i]
	}
	return nil
}

// Replace makes queues the set. Those that are in it already go on as they
// are, new ones are started, and those that are no longer in it write out what
// they hold in the background.
func (f *Fanout) Replace(queues []*Queue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.queues
	f.queues = slices.Clone(queues)
	for _, q := range f.queues {
		if !slices.Contains(old, q) {
			go q.Run(context.Background()) // ended by Drain, which has its error
		}
	}
	for _, q := range old {
		if !slices.Contains(f.queues, q) {
			f.leaving = append(f.leaving, q)
			go f.retire(q)
		}
	}
}

// retire lets a queue write out and keeps its books. One that hangs stays among
// the leaving, where Stats goes on to include it.
func (f *Fanout) retire(q *Queue) {
	ctx, cancel := context.WithTimeout(context.Background(), f.leave)
	defer cancel()
	if errors.Is(q.Drain(ctx), errHangs) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaving = slices.DeleteFunc(f.leaving, func(l *Queue) bool { return l == q })
	f.past = addStats(f.past, q.Stats())
}

// Stats returns the books by name, in the order of the queues. They go on when
// a queue is replaced by one of the same name, so that they balance over a
// reload; names that are no longer in the set come last.
func (f *Fanout) Stats() []Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Stats
	for _, q := range f.queues {
		all = addStats(all, q.Stats())
	}
	for _, q := range f.leaving {
		all = addStats(all, q.Stats())
	}
	for _, s := range f.past {
		all = addStats(all, s)
	}
	return all
}

// addStats adds the books of one queue to those of its name.
func addStats(all []Stats, s Stats) []Stats {
	if n := slices.IndexFunc(all, func(of Stats) bool { return of.Name == s.Name }); n >= 0 {
		all[n].add(s)
		return all
	}
	return append(all, s)
}

// Progress is when the most stuck of the queues was last seen moving; see
// Queue.Progress.
func (f *Fanout) Progress() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	oldest := time.Now()
	for _, q := range f.queues {
		if p := q.Progress(); p.Before(oldest) {
			oldest = p
		}
	}
	return oldest
}

// Busy reports whether some queue holds events.
func (f *Fanout) Busy() bool {
	return slices.ContainsFunc(f.Stats(), func(s Stats) bool { return s.Queued > 0 })
}

// Crowded reports whether some queue is; see Queue.Crowded.
func (f *Fanout) Crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.queues, (*Queue).Crowded)
}

// Down reports whether every queue that holds events has an output that fails.
func (f *Fanout) Down() bool {
	return !slices.ContainsFunc(f.Stats(), func(s Stats) bool { return s.Queued > 0 && !s.Down })
}

// Drain ends every queue as Queue.Drain does, all of them within ctx.
func (f *Fanout) Drain(ctx context.Context) error {
	f.mu.Lock()
	queues := slices.Concat(f.queues, f.leaving)
	f.mu.Unlock()
	errs := make([]error, len(queues))
	var drains sync.WaitGroup
	for n, q := range queues {
		drains.Go(func() { errs[n] = q.Drain(ctx) })
	}
	drains.Wait()
	return errors.Join(errs...)
}
