// Package cgroups knows the control groups (version 2) of this host by the id
// that the kernel's programs report, and by that whose a socket was.
//
// The id of a cgroup is the inode number of its directory, and is not given out
// again before the next boot (kernfs_new_node in Linux). So what has once been
// seen stays true, also after the cgroup is gone. There is no way from an id to
// its directory without CAP_DAC_READ_SEARCH, which would let the daemon read
// every file of the host. The tree is followed instead: inotify(7) reports
// every directory that is made or removed.
//
// The package logs nothing; Problem says what is wrong.
package cgroups

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flatd/flatd/flows"
)

// What a tree keeps, about half a kilobyte each; the kernel adds a kilobyte for
// the watch on a cgroup that is there.
const (
	liveMax = 8192 // cgroups that are there; what is beyond is not known
	goneMax = 4096 // cgroups that were there
	missMax = 4096 // ids that are not known; then each is looked for again
)

// A tree that cannot be followed is read anew when an id is missed, but not
// more often than this, nor for more than one part in rescanShare of the time.
const (
	rescanPause = time.Second
	rescanShare = 50
)

// Tree is the cgroups of this host. It is safe for concurrent use.
type Tree struct {
	// owners by id; nil for an id that was looked for in vain.
	mu     sync.RWMutex
	owners map[uint64]*flows.Owner

	stale    chan struct{} // holds a token when the tree is to be read anew
	scanning atomic.Bool

	// work is held by who reads the file system, and guards what follows. Who
	// holds it alone changes owners.
	work      sync.Mutex
	find      func() (mountPoint string, err error)
	root      string     // where the hierarchy is mounted
	top       *directory // nil: it is not
	notify    *inotify   // nil: changes go unnoticed
	blind     error      // why that is so
	byID      map[uint64]*directory
	byWatch   map[int32]*directory
	gone      []uint64 // ids, a ring once it is full
	next      int      // the oldest in gone
	unknown   int      // ids without an owner
	liveLimit int
	goneLimit int
	problem   error // why cgroups may be missing; nil if none is
}

// directory is a cgroup that is there.
type directory struct {
	id       uint64
	path     string // below the root: "/" for the root itself
	watch    int32  // noWatch: what happens in it goes unnoticed
	children map[string]*directory
}

const noWatch = -1

// New reads the tree as it is and begins to follow it, which takes some tens of
// microseconds for each cgroup. It does so as well as it can: see Problem.
func New() *Tree {
	t := newTree(findMount)
	t.rescan()
	return t
}

func newTree(find func() (string, error)) *Tree {
	t := &Tree{
		owners: make(map[uint64]*flows.Owner), stale: make(chan struct{}, 1), find: find,
		byID: make(map[uint64]*directory), byWatch: make(map[int32]*directory),
		liveLimit: liveMax, goneLimit: goneMax,
	}
	t.notify, t.blind = newInotify()
	return t
}

// Close ends what New began. The tree must not be used any more.
func (t *Tree) Close() error {
	t.work.Lock()
	defer t.work.Unlock()
	return t.notify.close()
}

// Run follows the tree until ctx ends.
func (t *Tree) Run(ctx context.Context) error {
	var following sync.WaitGroup
	following.Go(t.follow)
	defer following.Wait()
	defer t.notify.wake()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.stale:
		}
		began := time.Now()
		t.rescan()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(rescanPause, rescanShare*time.Since(began))):
		}
	}
}

// follow learns of changes as they happen. Lookup could do that by itself, but
// might come too late for a cgroup that is soon removed.
func (t *Tree) follow() {
	t.notify.await(func() {
		t.work.Lock()
		defer t.work.Unlock()
		t.catchUp()
	})
}

// Lookup returns whose the cgroup with this id is, or nil if that is not known.
// A known id costs the reading of a map.
//
// An id that is not known may be that of a cgroup so new that nobody has looked
// at it yet. But the kernel reports a cgroup before anybody can be in it, and
// so before it reports their sockets: it is enough to take in what it has reported
// by now. What is then not known was gone too soon or is not below our root.
// While the tree is being read anew Lookup does not wait for that.
func (t *Tree) Lookup(id uint64) *flows.Owner {
	if id == 0 {
		return nil
	}
	t.mu.RLock()
	owner, known := t.owners[id]
	t.mu.RUnlock()
	if known || t.scanning.Load() {
		return owner
	}
	return t.lookAgain(id)
}

func (t *Tree) lookAgain(id uint64) *flows.Owner {
	t.work.Lock()
	defer t.work.Unlock()
	t.catchUp()
	owner, known := t.owners[id]
	if known {
		return owner
	}
	if t.unknown >= missMax {
		t.forgetUnknown()
	}
	t.unknown++
	t.set(id, nil)
	if t.problem != nil {
		t.wantRescan()
	}
	return nil
}

// Problem says why units may be missing from events, or is "".
func (t *Tree) Problem() string {
	t.work.Lock()
	defer t.work.Unlock()
	if t.problem == nil {
		return ""
	}
	return fmt.Sprintf("cgroups: %v; events may lack their unit", t.problem)
}

// Live returns how many cgroups are there and known.
func (t *Tree) Live() int {
	t.work.Lock()
	defer t.work.Unlock()
	return len(t.byID)
}

// wantRescan has Run read the tree anew.
func (t *Tree) wantRescan() {
	select {
	case t.stale <- struct{}{}:
	default:
	}
}

func (t *Tree) set(id uint64, owner *flows.Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owners[id] = owner
}

// forgetLater keeps an id that has no directory until there are too many.
func (t *Tree) forgetLater(id uint64) {
	if len(t.gone) < t.goneLimit {
		t.gone = append(t.gone, id)
		return
	}
	oldest := t.gone[t.next]
	t.gone[t.next] = id
	t.next = (t.next + 1) % t.goneLimit
	if t.byID[oldest] != nil {
		return // it was not gone after all
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.owners, oldest)
}
