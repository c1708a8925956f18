package daemon

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
)

// refusedByVerifier are the edits of a release whose usual programs a verifier refuses:
// flat_ingress begins with a register that nothing has written.
var refusedByVerifier = []testbed.Edit{{
	File: "bpf/load.go", Old: `object{"flat", specOf(loadKernel)}`,
	New: `object{"flat", specOf(func() (*ebpf.CollectionSpec, error) {
		spec, err := loadKernel()
		if err == nil {
			first := &spec.Programs[kernelProgFlatIngress].Instructions[0]
			*first = asm.Mov.Reg(asm.R6, asm.R9).WithMetadata(first.Metadata)
		}
		return spec, err
	})}`,
}}

// TestTheOtherObjectIsUsedWhereOneIsRefused, and said so: at a first start, at a restart,
// and after an upgrade from programs that the kernel took, which finish what they began.
func TestTheOtherObjectIsUsedWhereOneIsRefused(t *testing.T) {
	refused := testbed.BuildVaried(t, "flatd", refusedByVerifier...)
	isRefused := func(p *process, start string) {
		t.Helper()
		s := p.status()
		if s.Programs != "flat510" || !strings.Contains(s.Refused, "R9 !read_ok") || s.Start != start {
			t.Errorf("start %q with programs %q, refused: %q; want %q with flat510, and why", s.Start, s.Programs, s.Refused, start)
		}
	}
	t.Run("first start", func(t *testing.T) {
		client, server := testbed.Pair(t)
		s := newSetup(t, client, refused, "")
		tr := newTraffic(t, client, server)
		p := s.start(t)
		isRefused(p, "fresh")
		tr.connect(server.V4)
		p.waitN("the handshake", 1, isResult("established", "client"))
		p.end(syscall.SIGTERM)
		tr.connectRefused(server.V6)
		p = s.start(t)
		isRefused(p, "adopt")
		p.waitN("the refusal", 1, isResult("refused", "client"))
		booksBalance(t, p)
		p.end(syscall.SIGTERM)
		s.detach(t)
	})
	t.Run("upgrade", func(t *testing.T) {
		client, server := testbed.Pair(t)
		s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"2s\"\n")
		tr := newTraffic(t, client, server)
		p := s.start(t)
		if s := p.status(); s.Programs != "flat" || s.Refused != "" {
			t.Fatalf("programs %q, refused: %q", s.Programs, s.Refused)
		}
		p.end(syscall.SIGTERM)
		from := netip.MustParseAddrPort(client.V4 + ":10000")
		defer syscall.Close(tr.begin(from, netip.AddrPortFrom(netip.MustParseAddr(silentV4), tcpPort)))
		s.binary = refused
		p = s.start(t)
		isRefused(p, "beside")
		p.takenOver()
		tr.connect(server.V4)
		p.waitN("the handshake", 1, isResult("established", "client"))
		p.waitN("the timeout from before", 1, isResult("timeout", "client"))
		if b := booksBalance(t, p).Books; b.TakenOver != 1 || b.Requests != 1 {
			t.Errorf("one attempt before the upgrade, one after it: %+v", b)
		}
		p.end(syscall.SIGTERM)
		p = s.start(t)
		isRefused(p, "adopt")
		p.end(syscall.SIGTERM)
		s.detach(t)
	})
}
