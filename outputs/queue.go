package outputs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/flatd/flatd/flows"
)

// WriteTimeout is how long an output may take over one batch. It gets at least
// this and less than twice as much, since writes share a context.
const WriteTimeout = 5 * time.Second

const (
	batchMax = 256
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
	// reportsMax is how many reports of lost events a queue takes beyond its
	// capacity, so that a report costs no event.
	reportsMax = 64
	// hangTime is what a cancelled Write has for its return.
	hangTime = 250 * time.Millisecond
)

// Readier is an Output that can tell when trying again is worth while: the
// channel delivers a value once a lost connection is back.
type Readier interface {
	Ready() <-chan struct{}
}

// Stats are the books of one queue. They balance at any moment:
//
//	Offered = Delivered + Withheld + Failed + Dropped + Queued
type Stats struct {
	Name      string
	Offered   uint64 // events published
	Delivered uint64 // the receiver has them
	Withheld  uint64 // left out on purpose: budget, profile
	Failed    uint64 // can never be delivered
	Dropped   uint64 // pushed out by newer ones, or left over at the end
	Queued    uint64 // waiting or being written

	Down      bool      // the last write failed
	LastError string    // of the latest failure or failed event, also after it has passed
	Since     time.Time // of the last change of Down; zero if there was none
}

// add counts the events of an earlier queue of the same name.
func (s *Stats) add(old Stats) {
	s.Offered += old.Offered
	s.Delivered += old.Delivered
	s.Withheld += old.Withheld
	s.Failed += old.Failed
	s.Dropped += old.Dropped
	s.Queued += old.Queued
}

// Queue stands between the pipeline and one output. Offering never blocks: a
// full queue drops its oldest event, since fresh news is worth more, but keeps
// the reports of lost events. A failed write is tried again, after a pause that
// grows to five seconds.
type Queue struct {
	out      Output
	onChange func(name string, err error)
	capacity int

	wake    chan struct{} // holds a token once the backlog is no longer empty
	closing chan struct{} // closed by Drain: write out what is there and end
	done    chan struct{} // closed when Run has ended
	result  error         // what Run returned, once done
	life    context.Context
	end     context.CancelFunc

	// For the goroutine of Run alone.
	events []*flows.Event // those of batch, as Write wants them
	ready  <-chan struct{}
	hurry  <-chan struct{} // closing, until it has cut one pause short
	retry  time.Duration
	ctx    context.Context // the one the writes share
	cancel context.CancelFunc

	mu      sync.Mutex
	backlog backlog
	batch   []*Item   // in a Write now
	began   time.Time // when that Write began
	closed  bool
	stats   Stats
}

// NewQueue makes a queue of at most capacity events (at least 2) for out, which
// it owns from now on. onChange, which may be nil, is told when out starts to
// fail and, with a nil error, when it works again; it is called by the
// goroutine of Run and must not block.
func NewQueue(out Output, capacity int, onChange func(name string, err error)) *Queue {
	// Batches of at most half the capacity mean that a full queue always has
	// an event to drop that is not being written.
	capacity = max(capacity, 2)
	batch := min(batchMax, capacity/2)
	if onChange == nil {
		onChange = func(string, error) {}
	}
	q := &Queue{
		out:      out,
		onChange: onChange,
		capacity: capacity,
		wake:     make(chan struct{}, 1),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		events:   make([]*flows.Event, 0, batch),
		retry:    retryMin,
		backlog:  newBacklog(capacity + reportsMax),
		batch:    make([]*Item, 0, batch),
		stats:    Stats{Name: out.Name()},
	}
	q.hurry = q.closing
	q.life, q.end = context.WithCancel(context.Background())
	if r, ok := out.(Readier); ok {
		q.ready = r.Ready()
	}
	return q
}

// Name is the output's.
func (q *Queue) Name() string { return q.out.Name() }

