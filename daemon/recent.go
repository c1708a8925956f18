package daemon

import (
	"errors"
	"sync"
	"time"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

const (
	followersMax = 16
	followerRoom = 1024 // events a follower may lag behind
)

var errFollowers = errors.New("too many followers; end one first")

// recent remembers the latest events and hands new ones to those who follow.
// It never waits for a follower: one that is slow is told what it missed.
type recent struct {
	mu        sync.Mutex
	events    []flows.Event // a ring once it is full
	next      int
	followers map[*follower]bool
}

// follower receives the events that keep says yes to.
type follower struct {
	keep   func(*flows.Event) bool
	events chan flows.Event
	missed uint64 // guarded by recent.mu
}

func newRecent() *recent { return &recent{followers: make(map[*follower]bool)} }

func (r *recent) add(e *flows.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) < api.RecentMax {
		r.events = append(r.events, *e)
	} else {
		r.events[r.next] = *e
		r.next = (r.next + 1) % api.RecentMax
	}
	for f := range r.followers {
		if !f.keep(e) {
			continue
		}
		select {
		case f.events <- *e:
		default:
			f.missed++
		}
	}
}

// latest returns the newest of the remembered events that keep says yes to, at
// most limit of them, oldest first.
func (r *recent) latest(limit int, keep func(*flows.Event) bool) []flows.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latestLocked(limit, keep)
}

func (r *recent) latestLocked(limit int, keep func(*flows.Event) bool) []flows.Event {
	var found []flows.Event
	for i := range r.events {
		e := &r.events[(r.next+i)%len(r.events)]
		if keep(e) {
			found = append(found, *e)
		}
	}
	if len(found) > limit {
		found = found[len(found)-limit:]
	}
	return found
}

// follow returns the latest events as latest does, and a follower that gets
// all that come after those.
func (r *recent) follow(limit int, keep func(*flows.Event) bool) ([]flows.Event, *follower, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.followers) == followersMax {
		return nil, nil, errFollowers
	}
	f := &follower{keep: keep, events: make(chan flows.Event, followerRoom)}
	r.followers[f] = true
	return r.latestLocked(limit, keep), f, nil
}

// oldest returns the time of the oldest event that is remembered, if any has been
// forgotten.
func (r *recent) oldest() (at time.Time, forgotten bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) < api.RecentMax {
		return time.Time{}, false
	}
	return r.events[r.next].Time, true
}

func (r *recent) unfollow(f *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.followers, f)
}

// takeMissed returns how many events f missed since it was last asked.
func (r *recent) takeMissed(f *follower) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	missed := f.missed
	f.missed = 0
	return missed
}
