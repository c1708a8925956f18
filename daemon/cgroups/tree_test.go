package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// patience bounds every wait for something that takes milliseconds.
const patience = 30 * time.Second

// hierarchy is a cgroup in which a test makes those of its own, the root of all
// for it: the rest of the machine goes on.
type hierarchy struct {
	t     *testing.T
	mount string
	base  string // below mount
	root  string
}

func mount(t *testing.T) *hierarchy {
	t.Helper()
	h := &hierarchy{t: t, mount: testbed.Cgroups(t), base: fmt.Sprintf("/flatdtest%d.slice", os.Getpid())}
	h.root = h.mount + h.base
	if err := os.Mkdir(h.root, 0o755); err != nil {
		testbed.Missing(t, "make a cgroup: %v", err)
	}
	t.Cleanup(func() { h.clear(h.root) })
	return h
}

// clear removes a cgroup and all below it.
func (h *hierarchy) clear(dir string) {
	below, _ := subdirectories(dir)
	for name := range below {
		h.clear(filepath.Join(dir, name))
	}
	if err := os.Remove(dir); err != nil {
		h.t.Error(err)
	}
}

// find is where a tree looks for it.
func (h *hierarchy) find() (string, error) { return h.root, nil }

// make makes a cgroup, and those above it, and returns its id.
func (h *hierarchy) make(name string) uint64 {
	h.t.Helper()
	dir := filepath.Join(h.root, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	id, err := directoryID(dir)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

func (h *hierarchy) remove(name string) {
	h.t.Helper()
	if err := os.Remove(filepath.Join(h.root, name)); err != nil {
		h.t.Fatal(err)
	}
}

// tree reads and follows the hierarchy. change may give it other limits.
func (h *hierarchy) tree(change func(*Tree)) *Tree {
	h.t.Helper()
	tree := newTree(h.find)
	h.t.Cleanup(func() { tree.Close() })
	if change != nil {
		change(tree)
	}
	tree.rescan()
	return tree
}

func (h *hierarchy) want(tree *Tree, id uint64, name string) {
	h.t.Helper()
	owner := tree.Lookup(id)
	if owner == nil {
		h.t.Errorf("%s is not known (%s)", name, tree.Problem())
		return
	}
	if want := "/" + name; owner.Cgroup != want {
		h.t.Errorf("%d is %s, want %s", id, owner.Cgroup, want)
	}
}

func TestLookup(t *testing.T) {
	h := mount(t)
	before := h.make("before.service")
	nested := h.make("a.slice/b.slice/nested.service/payload")
	tree := h.tree(nil)
	if got := tree.Problem(); got != "" {
		t.Fatal(got)
	}
	h.want(tree, before, "before.service")
	h.want(tree, nested, "a.slice/b.slice/nested.service/payload")
	if got := tree.Lookup(nested).Service(); got != "nested.service" {
		t.Errorf("unit is %q", got)
	}
	if got := tree.Lookup(0); got != nil {
		t.Errorf("id 0 is %v", got)
	}
	if got := tree.Lookup(1 << 60); got != nil {
		t.Errorf("an id that is not given out is %v", got)
	}
	root, err := directoryID(h.root)
	if err != nil {
		t.Fatal(err)
	}
	if owner := tree.Lookup(root); owner == nil || owner.Cgroup != "/" || owner.Unit != "" {
		t.Errorf("the root is %v", owner)
	}
}

// Nobody follows here: what Lookup itself takes in is enough.
func TestLookupKnowsNew(t *testing.T) {
	h := mount(t)
	tree := h.tree(nil)
	for i := range 20 {
		name := fmt.Sprintf("new-%d.service", i)
		h.want(tree, h.make(name), name)
	}
	deep := "x.slice/y.slice/z.service/1/2/3"
	h.want(tree, h.make(deep), deep)
	h.want(tree, h.make(deep+"/4"), deep+"/4")
}

func TestLookupKnowsGone(t *testing.T) {
	h := mount(t)
	tree := h.tree(nil)
	first := h.make("a.service")
	h.want(tree, first, "a.service")
	h.remove("a.service")
	h.want(tree, first, "a.service")

	// The unit starts again: another cgroup by the same name.
	second := h.make("a.service")
	if first == second {
		t.Fatal("the kernel gave an id twice")
	}
	h.want(tree, second, "a.service")
	h.want(tree, first, "a.service")

	// Several lives in one go, of which the last is there to be seen.
	for range 3 {
		h.remove("a.service")
		second = h.make("a.service")
	}
	h.want(tree, second, "a.service")
	h.want(tree, h.make("a.service/below"), "a.service/below")
}

// What was removed before anybody saw it is not known, and not taken for
// another that has its name.
func TestLookupNeverWrong(t *testing.T) {
	h := mount(t)
	tree := h.tree(nil)
	missed := h.make("a.service")
	h.remove("a.service")
	h.make("a.service")
	if got := tree.Lookup(missed); got != nil {
		t.Errorf("an id that nobody saw is %v", got)
	}
}

// Whoever follows sees cgroups that are gone by the time of the lookup.
func TestRunFollows(t *testing.T) {
	h := mount(t)
	tree := h.tree(nil)
	run(t, tree)
	known := tree.Live()
	id := h.make("short.service")
	await(t, "the new cgroup", func() bool { return tree.Live() > known })
	h.remove("short.service")
	await(t, "its end", func() bool { return tree.Live() == known })
	h.want(tree, id, "short.service")
}

func run(t *testing.T, tree *Tree) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- tree.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func await(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain for %s", what)
			return
		}
	}
}

