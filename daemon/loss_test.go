package daemon

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
)

// pings sends n echo requests, each of another sequence number, which the
// server's kernel answers.
func (tr *traffic) pings(n int) {
	tr.t.Helper()
	var conn net.PacketConn
	var err error
	tr.client.Do(func() { conn, err = net.ListenPacket("ip4:icmp", tr.client.V4) })
	if err != nil {
		tr.t.Fatal(err)
	}
	defer conn.Close()
	to := &net.IPAddr{IP: netip.MustParseAddr(tr.server.V4).AsSlice()}
	for seq := range n {
		if _, err := conn.WriteTo(echoRequest(uint16(seq)), to); err != nil {
			tr.t.Fatal(err)
		}
	}
}

// echoRequest is one without data (RFC 792).
func echoRequest(seq uint16) []byte {
	const kind, id = 8 << 8, 0xf1a7
	message := make([]byte, 8)
	binary.BigEndian.PutUint16(message, kind)
	binary.BigEndian.PutUint16(message[4:], id)
	binary.BigEndian.PutUint16(message[6:], seq)
	sum := uint32(kind) + id + uint32(seq)
	binary.BigEndian.PutUint16(message[2:], ^uint16(sum+sum>>16))
	return message
}

// TestAnOverflowWhileAwayIsToldOnce has more happen without flatd than the ring
// can hold.
func TestAnOverflowWhileAwayIsToldOnce(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "summary.interval = \"0s\"\n")
	tr := newTraffic(t, client, server)
	s.start(t).end(syscall.SIGTERM)
	const n = 45000 // a ring of 4 MiB holds 34,952
	tr.pings(n)

	p := s.start(t)
	isLoss := func(e event) bool { return e.Event.Action == "loss" }
	lost := p.wait("the loss", isLoss).Flatd.Lost
	tr.connect(server.V4)
	next := p.wait("a handshake", isResult("established", "client"))
	b := booksBalance(t, p)
	if b.Books.Requests != n+1 || b.Books.RingFull != lost || lost == 0 || lost >= n {
		t.Errorf("%d pings and a handshake were made, %d lost: %+v", n, lost, b.Books)
	}
	if b.Outputs[0].Dropped > 0 {
		t.Errorf("what the ring had kept was dropped by the queue: %+v", b.Outputs[0])
	}
	if !slices.ContainsFunc(b.Problems, func(problem string) bool { return strings.Contains(problem, "events lost") }) {
		t.Errorf("status says nothing of the loss: %q", b.Problems)
	}
	all := p.end(syscall.SIGKILL)
	var sequences []uint64
	told := 0
	for _, e := range all {
		switch {
		case isLoss(e):
			told++
		case e.Event.Dataset == "flatd.icmp":
			sequences = append(sequences, e.Event.Sequence)
			if !e.Flatd.Replayed {
				t.Fatalf("not replayed: %s", e)
			}
		}
	}
	if told != 1 {
		t.Errorf("the loss was told %d times", told)
	}
	if uint64(len(sequences)) != n-lost {
		t.Errorf("%d pings were reported and %d lost, of %d", len(sequences), lost, n)
	}
	if last := slices.Max(sequences); next.Event.Sequence != last+lost+1 {
		t.Errorf("sequence %d after %d, with %d lost", next.Event.Sequence, last, lost)
	}

	p = s.start(t)
	booksBalance(t, p)
	if again := slices.DeleteFunc(p.end(syscall.SIGTERM), func(e event) bool { return !isLoss(e) }); len(again) != 0 {
		t.Errorf("the loss is told again: %v", again)
	}
}
