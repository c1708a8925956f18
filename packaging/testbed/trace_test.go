package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const tracedVariable = "FLATD_TRACED"

var pinNames = []string{"first", "second", "third"}

// TestTracedProcess is not a test but the program that is traced.
func TestTracedProcess(t *testing.T) {
	path := os.Getenv(tracedVariable)
	if path == "" {
		t.Skip("the other half of TestKilledAtAStage")
	}
	for _, name := range pinNames {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- m.Pin(path + "/" + name) }()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledAtAStage: what is killed at the entry of a call has not done it, at
// the exit it has; and nothing more is done.
func TestKilledAtAStage(t *testing.T) {
	Root(t)
	run := func(at Stage) (pins []string, calls int, killed string) {
		t.Helper()
		path := BPFFS(t)
		cmd := exec.Command(os.Args[0], "-test.run", "^TestTracedProcess$")
		cmd.Env = append(os.Environ(), tracedVariable+"="+path)
		tr, err := StartTraced(cmd, at)
		if err != nil {
			t.Fatal(err)
		}
		killed = tr.Wait()
		if err := cmd.Wait(); (err != nil) != (killed != "") {
			t.Errorf("killed at %q, and it ended with %v", killed, err)
		}
		for _, name := range pinNames {
			if _, err := os.Stat(filepath.Join(path, name)); err == nil {
				pins = append(pins, name)
			}
		}
		return pins, tr.Calls(), killed
	}

	pins, calls, killed := run(Stage{})
	if len(pins) != 3 || calls < 6 || killed != "" {
		t.Fatalf("left alone it made %d calls and the pins %q, killed at %q", calls, pins, killed)
	}
	made := make(map[string]int) // pins, where it was killed as one was made
	for k := 1; k <= calls; k++ {
		before, n, at := run(Stage{K: k})
		after, _, _ := run(Stage{K: k, Exit: true})
		if n != k || !strings.HasPrefix(at, "entry of call ") {
			t.Fatalf("killed at %q, after %d calls; want call %d", at, n, k)
		}
		if strings.Contains(at, "OBJ_PIN") {
			made[at[strings.LastIndex(at, "/")+1:len(at)-1]] = len(before)
			if len(after) != len(before)+1 {
				t.Errorf("%s: %q; at its exit %q", at, before, after)
			}
		} else if len(after) != len(before) {
			t.Errorf("%s: %q; at its exit %q", at, before, after)
		}
	}
	if made["first"] != 0 || made["second"] != 1 || made["third"] != 2 || len(made) != 3 {
		t.Errorf("pins that were there as one was made: %v", made)
	}
	if _, calls, _ := run(Stage{Of: []int{unix.SYS_BPF, unix.SYS_UNLINKAT}}); calls < 6 {
		t.Errorf("%d calls", calls)
	}
}
