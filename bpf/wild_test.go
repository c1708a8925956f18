package bpf

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed/tshark"
	"github.com/flatd/flatd/packaging/testbed/wild"
)

// TestCapturesFromTheWild runs the packets of captures that others made through
// the programs, once with the host that spoke first as this one, once from the
// other end, and has tshark judge which exchanges they find: on the outermost
// layer of IP, every one, once, and no other.
//
// What is not asked, because nobody could answer:
//   - packets between hosts that a line with one host on it does not show, in
//     captures taken on a line with more (tshark.Hosts);
//   - whether a UDP flow was idle in between: the packets come faster here than
//     they once did, so that to both judges a flow is one exchange;
//   - how often a datagram was sent again before its answer: of those that follow
//     each other at once only one is noted;
//   - how long things took, for the same reason. Real traffic is judged by that
//     in the tests of package daemon.
func TestCapturesFromTheWild(t *testing.T) {
	captures := wild.Captures(t)
	file := filepath.Join(t.TempDir(), "all.pcap")
	if err := wild.Write(file, captures); err != nil {
		t.Fatal(err)
	}
	packets := tshark.Read(t, file)
	w := newWilderness(t)
	for _, c := range captures {
		of := packets[:len(c.Frames)]
		packets = packets[len(c.Frames):]
		hosts := tshark.Divide(of)
		w.play(c, of, hosts)
		w.play(c, of, hosts.Others())
	}
	t.Logf("%d captures: %d packets seen from two ends, %d exchanges found there; %d packets had no place, %d were too short to run",
		len(captures), w.run, w.found, w.unplaced, w.refused)
	// A set of captures that holds next to nothing proves next to nothing.
	if w.found < 1000 {
		t.Errorf("only %d exchanges in all of the captures", w.found)
	}
}

// wilderness is the programs, and what became of the packets.
type wilderness struct {
	*kernel
	run, found, unplaced, refused int
}

func newWilderness(t *testing.T) *wilderness {
	t.Helper()
	return &wilderness{kernel: openKernel(t)}
}

// play runs one capture's packets as the host sees them.
func (w *wilderness) play(c wild.Capture, packets []tshark.Packet, hosts tshark.Hosts) {
	w.clear()
	// Nor may what one capture awaits take the place of what the next does.
	clear(w.shared.Awaiting[:])
	judge := tshark.NewJudge()
	want := w.books()
	for i, f := range c.Frames {
		p := &packets[i]
		ways := hosts.Ways(p)
		if len(ways) == 0 {
			w.unplaced++
		}
		for _, out := range ways {
			if !w.pass(f.Bytes, out) {
				continue
			}
			judge.Add(p, out)
			if p.LaterFragment() {
				want["fragment"]++
			}
		}
	}
	w.found += len(judge.Found)
	want["requests"] += uint64(judge.Requests)
	for _, f := range judge.Found {
		if f.Late {
			want["late"]++
		} else {
			want["finished"]++
		}
	}
	w.compare(c.Name, judge)
	got := w.books()
	for _, name := range []string{"requests", "finished", "late", "fragment", "ring_full", "pending_full", "awaiting_full"} {
		if got[name] != want[name] {
			w.t.Errorf("%s: counter %s is off by %d", c.Name, name, int64(got[name]-want[name]))
		}
	}
}

// books are the counters by their names.
func (w *wilderness) books() map[string]uint64 {
	w.t.Helper()
	counters, err := w.Counters()
	if err != nil {
		w.t.Fatal(err)
	}
	books := make(map[string]uint64)
	for i, value := range counters {
		books[Counter(i).String()] = value
	}
	return books
}

// pass runs a frame through a program, unless it is too short for the kernel
// to let it.
func (w *wilderness) pass(frame []byte, out bool) bool {
	program := w.programs.FlatIngress
	if out {
		program = w.programs.FlatEgress
	}
	const always = 14 + 40 // Ethernet and IPv6
	verdict, after, err := program.Test(frame)
	switch {
	case err != nil && len(frame) < always:
		w.refused++
		return false
	case err != nil:
		w.t.Errorf("run %d bytes: %v", len(frame), err)
	case int32(verdict) != -1:
		w.t.Errorf("verdict %d, want -1: % x", int32(verdict), frame)
	case !bytes.Equal(after, frame):
		w.t.Errorf("the packet was altered:\n% x\n% x", frame, after)
	}
	w.run++
	return true
}

// compare wants the same exchanges, and the same said of each.
func (w *wilderness) compare(name string, judge *tshark.Judge) {
	w.t.Helper()
	events := make(map[tshark.Exchange][]said)
	var got []tshark.Exchange
	for {
		raw, _, ok := w.reader.Next()
		if !ok {
			break
		}
		var e flows.Event
		if err := flows.Decode(raw, &e); err != nil {
			w.t.Fatalf("%s: %v", name, err)
		}
		w.reader.Commit()
		// The event has no need of what an echo is known by.
		x := exchangeOf(&e, (*kernelFlatRecord)(unsafe.Pointer(&raw[0])).Id)
		got = append(got, x)
		events[x] = append(events[x], saidBy(&e))
	}
	missing, invented := tshark.Differences(tshark.Exchanges(judge.Found), got)
	for _, x := range missing {
		w.t.Errorf("%s: missing: %s", name, x)
	}
	for _, x := range invented {
		w.t.Errorf("%s: invented: %s", name, x)
	}
	for _, f := range judge.Found {
		all := events[f.Exchange]
		if len(all) == 0 {
			continue
		}
		got, want := all[0], saidOf(&f)
		if f.Kind == "udp" {
			got.repeats, want.repeats = min(got.repeats, 1), min(want.repeats, 1)
		}
		if want.name == "" {
			got.name = ""
		}
		if got != want {
			w.t.Errorf("%s: packet %d: %s\n got %+v\nwant %+v", name, f.Frame, f.Exchange, got, want)
		}
		events[f.Exchange] = all[1:]
	}
}

func exchangeOf(e *flows.Event, id uint32) tshark.Exchange {
	return tshark.Exchange{
		Kind:   strings.TrimPrefix(e.Dataset(), "flatd."),
		Side:   e.Side.String(),
		Source: e.Source, Destination: e.Destination,
		Result: e.ResultName(),
		ID:     id,
	}
}

// said is what flatd and tshark know of an exchange beside which it is.
type said struct {
	repeats, vlan, ttl int
	name               string // of the DNS question
	icmp               [2]int // type and code of the error
	late               bool
}

func saidBy(e *flows.Event) said {
	return said{int(e.Retransmits), int(e.VLAN), int(e.TTL), string(e.DNS.AppendName(nil)), [2]int{int(e.ICMPType), int(e.ICMPCode)}, e.Late}
}

func saidOf(f *tshark.Found) said {
	return said{f.Repeats, f.VLAN, f.TTL, f.Name, f.Error, f.Late}
}
