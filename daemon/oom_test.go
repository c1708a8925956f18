package daemon

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// memoryGroup is a cgroup of the test's own with a bound on its memory, of
// whichever version has that controller.
type memoryGroup struct {
	t   *testing.T
	dir string
	// Names of files: the bound, what is used, a line "oom_kill" and a number.
	limit, usage, events string
	unlimited            string // what is written for no bound
}

func newMemoryGroup(t *testing.T) *memoryGroup {
	t.Helper()
	testbed.Root(t)
	m := &memoryGroup{t: t, limit: "memory.max", usage: "memory.current", events: "memory.events", unlimited: "max"}
	kind, options := "cgroup2", ""
	parent, old := ownMemoryGroup(t)
	if old {
		m.limit, m.usage, m.events, m.unlimited = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "-1"
		kind, options = "cgroup", "memory"
	}
	mount := testbed.Mount(t, kind, options)
	noSwap := "memory.swap.max"
	if old {
		noSwap = "memory.swappiness"
	} else if err := os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		testbed.Missing(t, "bound the memory of a cgroup: %v", err)
	}
	m.dir = filepath.Join(mount, parent, fmt.Sprintf("flatdtest%d", os.Getpid()))
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		testbed.Missing(t, "make a cgroup: %v", err)
	}
	t.Cleanup(m.remove)
	if err := m.write(noSwap, "0"); err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without swap
		t.Fatal(err)
	}
	return m
}

// ownMemoryGroup is where this process has its memory accounted, and whether
// that is by cgroups of version 1. Of version 2 it is the root, as processes are
// in leaves alone.
func ownMemoryGroup(t *testing.T) (path string, old bool) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		testbed.Missing(t, "cgroups: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(field) == 3 && slices.Contains(strings.Split(field[1], ","), "memory") {
			return field[2], true
		}
	}
	return "/", false
}

// remove removes the cgroup once its last process has gone.
func (m *memoryGroup) remove() {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := os.Remove(m.dir)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Errorf("remove a cgroup: %v", err)
			return
		}
	}
}

func (m *memoryGroup) write(file, text string) error {
	return os.WriteFile(filepath.Join(m.dir, file), []byte(text), 0)
}

// relax lifts the bound.
func (m *memoryGroup) relax() {
	m.t.Helper()
	if err := m.write(m.limit, m.unlimited); err != nil {
		m.t.Fatal(err)
	}
}

// kills counts the processes that the OOM killer has killed for the bound.
func (m *memoryGroup) kills() int {
	m.t.Helper()
	return procField(m.t, filepath.Join(m.dir, m.events), "oom_kill ")
}

// has runs a setup's flatd in the cgroup, from its first moment on.
func (m *memoryGroup) has(s *setup) {
	enter := fmt.Sprintf(`echo $$ >%s/cgroup.procs && exec "$0" "$@"`, m.dir)
	s.args = append([]string{"-c", enter, s.binary}, s.args...)
	s.binary = testbed.Tool(m.t, "sh")
}

// squeeze lowers the bound below what is used until that kills flatd, and returns
// all its events.
func (m *memoryGroup) squeeze(p *process) []event {
	m.t.Helper()
	before := m.kills()
	for deadline := time.Now().Add(patience); p.alive(); time.Sleep(time.Millisecond) {
		m.lower()
		// What flatd needs to answer is more than it has.
		if response, err := p.get(http.MethodGet, "/v1/events?limit=1000"); err == nil {
			response.Body.Close()
		}
		if time.Now().After(deadline) {
			m.t.Fatal("nobody was killed for want of memory")
		}
	}
	all := p.died()
	if n := m.kills() - before; n != 1 {
		m.t.Errorf("the OOM killer has killed %d processes, want flatd", n)
	}
	return all
}

// lower sets the bound a page below what is used. Version 2 kills for that at
// once; version 1 refuses it if it can free nothing, so that the bound is what is
// used, and kills for the next page.
func (m *memoryGroup) lower() {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.dir, m.usage))
	if err != nil {
		m.t.Fatal(err)
	}
	used, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, bound := range []int{max(used-os.Getpagesize(), 0), used} {
		switch err := m.write(m.limit, strconv.Itoa(bound)); {
		case err == nil:
			return
		case !errors.Is(err, unix.EBUSY):
			m.t.Fatal(err)
		}
	}
}

// alive reports whether flatd has not ended.
func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// died waits until flatd has been killed, and returns all its events.
func (p *process) died() []event {
	p.t.Helper()
	<-p.ended
	_ = p.cmd.Wait()
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		p.t.Errorf("flatd ended with %v instead of being killed", p.cmd.ProcessState)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events
}

// TestNothingIsLostToTheOOMKiller has the kernel kill flatd for its memory under
// a steady load: at work, and at its start too.
func TestNothingIsLostToTheOOMKiller(t *testing.T) {
	memory := newMemoryGroup(t)
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), quickTimeouts)
	memory.has(s)
	s.start(t).end(syscall.SIGTERM) // the load is to find the programs attached
	l := startLoad(newTraffic(t, client, server), loadPace, 0)
	var runs []run
	for n := range rounds(t, 6) {
		p := s.launch(t)
		if n%2 == 0 {
			p.waitN("some events", 50, isNews)
		} else {
			time.Sleep(rand.N(300 * time.Millisecond)) // the moment is the subject
		}
		runs = append(runs, run{memory.squeeze(p), syscall.SIGKILL})
		memory.relax()
	}
	closeAccounts(t, s, l, runs)
}
