package bpf

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/flatd/flatd/packaging/testbed"
)

// wantAhead wants these to be told of, and no others.
func (v *veth) wantAhead(want ...string) {
	v.t.Helper()
	index := v.device().Index
	var got []string
	var err error
	v.client.Do(func() { got, err = v.Attacher.Ahead(index) })
	if err != nil || !slices.Equal(got, want) {
		v.t.Errorf("ahead %q, error %v; want %q", got, err, want)
	}
}

// inChain is what is to be told of a tcx program.
func inChain(t *testing.T, d direction, p *testbed.Bystander) string {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return fmt.Sprintf("%s: tcx program %d (`bpftool prog show id %d`)", d, id, id)
}

// TestProgramsAheadInTheChain are told of in the order in which they run, those
// behind ours are not.
func TestProgramsAheadInTheChain(t *testing.T) {
	needTCX(t)
	v := newVeth(t, TCX)
	v.attach()
	v.wantAhead()
	v.join(ebpf.AttachTCXIngress, link.Tail())
	v.join(ebpf.AttachTCXEgress, link.Tail())
	v.clsact() // and filters come after any tcx program
	v.foreign("ingress", "prio", "1")
	v.wantAhead()
	out := inChain(t, egress, v.join(ebpf.AttachTCXEgress, link.Head()))
	v.wantAhead(out)
	second := inChain(t, ingress, v.join(ebpf.AttachTCXIngress, link.Head()))
	first := inChain(t, ingress, v.join(ebpf.AttachTCXIngress, link.Head()))
	v.wantAhead(first, second, out)
}

// TestFiltersAheadOfOurs are told of, once each, but for those of another flatd.
func TestFiltersAheadOfOurs(t *testing.T) {
	tc := testbed.Tool(t, "tc")
	v := newVeth(t, Clsact)
	v.clsact()
	v.foreign("ingress", "chain", "1", "prio", "1") // where nothing leads
	v.attach()
	v.foreign("ingress", "prio", "11")
	v.foreign("egress", "prio", "49152")
	v.wantAhead()

	other := openState(t, testbed.BPFFS(t))
	other.Attacher.SetMode(Clsact)
	device := v.device()
	var err error
	v.client.Do(func() { _, err = other.Attacher.Attach(device) })
	if err != nil {
		t.Fatal(err)
	}
	v.wantAhead() // it runs before ours, and swallows nothing

	v.foreign("egress", "prio", "1")
	for _, peer := range []string{"192.0.2.1", "192.0.2.2"} {
		testbed.Run(t, tc, "-n", v.client.Name, "filter", "add", "dev", "eth0", "ingress", "prio", "3", "protocol", "ip",
			"u32", "match", "ip", "src", peer)
	}
	in := "ingress: tc filter of priority 3, u32 (`tc filter show`)"
	out := "egress: tc filter of priority 1, bpf \"bystander:[*fsobj]\" (`tc filter show`)"
	v.wantAhead(in, out)
	if HaveTCX() == nil {
		v.wantAhead(inChain(t, ingress, v.join(ebpf.AttachTCXIngress, link.Head())), in, out)
	}
}