func TestGoneIsBounded(t *testing.T) {
	h := mount(t)
	tree := h.tree(func(tree *Tree) { tree.goneLimit = 3 })
	stays := h.make("stays.service")
	h.want(tree, stays, "stays.service")
	var ids []uint64
	for range 5 {
		ids = append(ids, h.make("a.service"))
		tree.Lookup(ids[len(ids)-1])
		h.remove("a.service")
	}
	again := h.make("a.service") // has Lookup see the last one go
	h.want(tree, again, "a.service")
	h.want(tree, stays, "stays.service")
	for i, id := range ids {
		if known := tree.Lookup(id) != nil; known != (i >= 2) {
			t.Errorf("cgroup %d of 5 known: %t", i, known)
		}
	}
	for id := uint64(1) << 60; id < 1<<60+2*missMax; id++ {
		tree.Lookup(id)
	}
	if limit := tree.Live() + 3 + missMax; len(tree.owners) > limit {
		t.Errorf("%d ids are kept, want %d at most", len(tree.owners), limit)
	}
	h.want(tree, stays, "stays.service")
}

// Beyond the limit cgroups are not known, until others make room for them.
func TestLiveIsBounded(t *testing.T) {
	h := mount(t)
	const limit = 3 // the root and two more
	tree := h.tree(func(tree *Tree) { tree.liveLimit = limit })
	run(t, tree)
	var ids []uint64
	for i := range 4 {
		ids = append(ids, h.make(fmt.Sprintf("%d.service", i)))
	}
	h.want(tree, ids[0], "0.service")
	h.want(tree, ids[1], "1.service")
	if got := tree.Lookup(ids[2]); got != nil || tree.Live() > limit || tree.Problem() == "" {
		t.Errorf("beyond the limit: %v, %d known, problem %q", got, tree.Live(), tree.Problem())
	}
	h.remove("0.service")
	h.remove("1.service")
	await(t, "the others", func() bool { return tree.Lookup(ids[2]) != nil && tree.Lookup(ids[3]) != nil })
	await(t, "the end of the problem", func() bool { return tree.Problem() == "" })
}

// The kernel keeps 16384 changes that nobody reads (max_queued_events).
func TestOverflow(t *testing.T) {
	h := mount(t)
	tree := h.tree(nil)
	gone := h.make("gone.service")
	h.want(tree, gone, "gone.service")
	for range 17_000 / 2 {
		h.make("flood.service")
		h.remove("flood.service")
	}
	h.remove("gone.service")
	late := h.make("late.service")
	if got := tree.Lookup(late); got != nil || tree.Problem() == "" {
		t.Fatalf("there was no overflow: %v, problem %q", got, tree.Problem())
	}
	run(t, tree)
	await(t, "what came after the overflow", func() bool { return tree.Lookup(late) != nil })
	h.want(tree, late, "late.service")
	h.want(tree, gone, "gone.service")
	h.want(tree, h.make("late.service/below"), "late.service/below")
	if got := tree.Problem(); got != "" {
		t.Errorf("problem %q", got)
	}
}

func TestWithoutInotify(t *testing.T) {
	h := mount(t)
	before := h.make("before.service")
	tree := h.tree(func(tree *Tree) {
		tree.notify.close()
		tree.notify, tree.blind = nil, errors.New("no more instances")
	})
	run(t, tree)
	h.want(tree, before, "before.service")
	if tree.Problem() == "" {
		t.Error("no problem")
	}
	id := h.make("new.service")
	await(t, "a new cgroup", func() bool { return tree.Lookup(id) != nil })
	h.want(tree, id, "new.service")
}

