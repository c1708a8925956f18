package bpf

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// says checks that an error names the place and the remedy.
func says(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}

// A start can be killed after any of its pins, and a removal before any: what
// is left, whatever it is, is enough for the next start.
func TestAnyRestOfTheStateIsRepaired(t *testing.T) {
	path := testbed.BPFFS(t)
	session(t, path).leave()
	names := pinNames(t, path)
	random := rand.New(rand.NewPCG(4, 1))
	var last uint64
	for kept := 0; kept < len(names); kept += 4 { // one pin missing: TestHalfMadeStateIsRepaired
		random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names[kept:] {
			if err := os.Remove(pinOf(path, name)); err != nil {
				t.Fatal(err)
			}
		}
		if kept == 0 {
			if err := os.Remove(pinOf(path, "links")); err != nil {
				t.Fatal(err)
			}
		}
		k := session(t, path)
		k.handshake(uint32(10 * kept)) // not the one before once more
		r := k.records()
		if len(r) != 1 || r[0].Sequence <= last {
			t.Fatalf("with %v left: records %+v after sequence %d", names[:kept], r, last)
		}
		last = r[0].Sequence
		k.leave()
		session(t, path).started(StartAdopt).leave()
		if got := len(pinNames(t, path)); got != pins {
			t.Errorf("with %v left: %d pins, want %d", names[:kept], got, pins)
		}
	}
}

func TestAPinDirectoryOfOthersIsRefused(t *testing.T) {
	chmod := func(mode os.FileMode) func(string) error {
		return func(dir string) error { return os.Chmod(dir, mode) }
	}
	path := filepath.Join(testbed.BPFFS(t), "flatd")
	session(t, path).leave()
	for name, test := range map[string]struct {
		dir    string
		damage func(dir string) error
		remedy string
	}{
		"world can write":       {".", chmod(0o777), "chmod 0700"},
		"sticky":                {".", chmod(0o777 | os.ModeSticky), "chmod 0700"},
		"group can write maps":  {thisLayout().String(), chmod(0o770), "chmod 0700"},
		"world can write links": {pinOf("", "links"), chmod(0o777), "chmod 0700"},
		"another's":             {".", func(dir string) error { return os.Chown(dir, 1000, 1000) }, "chown root:root"},
		"another's maps":        {thisLayout().String(), func(dir string) error { return os.Chown(dir, 1000, 1000) }, "chown root:root"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(path, test.dir)
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Auto)
			if !errors.Is(err, ErrExposed) {
				t.Errorf("error %v, want ErrExposed", err)
			}
			says(t, err, dir, test.remedy)
			if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 0, 0)); err != nil {
				t.Fatal(err)
			}
		})
	}
	session(t, path).started(StartAdopt).leave()
	// Whosever it is, it can be removed.
	if err := errors.Join(os.Chmod(path, 0o777), os.Chown(path, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	if removed, err := Remove(path); err != nil || len(removed) != pins {
		t.Errorf("Remove: %d pins, %v", len(removed), err)
	}
}

// eth0 goes while no daemon is there; its links stay pinned, attached to
// nothing. A new interface may even get its index.
func TestLinksOfAVanishedInterface(t *testing.T) {
	needTCX(t)
	v := newVeth(t, TCX)
	v.attach()
	index := v.device().Index
	v.reader.Close()
	v.Close()
	testbed.Run(t, "ip", "-n", v.client.Name, "link", "delete", "eth0")

	v.State = openState(t, v.path)
	v.Attacher.SetMode(TCX)
	left, err := v.Attacher.Leftovers()
	if err != nil || !slices.Equal(left, []int{index}) {
		t.Errorf("left over %v, %v; want %d", left, err, index)
	}
	testbed.Run(t, "ip", "-n", v.client.Name, "link", "add", "eth0", "index", "2", "type", "veth", "peer", "name", "other")
	if got := v.device().Index; got != index {
		t.Fatalf("the new eth0 has index %d, want %d", got, index)
	}
	if !v.attach() {
		t.Error("the new interface is taken for the old one")
	}
	v.want(2, 0)

	testbed.Run(t, "ip", "-n", v.client.Name, "link", "delete", "eth0")
	v.detach(index)
	if pins, err := os.ReadDir(pinOf(v.path, "links")); err != nil || len(pins) != 0 {
		t.Errorf("links %v are left, %v", pins, err)
	}
}

// Programs are attached, and of what is pinned only this and that is left.
func TestRemoveDetachesFromDamagedState(t *testing.T) {
	eachMode(t, func(v *veth) {
		v.attach()
		v.reader.Close()
		v.Close()
		for i, name := range pinNames(t, v.path) {
			if i%3 != 0 {
				if err := os.Remove(pinOf(v.path, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		var err error
		v.client.Do(func() { _, err = Remove(v.path) })
		if err != nil {
			t.Error(err)
		}
		v.want(0, 0)
	})
}

// The BPF file system goes from under a daemon, and another takes its place.
func TestARemountedFileSystemIsNamed(t *testing.T) {
	needTCX(t)
	v := newVeth(t, TCX)
	v.attach()
	if err := unix.Unmount(v.path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	_, err := v.tryAttach()
	says(t, err, v.path, "vanished", "systemctl restart flatd")
	if err := unix.Mount("bpf", v.path, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	_, err = v.tryAttach()
	says(t, err, v.path, "vanished", "systemctl restart flatd")

	v.reader.Close()
	v.Close()
	v.State = openState(t, v.path)
	v.Attacher.SetMode(TCX)
	if v.Start != StartFresh || !v.attach() {
		t.Errorf("start %q after the remount, want fresh", v.Start)
	}
	// The links of the file system that has gone go with it, when the kernel has
	// the time and no other mount namespace has a copy.
	for late := time.Now().Add(20 * time.Second); v.tcx() > 2 && time.Now().Before(late); {
		time.Sleep(10 * time.Millisecond)
	}
	v.want(2, 0)
	v.reader = newSession(t, v.State).reader
	v.measures(v.device().Index)
}

// What another release left that nothing can come of is removed by the start.
func TestPreviousStateWithoutARingIsRemoved(t *testing.T) {
	path := testbed.BPFFS(t)
	for _, dir := range []string{"v0/links", "v99", "v4-later"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		foreignMap(t, filepath.Join(path, dir, kernelMapFlatEvents))
	}
	k := session(t, path).started(StartFresh)
	previous, err := k.Previous()
	if err != nil || previous != nil {
		t.Errorf("previous state %+v, %v; want none", previous, err)
	}
	for _, dir := range []string{"v0", "v99", "v4-later"} {
		if _, err := os.Stat(filepath.Join(path, dir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if k.shared.phase() != phaseAlone {
		t.Error("takes over from nobody")
	}
	k.handshake(1)
	k.one()
}
