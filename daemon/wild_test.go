package daemon

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/tshark"
	"github.com/flatd/flatd/packaging/testbed/wild"
)

// A capture of more packets than this takes too long.
const longestWild = 1500

// TestWildCapturesOnTheWire replays captures that others made across a link,
// seen by a flatd at each end, and has tshark judge what the two report. (All of
// the captures go through the programs in a test of package bpf.)
func TestWildCapturesOnTheWire(t *testing.T) {
	binary := testbed.Build(t, "flatd", "")
	for _, c := range choose(t) {
		// The name becomes a path on a BPF file system, where there are no dots.
		name, _, _ := strings.Cut(filepath.Base(c.Name), ".")
		t.Run(name, func(t *testing.T) {
			left, right := testbed.Pair(t)
			silence(t, left, right)
			// What is not answered is not waited for.
			const config = "measure.timeout = \"60s\"\n"
			near := newSetup(t, left, binary, config).start(t)
			far := newSetup(t, right, binary, config).start(t)
			replay(t, c.Frames, c.packets, c.host, left, right)
			near.judge(t, c.answered("client", c.host), "client")
			far.judge(t, c.answered("server", c.host.Others()), "server")
		})
	}
}

// candidate is a capture and what tshark finds in it.
type candidate struct {
	wild.Capture
	packets []tshark.Packet
	host    tshark.Hosts
	found   map[string]int // exchanges by kind and result
}

// answered is what tshark finds in the capture of a host that has to report it
// on one side, but for what the host says to itself: that is not on a wire.
func (c *candidate) answered(side string, host tshark.Hosts) []tshark.Found {
	judge := tshark.NewJudge()
	for i := range c.packets {
		if ways := host.Ways(&c.packets[i]); len(ways) == 1 {
			judge.Add(&c.packets[i], ways[0])
		}
	}
	return slices.DeleteFunc(judge.Found, func(f tshark.Found) bool { return f.Side != side })
}

// choose picks of each kind of exchange, by its result, the capture in which
// tshark finds most of it.
func choose(t *testing.T) []candidate {
	t.Helper()
	captures := slices.DeleteFunc(wild.Captures(t), func(c wild.Capture) bool { return !fits(c) })
	file := filepath.Join(t.TempDir(), "all.pcap")
	if err := wild.Write(file, captures); err != nil {
		t.Fatal(err)
	}
	packets := tshark.Read(t, file)
	var all []candidate
	kinds := make(map[string]bool)
	for _, c := range captures {
		one := candidate{Capture: c, packets: packets[:len(c.Frames)], found: make(map[string]int)}
		packets = packets[len(c.Frames):]
		one.host = tshark.Divide(one.packets)
		for _, f := range append(one.answered("client", one.host), one.answered("server", one.host)...) {
			kinds[f.Kind+" "+f.Result] = true
			one.found[f.Kind+" "+f.Result]++
		}
		all = append(all, one)
	}
	picked := make(map[string]candidate)
	for kind := range kinds {
		most := slices.MaxFunc(all, func(a, b candidate) int { return cmp.Compare(a.found[kind], b.found[kind]) })
		picked[most.Name] = most
	}
	return slices.SortedFunc(maps.Values(picked), func(a, b candidate) int { return cmp.Compare(a.Name, b.Name) })
}

// fits says whether a capture can be put on a wire as it is.
func fits(c wild.Capture) bool {
	const ethernet, mtu = 14, 1500
	return len(c.Frames) <= longestWild && !slices.ContainsFunc(c.Frames, func(f wild.Frame) bool {
		return len(f.Bytes) < ethernet || len(f.Bytes) > ethernet+mtu || f.Length != len(f.Bytes)
	})
}