// The hierarchy is mounted elsewhere, while nothing in it changes.
func TestMountMoves(t *testing.T) {
	first := mount(t)
	id := first.make("a.service")
	second := t.TempDir()
	points := []string{first.root}
	tree := newTree(func() (string, error) {
		if len(points) == 0 {
			return "", errNotMounted
		}
		return points[0], nil
	})
	t.Cleanup(func() { tree.Close() })
	tree.rescan()
	first.want(tree, id, "a.service")
	known := tree.Live()

	if err := unix.Mount(first.mount, second, "", unix.MS_MOVE, ""); err != nil {
		t.Skipf("move a mount: %v", err) // shared mounts cannot be moved
	}
	t.Cleanup(func() {
		if err := unix.Mount(second, first.mount, "", unix.MS_MOVE, ""); err != nil {
			t.Error(err)
		}
	})
	points[0] = second + first.base
	if err := os.Mkdir(points[0]+"/b.service", 0o755); err != nil {
		t.Fatal(err)
	}
	moved, err := directoryID(points[0] + "/b.service")
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.Lookup(moved); got != nil || tree.Problem() == "" {
		t.Fatalf("found where nothing is mounted: %v, problem %q", got, tree.Problem())
	}
	run(t, tree)
	await(t, "the tree at its new place", func() bool { return tree.Lookup(moved) != nil })
	first.want(tree, id, "a.service")
	if got := tree.Live(); got != known+1 || tree.Problem() != "" {
		t.Errorf("%d cgroups after %d, problem %q", got, known, tree.Problem())
	}
}

func TestNotMounted(t *testing.T) {
	tree := newTree(func() (string, error) { return "", errNotMounted })
	t.Cleanup(func() { tree.Close() })
	tree.rescan()
	if got := tree.Lookup(1); got != nil || tree.Problem() == "" {
		t.Errorf("got %v, problem %q", got, tree.Problem())
	}
}

func TestLookupWhileTheyComeAndGo(t *testing.T) {
	h := mount(t)
	tree := h.tree(nil)
	run(t, tree)
	stays := h.make("stays.service")
	done := make(chan bool)
	go func() {
		defer close(done)
		for i := range 300 {
			name := fmt.Sprintf("%d.service", i%7)
			id := h.make(name)
			// While the tree is read anew it may be absent, but not for long.
			await(t, name, func() bool { return tree.Lookup(id) != nil })
			h.want(tree, id, name)
			h.remove(name)
			if i%50 == 0 {
				tree.wantRescan()
			}
		}
	}()
	for alive := true; alive; {
		select {
		case <-done:
			alive = false
		default:
		}
		tree.Lookup(1 << 60)
		if owner := tree.Lookup(stays); owner != nil && owner.Service() != "stays.service" {
			t.Fatalf("got %+v", owner)
		}
	}
}

func TestAllocations(t *testing.T) {
	h := mount(t)
	id := h.make("a.service")
	tree := h.tree(nil)
	for _, id := range []uint64{0, id, 1 << 60} {
		tree.Lookup(id)
		if n := testing.AllocsPerRun(100, func() { tree.Lookup(id) }); n != 0 {
			t.Errorf("%v allocations to look up %d", n, id)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	tree := New()
	defer tree.Close()
	root, err := findMount()
	if err != nil {
		b.Skip(err)
	}
	id, _ := directoryID(root)
	b.ReportAllocs()
	for b.Loop() {
		if tree.Lookup(id) == nil {
			b.Fatal("the root is not known")
		}
	}
}

func TestMountPoints(t *testing.T) {
	const rest = " rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
	for _, c := range []struct {
		name, info string
		want       []string
	}{
		{"nothing", "", []string{}},
		{"unified", "35 24 0:30 / /sys/fs/cgroup" + rest + "\n", []string{"/sys/fs/cgroup"}},
		{"hybrid", "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n37 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
			"41 31 0:38 / /sys/fs/cgroup/unified" + rest + "\n", []string{"/sys/fs/cgroup/unified"}},
		{"version 1", "37 31 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n", []string{}},
		{"several", "50 1 0:30 /a /part" + rest + "\n51 1 0:30 / /tmp/x" + rest + "\n52 1 0:30 / /tmp/y" + rest + "\n53 1 0:30 / /sys/fs/cgroup" + rest + "\n",
			[]string{"/sys/fs/cgroup", "/tmp/x", "/tmp/y", "/part"}},
		{"namespace", "53 1 0:30 /../.. /sys/fs/cgroup" + rest + "\n", []string{"/sys/fs/cgroup"}},
		{"blanks", `53 1 0:30 / /my\040cgroups\134` + rest + "\n", []string{`/my cgroups\`}},
		{"without optional fields", "53 1 0:30 / /c rw - cgroup2 none rw\n", []string{"/c"}},
		{"cut short", "53 1 0:30", []string{}},
		{"named like it", "53 1 0:30 / /c rw - cgroup2x none rw\n", []string{}},
	} {
		if got := mountPoints(c.info); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 1, 0, 64, 0, 0, 0, 0, 4, 0, 0, 0, 'a', 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { parse(b, func(int32, uint32, string) {}) })
}
