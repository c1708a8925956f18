package bpf

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// pinsVariable holds the pin path for the part of TestThreeCapabilitiesAreEnough
// that runs in a process of its own, with those capabilities.
const pinsVariable = "FLATD_TEST_PINS"

// What the service's unit grants. Without CAP_PERFMON the verifier lets no
// program add what a packet says to a packet pointer.
const granted = 1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_PERFMON

func TestThreeCapabilitiesAreEnough(t *testing.T) {
	if path := os.Getenv(pinsVariable); path != "" {
		useThreeCapabilities(t, path)
		return
	}
	client, _ := testbed.Pair(t)
	path := testbed.BPFFS(t)
	var out []byte
	var err error
	client.Do(func() {
		// The bounds are this thread's, and go over to what it starts.
		for c := range uintptr(unix.CAP_LAST_CAP + 1) {
			if granted&(1<<c) == 0 && unix.Prctl(unix.PR_CAPBSET_READ, c, 0, 0, 0) == nil {
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
			}
		}
		child := exec.Command(os.Args[0], "-test.run=^TestThreeCapabilitiesAreEnough$", "-test.v")
		child.Env = append(os.Environ(), pinsVariable+"="+path)
		out, err = child.CombinedOutput()
	})
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("with the unit's capabilities: %v\n%s", err, out)
	}
}

func useThreeCapabilities(t *testing.T, path string) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("CapEff:\t%016x\n", granted); !strings.Contains(string(status), want) {
		t.Fatalf("not the capabilities this is about, %s in\n%s", want, status)
	}
	found, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	device := Interface{Index: found.Index, Name: found.Name}

	k := session(t, path).started(StartFresh)
	for _, mode := range []Mode{Auto, Clsact} {
		k.Attacher.SetMode(mode)
		if _, err := k.Attacher.Attach(device); err != nil {
			t.Fatal(err)
		}
		if ahead, err := k.Attacher.Ahead(device.Index); err != nil || len(ahead) != 0 {
			t.Errorf("ahead by %s: %q, error %v", mode, ahead, err)
		}
	}
	if err := k.Apply(Settings{Remote: Nets{Exclude: prefixes("203.0.113.0/24")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Requests.Sweep(BootTime(), 1); err != nil {
		t.Fatal(err)
	}
	k.out(flow4.syn(t, 1))
	k.timeOutAll()
	if got := k.records(); len(got) != 1 {
		t.Errorf("%d records of a timeout", len(got))
	}
	if _, err := k.Counters(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Histograms(); err != nil {
		t.Fatal(err)
	}
	k.leave()

	k = session(t, path).started(StartAdopt)
	k.Attacher.SetMode(Clsact)
	if changed, err := k.Attacher.Attach(device); err != nil || changed {
		t.Errorf("Attach after a restart: changed %v, error %v", changed, err)
	}
	k.leave()
	if _, err := Remove(path); err != nil {
		t.Error(err)
	}
}
