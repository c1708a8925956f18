package cgroups

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/flows"
)

var errTooMany = errors.New("too many cgroups")

// rescan reads the whole tree, wherever it is mounted by now.
func (t *Tree) rescan() {
	t.work.Lock()
	defer t.work.Unlock()
	t.scanning.Store(true)
	defer t.scanning.Store(false)

	t.problem = t.blind
	t.catchUp() // lest it be taken for news below
	t.forgetUnknown()
	if err := t.openRoot(); err != nil {
		t.problem = err
		return
	}
	t.look(t.top)
}

// forgetUnknown gives ids that were looked for in vain another chance.
func (t *Tree) forgetUnknown() {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.owners, func(_ uint64, owner *flows.Owner) bool { return owner == nil })
	t.unknown = 0
}

// openRoot finds the root. Its mount may have moved while the tree is the same.
func (t *Tree) openRoot() error {
	root, err := t.find()
	if err != nil {
		t.leaveRoot()
		return err
	}
	id, err := directoryID(root)
	if err != nil {
		t.leaveRoot()
		return fmt.Errorf("root %s: %w", root, err)
	}
	t.root = root
	if t.top == nil || t.top.id != id {
		t.leaveRoot()
		t.top = t.add(id, "/")
	}
	return nil
}

func (t *Tree) leaveRoot() {
	if t.top != nil {
		t.leave(t.top)
		t.top = nil
	}
}

// look brings what is known of d and of all below it up to date. The watch
// comes before the reading, so that no directory appears in between unnoticed.
func (t *Tree) look(d *directory) {
	if d.watch == noWatch {
		t.watch(d)
	}
	names, err := subdirectories(t.root + d.path)
	if err != nil {
		return // it has gone, which its parent's watch reports
	}
	for name, child := range d.children {
		if !names[name] {
			delete(d.children, name)
			t.leave(child)
		}
	}
	for name := range names {
		t.enter(d, name)
	}
}

// enter takes in a directory and all below it.
func (t *Tree) enter(parent *directory, name string) {
	below := path.Join(parent.path, name)
	id, err := directoryID(t.root + below)
	if err != nil {
		t.checkRoot()
		return
	}
	child := parent.children[name]
	if child != nil && child.id != id {
		t.leave(child)
		child = nil
	}
	if child == nil {
		if child = t.add(id, below); child == nil {
			return
		}
		if parent.children == nil {
			parent.children = make(map[string]*directory)
		}
		parent.children[name] = child
	}
	t.look(child)
}

// add makes a cgroup known, unless there are too many.
func (t *Tree) add(id uint64, below string) *directory {
	if len(t.byID) >= t.liveLimit {
		t.problem = fmt.Errorf("%w: more than %d", errTooMany, t.liveLimit)
		return nil
	}
	d := &directory{id: id, path: below, watch: noWatch}
	t.byID[id] = d
	t.set(id, flows.OwnerOf(below))
	return d
}

// leave ends the watch on a cgroup and those below it, which stay known for a
// while.
func (t *Tree) leave(d *directory) {
	for _, child := range d.children {
		t.leave(child)
	}
	if d.watch != noWatch {
		delete(t.byWatch, d.watch)
		t.notify.remove(d.watch)
	}
	delete(t.byID, d.id)
	t.forgetLater(d.id)
}

// watch has the kernel report what happens in d.
func (t *Tree) watch(d *directory) {
	if t.notify == nil {
		return
	}
	watch, err := t.notify.add(t.root + d.path)
	switch {
	case errors.Is(err, unix.ENOSPC):
		t.problem = fmt.Errorf("too few inotify watches: raise the sysctl fs.inotify.max_user_watches: %w", err)
	case err == nil:
		d.watch = watch
		t.byWatch[watch] = d
	}
}

// catchUp takes in what has happened so far.
func (t *Tree) catchUp() {
	t.notify.read(func(watch int32, mask uint32, name string) {
		d := t.byWatch[watch]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			t.problem = errors.New("changes came too fast")
			t.wantRescan()
		case d == nil || mask&unix.IN_ISDIR == 0:
		case mask&unix.IN_CREATE != 0:
			t.enter(d, name)
		case mask&unix.IN_DELETE != 0 && d.children[name] != nil:
			t.leave(d.children[name])
			delete(d.children, name)
		}
	})
}

// checkRoot is for when something is not where it should be: if the root has
// gone too, the hierarchy was unmounted there.
func (t *Tree) checkRoot() {
	if id, err := directoryID(t.root); err != nil || t.top == nil || id != t.top.id {
		t.problem = fmt.Errorf("no longer mounted on %s", t.root)
		t.wantRescan()
	}
}

// directoryID is the id of a cgroup: on kernels of 64 bits its inode number. A
// kernel of 32 bits shows only half of it, and no cgroup is known there.
func directoryID(dir string) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Lstat(dir, &s); err != nil {
		return 0, err
	}
	return uint64(s.Ino), nil
}

func subdirectories(dir string) (map[string]bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	names := make(map[string]bool)
	for _, e := range entries {
		if e.IsDir() {
			names[e.Name()] = true
		}
	}
	return names, err
}