// Offer adds an event and never blocks. It takes over one of the caller's
// references.
func (q *Queue) Offer(i *Item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Offered++
	if q.closed {
		q.drop(i)
		return
	}
	room := q.capacity
	if i.reportsLoss() {
		room += reportsMax
	}
	if q.backlog.len()+len(q.batch) >= room {
		q.drop(q.oldest())
	}
	q.backlog.push(i)
	if q.backlog.len() == 1 {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// oldest takes the oldest event of the backlog, which is not empty. A report of
// lost events becomes the newest instead, unless there is nothing else.
func (q *Queue) oldest() *Item {
	for range q.backlog.len() {
		i := q.backlog.pop()
		if !i.reportsLoss() {
			return i
		}
		q.backlog.push(i)
	}
	return q.backlog.pop()
}

func (q *Queue) drop(i *Item) {
	q.stats.Dropped++
	i.lost.Store(true)
	i.Release()
}

// Run writes events out until Drain has ended it or ctx is cancelled; then it
// drops what is left and closes the output, whose error it returns. Call it
// once.
func (q *Queue) Run(ctx context.Context) error {
	defer close(q.done)
	stop := context.AfterFunc(ctx, q.end)
	defer stop()
	for q.next() {
		if err := q.write(); err != nil {
			q.pause()
		}
	}
	q.end()
	q.dropBacklog()
	if err := q.out.Close(); err != nil {
		q.result = fmt.Errorf("close %s: %w", q.Name(), err)
	}
	return q.result
}

// next waits for events and takes the oldest ones as the batch to write. It is
// false when there will be none.
func (q *Queue) next() bool {
	for q.life.Err() == nil {
		taken, closed := q.take()
		if taken {
			return true
		}
		if closed {
			return false
		}
		select {
		case <-q.wake:
		case <-q.closing:
		case <-q.life.Done():
		}
	}
	return false
}

func (q *Queue) take() (taken, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events = q.events[:0]
	for len(q.batch) < cap(q.batch) && q.backlog.len() > 0 {
		i := q.backlog.pop()
		q.batch = append(q.batch, i)
		q.events = append(q.events, &i.Event)
	}
	q.began = time.Now()
	return len(q.batch) > 0, q.closed
}

// write has the output dispose of the batch and puts the rest back. The error
// is the output's, or nil if the queue is at its end anyway.
func (q *Queue) write() error {
	tally, err := q.out.Write(q.writeContext(), q.events)
	if err == nil && tally.Total() < len(q.events) {
		err = io.ErrShortWrite
	}
	if err != nil && q.life.Err() != nil {
		q.settle(tally)
		return nil
	}
	if tally.Total() > 0 {
		q.retry = retryMin
	}
	if q.settle(tally); q.note(err) {
		q.onChange(q.Name(), err)
	}
	return err
}

// writeContext is good for WriteTimeout at least. A context makes garbage, so
// one serves all the writes of a few seconds.
func (q *Queue) writeContext() context.Context {
	if q.ctx != nil {
		if until, _ := q.ctx.Deadline(); time.Until(until) >= WriteTimeout {
			return q.ctx
		}
		q.cancel()
	}
	q.ctx, q.cancel = context.WithTimeout(q.life, 2*WriteTimeout)
	return q.ctx
}

// settle enters a Write into the books and ends it.
func (q *Queue) settle(t Tally) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Delivered += uint64(t.Delivered)
	q.stats.Withheld += uint64(t.Withheld)
	q.stats.Failed += uint64(t.Failed)
	if t.Why != nil {
		q.stats.LastError = t.Why.Error()
	}
	n := t.Total()
	q.backlog.unpop(q.batch[n:])
	for _, i := range q.batch[:n] {
		i.Release()
	}
	clear(q.batch)
	q.batch = q.batch[:0]
}

// note remembers how the last write went and reports whether that is news.
func (q *Queue) note(err error) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		q.stats.LastError = err.Error()
	}
	if q.stats.Down == (err != nil) {
		return false
	}
	q.stats.Down, q.stats.Since = err != nil, time.Now()
	return true
}

// pause waits before the next try: until the time is up, the output is ready
// again or the queue is to end, which is worth one try at once.
func (q *Queue) pause() {
	timer := time.NewTimer(q.retry)
	defer timer.Stop()
	q.retry = min(2*q.retry, retryMax)
	select {
	case <-timer.C:
	case <-q.ready:
		q.retry = retryMin
	case <-q.hurry:
		q.hurry, q.retry = nil, retryMin
	case <-q.life.Done():
	}
}

func (q *Queue) dropBacklog() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for i := q.backlog.pop(); i != nil; i = q.backlog.pop() {
		q.drop(i)
	}
}

// Drain refuses further events, waits until those that are queued are written
// or ctx ends, and then drops the rest. The output is closed when it returns,
// and its error is Run's, unless a write hangs: what that write holds stays
// Queued, because nobody knows whether it arrived. Run must have been started.
func (q *Queue) Drain(ctx context.Context) error {
	q.close()
	select {
	case <-q.done:
		return q.result
	case <-ctx.Done():
	}
	q.end()
	q.dropBacklog()
	select {
	case <-q.done:
		return q.result
	case <-time.After(hangTime):
		return fmt.Errorf("drain %s: %w", q.Name(), errHangs)
	}
}

var errHangs = errors.New("its last write does not return")

func (q *Queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.closing)
	}
}

// Stats returns the books as they are at one moment.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	s.Queued = uint64(q.backlog.len() + len(q.batch))
	return s
}

// Crowded reports whether less than half of the room is left, though the output
// works: who can wait a little, may.
func (q *Queue) Crowded() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.stats.Down && !q.closed && q.backlog.len()+len(q.batch) > q.capacity/2
}

// Progress is when the queue was last seen moving: now, unless a Write is under
// way, then its start. One that is idle, or tries a broken output again and
// again, moves; one whose output is stuck for much longer than twice
// WriteTimeout does not.
func (q *Queue) Progress() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.batch) > 0 {
		return q.began
	}
	return time.Now()
}
