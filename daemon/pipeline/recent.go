package pipeline

import (
	"errors"
	"sync"
	"time"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

const (
	// FollowersMax is how many there may be at once, followersRoot how many of these places
	// are root's alone, and followersOfUser how many any other user may have.
	FollowersMax    = 16
	followersRoot   = 4
	followersOfUser = 8
	followerRoom    = 1024 // events a follower may lag behind
)

var errFollowers = errors.New("too many followers; end one first")

// Recent remembers the latest events and hands new ones to those who follow.
// It never waits for a follower: a slow one learns from TakeMissed what it missed.
type Recent struct {
	mu        sync.Mutex
	events    []flows.Event // a ring once it is full
	next      int
	followers map[*Follower]bool
}

// Follower receives the events that keep says yes to.
type Follower struct {
	user   int // uid; -1: unknown
	keep   func(*flows.Event) bool
	Events chan flows.Event
	missed uint64 // guarded by Recent.mu
}

// NewRecent remembers nothing yet.
func NewRecent() *Recent { return &Recent{followers: make(map[*Follower]bool)} }

// Add remembers an event, and hands it to those who follow.
func (r *Recent) Add(e *flows.Event) {
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
		case f.Events <- *e:
		default:
			f.missed++
		}
	}
}

// Latest returns the newest of the remembered events that keep says yes to, at
// most limit of them, oldest first.
func (r *Recent) Latest(limit int, keep func(*flows.Event) bool) []flows.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latestLocked(limit, keep)
}

func (r *Recent) latestLocked(limit int, keep func(*flows.Event) bool) []flows.Event {
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

// Follow returns the latest events as Latest does, and a follower of a user that gets
// all that come after those.
func (r *Recent) Follow(user int, limit int, keep func(*flows.Event) bool) ([]flows.Event, *Follower, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.hasRoom(user) {
		return nil, nil, errFollowers
	}
	f := &Follower{user: user, keep: keep, Events: make(chan flows.Event, followerRoom)}
	r.followers[f] = true
	return r.latestLocked(limit, keep), f, nil
}

func (r *Recent) hasRoom(user int) bool {
	ofUser, ofOthers := 0, 0 // others than root
	for f := range r.followers {
		if f.user == user {
			ofUser++
		}
		if f.user != 0 {
			ofOthers++
		}
	}
	return len(r.followers) < FollowersMax &&
		(user == 0 || ofUser < followersOfUser && ofOthers < FollowersMax-followersRoot)
}

// Oldest returns the time of the oldest event that is remembered, if any has been
// forgotten.
func (r *Recent) Oldest() (at time.Time, forgotten bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) < api.RecentMax {
		return time.Time{}, false
	}
	return r.events[r.next].Time, true
}

// Followers is how many follow.
func (r *Recent) Followers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.followers)
}

// Unfollow ends what Follow has begun.
func (r *Recent) Unfollow(f *Follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.followers, f)
}

// TakeMissed returns how many events f missed since it was last asked.
func (r *Recent) TakeMissed(f *Follower) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	missed := f.missed
	f.missed = 0
	return missed
}
