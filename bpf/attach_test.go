package bpf

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/flatd/flatd/packaging/testbed"
)

// veth is a State that measures one end of a veth, in that end's namespace.
type veth struct {
	*State
	t            *testing.T
	path         string // of the pins
	client, peer *testbed.Host
	reader       *Reader
}

func newVeth(t *testing.T, mode Mode) *veth {
	t.Helper()
	client, peer := testbed.Pair(t)
	v := &veth{t: t, path: testbed.BPFFS(t), client: client, peer: peer}
	v.State = openState(t, v.path)
	v.Attacher.SetMode(mode)
	r, err := v.Requests.Reader()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	v.reader = r
	return v
}

// eachMode runs a test on a veth for both ways to attach.
func eachMode(t *testing.T, test func(v *veth)) {
	for _, mode := range []Mode{TCX, Clsact} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == TCX {
				needTCX(t)
			}
			test(newVeth(t, mode))
		})
	}
}

func needTCX(t *testing.T) {
	t.Helper()
	testbed.Root(t)
	if err := HaveTCX(); err != nil {
		t.Skip(err) // a matter of the kernel: CI cannot install it
	}
}

// device is the client's interface as it is now.
func (v *veth) device() (i Interface) {
	v.t.Helper()
	var err error
	v.client.Do(func() {
		var found *net.Interface
		if found, err = net.InterfaceByName(v.client.Interface); err == nil {
			i = Interface{Index: found.Index, Name: found.Name}
		}
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return i
}

func (v *veth) attach() bool {
	v.t.Helper()
	changed, err := v.tryAttach()
	if err != nil {
		v.t.Fatal(err)
	}
	return changed
}

func (v *veth) tryAttach() (changed bool, err error) {
	v.t.Helper()
	device := v.device()
	v.client.Do(func() { changed, err = v.Attacher.Attach(device) })
	return changed, err
}

func (v *veth) detach(index int) {
	v.t.Helper()
	var err error
	v.client.Do(func() { err = v.Attacher.Detach(index) })
	if err != nil {
		v.t.Fatal(err)
	}
}

// chain is the ids of the tcx programs of the client's interface, in order.
func (v *veth) chain(attach ebpf.AttachType) (ids []ebpf.ProgramID) {
	v.t.Helper()
	device := v.device()
	var err error
	v.client.Do(func() {
		var result *link.QueryResult
		if result, err = link.QueryPrograms(link.QueryOptions{Target: device.Index, Attach: attach}); err == nil {
			for _, p := range result.Programs {
				ids = append(ids, p.ID)
			}
		}
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return ids
}

// filters is what tc shows of the client's filters and qdiscs.
func (v *veth) filters() string {
	v.t.Helper()
	tc := func(args ...string) string {
		return testbed.Run(v.t, testbed.Tool(v.t, "tc"), append([]string{"-n", v.client.Name}, args...)...)
	}
	return tc("qdisc", "show", "dev", "eth0") + tc("filter", "show", "dev", "eth0", "ingress") + tc("filter", "show", "dev", "eth0", "egress")
}

// want checks how many of our programs are attached in each way; each counts
// for one direction.
func (v *veth) want(tcx, clsact int) {
	v.t.Helper()
	if HaveTCX() == nil {
		if got := v.tcx(); got != tcx {
			v.t.Errorf("%d tcx programs, want %d", got, tcx)
		}
	}
	shown := v.filters()
	if got := strings.Count(shown, clsactPrefix+"ingress ") + strings.Count(shown, clsactPrefix+"egress "); got != clsact {
		v.t.Errorf("%d filters of ours, want %d:\n%s", got, clsact, shown)
	}
}

// tcx is how many tcx programs there are, whosever.
func (v *veth) tcx() int {
	v.t.Helper()
	return len(v.chain(ebpf.AttachTCXIngress)) + len(v.chain(ebpf.AttachTCXEgress))
}

// connect makes a TCP connection from the client to its peer.
func (v *veth) connect(address string) {
	v.t.Helper()
	listener := v.peer.Listen(v.t, net.JoinHostPort(address, "0"))
	defer listener.Close()
	var conn net.Conn
	var err error
	v.client.Do(func() { conn, err = net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second) })
	if err != nil {
		v.t.Fatal(err)
	}
	conn.Close()
}

// tcp reads the records there are and returns those of TCP. The record of a
// connection is there before its connect returns.
func (v *veth) tcp() (all []kernelFlatRecord) {
	v.t.Helper()
	for _, r := range (&kernel{t: v.t, reader: v.reader}).records() {
		if r.Kind == kindTCP {
			all = append(all, r)
		}
	}
	return all
}

func (v *veth) measures(index int) {
	v.t.Helper()
	for _, address := range []string{v.peer.V4, v.peer.V6} {
		v.connect(address)
		got := v.tcp()
		if len(got) != 1 {
			v.t.Fatalf("%d records of a connection to %s, want 1: %+v", len(got), address, got)
		}
		r := got[0]
		if r.Side != SideClient || r.Result != established || r.Repeats != 0 || int(r.Ifindex) != index {
			v.t.Errorf("connection to %s: %+v", address, r)
		}
	}
}

func (v *veth) measuresNothing() {
	v.t.Helper()
	v.connect(v.peer.V4)
	if got := v.tcp(); got != nil {
		v.t.Errorf("records of an interface that is not attached: %+v", got)
	}
}

func TestAttachTwiceMeasuresOnce(t *testing.T) {
	eachMode(t, func(v *veth) {
		if !v.attach() {
			v.t.Error("the first Attach changed nothing")
		}
		if v.attach() {
			v.t.Error("the second Attach changed something")
		}
		if v.mode() == TCX {
			v.want(2, 0)
		} else {
			v.want(0, 2)
		}
		device := v.device()
		if got, want := v.Attacher.Attachments(), []Attachment{{device, v.mode()}}; !reflect.DeepEqual(got, want) {
			v.t.Errorf("attachments %+v, want %+v", got, want)
		}
		v.measures(device.Index)

		v.detach(device.Index)
		v.detach(device.Index)
		v.want(0, 0)
		v.measuresNothing()
		if got := v.Attacher.Attachments(); len(got) != 0 {
			v.t.Errorf("attachments after Detach: %+v", got)
		}
	})
}

func (v *veth) mode() Mode { return v.Attacher.mode }

func TestAutoTakesTCXWhereItIs(t *testing.T) {
	v := newVeth(t, Auto)
	v.attach()
	if HaveTCX() == nil {
		v.want(2, 0)
	} else {
		v.want(0, 2)
	}
	v.measures(v.device().Index)
}

// TestAttachingAgainPausesNothing: what has its programs begins requests all the time, also
// on a kernel without tcx.
func TestAttachingAgainPausesNothing(t *testing.T) {
	for _, mode := range []Mode{Auto, Clsact} {
		v := newVeth(t, mode)
		v.attach()
		stop := meanwhile(func() bool { return atomic.LoadUint32(&v.shared.Attaching) != 0 })
		for range 100 {
			if v.attach() {
				t.Error("attached again what had its programs")
			}
		}
		if n := stop(); n != 0 {
			t.Errorf("%s: seen paused %d times", mode, n)
		}
	}
}

func TestOtherModeIsTakenOver(t *testing.T) {
	needTCX(t)
	v := newVeth(t, TCX)
	for _, step := range []struct {
		mode        Mode
		tcx, clsact int
	}{{TCX, 2, 0}, {Clsact, 0, 2}, {TCX, 2, 0}} {
		v.Attacher.SetMode(step.mode)
		v.attach()
		v.want(step.tcx, step.clsact)
		v.measures(v.device().Index)
	}
}

// recreate makes the veth anew, with the given index on the client's end.
func (v *veth) recreate(index int) {
	v.t.Helper()
	ip := func(args ...string) { v.t.Helper(); testbed.Run(v.t, "ip", args...) }
	ip("-n", v.client.Name, "link", "delete", "eth0")
	ip("-n", v.client.Name, "link", "add", "eth0", "index", fmt.Sprint(index), "type", "veth", "peer", "name", "eth0", "netns", v.peer.Name)
	for _, h := range []*testbed.Host{v.client, v.peer} {
		ip("-n", h.Name, "address", "add", h.V4+"/24", "dev", "eth0")
		ip("-n", h.Name, "address", "add", h.V6+"/64", "dev", "eth0", "nodad")
		ip("-n", h.Name, "link", "set", "eth0", "up")
	}
}

func TestInterfaceIsRecreated(t *testing.T) {
	eachMode(t, func(v *veth) {
		v.attach()
		first := v.device().Index

		v.recreate(first) // the same index, another device
		if !v.attach() {
			v.t.Error("Attach took the pins of a dead interface for work done")
		}
		v.measures(first)

		second := first + 1000
		v.recreate(second)
		v.attach()
		v.measures(second)
		wantLeftovers := []int{second}
		if v.mode() == TCX {
			wantLeftovers = []int{first, second}
		}
		if got := v.leftovers(); !reflect.DeepEqual(got, wantLeftovers) {
			v.t.Errorf("leftovers %v, want %v", got, wantLeftovers)
		}
		v.detach(first) // which is gone
		if got := v.leftovers(); !reflect.DeepEqual(got, []int{second}) {
			v.t.Errorf("leftovers after Detach %v, want %v", got, []int{second})
		}
		v.measures(second)
	})
}

func (v *veth) leftovers() (indexes []int) {
	v.t.Helper()
	var err error
	v.client.Do(func() { indexes, err = v.Attacher.Leftovers() })
	if err != nil {
		v.t.Fatal(err)
	}
	return indexes
}

// join puts a program of somebody else's into a tcx chain.
func (v *veth) join(attach ebpf.AttachType, anchor link.Anchor) *testbed.Bystander {
	v.t.Helper()
	p := testbed.NewBystander(v.t)
	device := v.device()
	var l link.Link
	var err error
	v.client.Do(func() {
		l, err = link.AttachTCX(link.TCXOptions{Interface: device.Index, Program: p.Program, Attach: attach, Anchor: anchor})
	})
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { l.Close() })
	return p
}

func TestOtherTCXProgramsKeepRunning(t *testing.T) {
	needTCX(t)
	v := newVeth(t, TCX)
	device := v.device()
	behind := v.join(ebpf.AttachTCXIngress, link.Tail())
	v.attach()
	if got := v.chain(ebpf.AttachTCXIngress); len(got) != 2 || !sameProgram(v.programs.FlatIngress, got[0]) {
		t.Errorf("chain %v, want ours at its head", got)
	}
	ahead := v.join(ebpf.AttachTCXIngress, link.Head())

	v.measures(device.Index)
	before, after := ahead.Packets(), behind.Packets()
	if before == 0 || after < before { // the one behind has been there for longer
		t.Errorf("ahead of ours %d packets, behind %d", before, after)
	}
	v.detach(device.Index)
	if got := v.chain(ebpf.AttachTCXIngress); len(got) != 2 || !sameProgram(ahead.Program, got[0]) || !sameProgram(behind.Program, got[1]) {
		t.Errorf("chain %v after Detach, want the other two", got)
	}
}

// foreign adds a filter of somebody else's with tc.
func (v *veth) foreign(args ...string) {
	v.t.Helper()
	path := filepath.Join(v.path, "bystander")
	if _, err := os.Stat(path); err != nil {
		if err := testbed.NewBystander(v.t).Pin(path); err != nil {
			v.t.Fatal(err)
		}
	}
	args = append(append([]string{"-n", v.client.Name, "filter", "add", "dev", "eth0"}, args...), "bpf", "direct-action", "pinned", path)
	testbed.Run(v.t, testbed.Tool(v.t, "tc"), args...)
}

func (v *veth) clsact() {
	v.t.Helper()
	testbed.Run(v.t, testbed.Tool(v.t, "tc"), "-n", v.client.Name, "qdisc", "add", "dev", "eth0", "clsact")
}

func TestForeignFiltersStay(t *testing.T) {
	eachMode(t, func(v *veth) {
		v.clsact()
		for _, d := range directions {
			v.foreign(string(d), "prio", "1")
			v.foreign(string(d), "prio", fmt.Sprint(clsactPriority), "handle", "1")
			v.foreign(string(d), "prio", "49152")
		}
		before := v.filters()
		v.attach()
		v.measures(v.device().Index)
		shown := v.filters()
		for line := range strings.Lines(before) {
			if !strings.Contains(shown, line) {
				v.t.Errorf("Attach removed: %s", line)
			}
		}
		v.detach(v.device().Index)
		if after := v.filters(); after != before {
			v.t.Errorf("after Detach:\n%s\nbefore Attach:\n%s", after, before)
		}

		v.attach()
		v.Close()
		var err error
		v.client.Do(func() { _, err = Remove(v.path) })
		if err != nil {
			v.t.Fatal(err)
		}
		if after := v.filters(); after != before {
			v.t.Errorf("after Remove:\n%s\nbefore Attach:\n%s", after, before)
		}
		v.want(0, 0)
	})
}

func TestAFilterInOurPlaceIsNotReplaced(t *testing.T) {
	prio := fmt.Sprint(clsactPriority)
	for _, c := range []struct {
		name string
		d    direction
		add  func(v *veth)
	}{
		{"handle, ingress", ingress, func(v *veth) { v.foreign("ingress", "prio", prio, "handle", fmt.Sprint(v.Attacher.clsact.handle)) }},
		{"handle, egress", egress, func(v *veth) { v.foreign("egress", "prio", prio, "handle", fmt.Sprint(v.Attacher.clsact.handle)) }},
		{"kind", egress, func(v *veth) {
			testbed.Run(v.t, "tc", "-n", v.client.Name, "filter", "add", "dev", "eth0", "egress", "prio", prio, "u32", "match", "u32", "0", "0")
		}},
		{"protocol", egress, func(v *veth) { v.foreign("egress", "protocol", "ip", "prio", prio) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVeth(t, Clsact)
			v.clsact()
			c.add(v)
			before := v.filters()
			_, err := v.tryAttach()
			if err == nil {
				t.Fatal("attached in the place of somebody else's filter")
			}
			for _, want := range []string{"eth0", "foreign " + string(c.d) + " filter", "priority 10", "tc filter show"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			// Nor is the other direction attached alone: every request would time out.
			if after := v.filters(); after != before {
				t.Errorf("after the failed Attach:\n%s\nbefore:\n%s", after, before)
			}
			if got := v.Attacher.Attachments(); len(got) != 0 {
				t.Errorf("attachments %+v", got)
			}
		})
	}
}

// An upgrade must not stop what measures because the other way is blocked.
func TestAModeThatFailsLeavesTheOtherAtWork(t *testing.T) {
	needTCX(t)
	v := newVeth(t, TCX)
	v.attach()
	v.clsact()
	v.foreign("egress", "prio", fmt.Sprint(clsactPriority), "handle", fmt.Sprint(v.Attacher.clsact.handle))
	v.Attacher.SetMode(Clsact)
	if _, err := v.tryAttach(); err == nil {
		t.Fatal("attached in the place of somebody else's filter")
	}
	v.want(2, 0)
	v.measures(v.device().Index)
}

func TestAFilterThatVanishedIsPutBack(t *testing.T) {
	v := newVeth(t, Clsact)
	v.attach()
	testbed.Run(t, testbed.Tool(t, "tc"), "-n", v.client.Name, "qdisc", "delete", "dev", "eth0", "clsact")
	v.measuresNothing()
	if !v.attach() {
		t.Error("Attach did not see that the filters are gone")
	}
	v.want(0, 2)
	v.measures(v.device().Index)
}

func TestAttachWhereThereIsNoInterface(t *testing.T) {
	eachMode(t, func(v *veth) {
		var err error
		v.client.Do(func() { _, err = v.Attacher.Attach(Interface{Index: 4711, Name: "gone0"}) })
		if err == nil || !strings.Contains(err.Error(), "gone0") {
			v.t.Errorf("error %v does not name the interface", err)
		}
	})
}
