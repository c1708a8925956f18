package bpf

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is committed in testdata anew")

// pathCosts has, for each class of packets, what the programs execute for one:
// instructions of the object flat510 and calls of helpers, then the same of flat.
const pathCosts = "testdata/path_costs.txt"

// pathCost is what a program executes for one packet.
type pathCost struct{ instructions, calls int }

// tolerance is by how much a path may get longer before anybody is told: an
// instruction or two that the compiler places otherwise mean nothing.
const tolerance = 0.03

// dearer says by how much now is more than before, or is "".
func (now pathCost) dearer(before pathCost) string {
	more := now.instructions - before.instructions
	if now.calls > before.calls || more > 2 && float64(more) > tolerance*float64(before.instructions) {
		return fmt.Sprintf("%d instructions and %d calls, was %d and %d (%+.1f %%)", now.instructions, now.calls,
			before.instructions, before.calls, 100*float64(more)/float64(before.instructions))
	}
	return ""
}

func (now pathCost) cheaper(before pathCost) bool { return before.dearer(now) != "" }

// costs are those of each class, by its name, family and direction.
func (x *interpreter) costs() map[string]pathCost {
	all := make(map[string]pathCost)
	see := func(name string, p packet) {
		x.run(programFor(p), p.frame)
		all[name] = pathCost{x.instructions, x.calls}
	}
	for _, family := range families {
		for _, class := range packetClasses {
			x.clear()
			if class.prepare != nil {
				for _, p := range class.prepare(x.t, family.flow) {
					x.run(programFor(p), p.frame)
				}
			}
			see(class.name+"/"+family.name+"/egress", out(class.frame(x.t, family.flow)))
			see(class.name+"/"+family.name+"/ingress", in(class.frame(x.t, family.flow.back())))
		}
		for _, class := range exchangeClasses {
			x.clear()
			f := family.flow
			for range 2 { // the first of a kind also makes its histogram
				see(class.name+"-request/"+family.name+"/client", out(class.request(x.t, f)))
				see(class.name+"-answer/"+family.name+"/client", in(class.answer(x.t, f)))
				f = f.sourcePort(f.from.Port() + 1)
				see(class.name+"-request/"+family.name+"/server", in(class.request(x.t, f.back())))
				see(class.name+"-answer/"+family.name+"/server", out(class.answer(x.t, f.back())))
				f = f.sourcePort(f.from.Port() + 1)
			}
		}
	}
	return all
}

// TestPathsGetNoLonger counts what the programs execute for a packet of each
// class, and compares that with what is committed. Unlike time, it is the same
// on every machine. If a path is to be longer, write the figures anew:
//
//	go test ./bpf -run TestPathsGetNoLonger -update
func TestPathsGetNoLonger(t *testing.T) {
	objects := interpreted(t)
	old, recent := objects["flat510"].costs(), objects["flat"].costs()
	if *update {
		writeCosts(t, old, recent)
	}
	oldBefore, recentBefore := readCosts(t)
	for _, v := range []struct {
		object      string
		now, before map[string]pathCost
	}{{"flat510", old, oldBefore}, {"flat", recent, recentBefore}} {
		for _, name := range slices.Sorted(maps.Keys(v.now)) {
			now, before := v.now[name], v.before[name]
			switch {
			case before == pathCost{}:
				t.Errorf("%s has no line in %s; write it with -update", name, pathCosts)
			case now.dearer(before) != "":
				t.Errorf("%s, of %s: %s", name, v.object, now.dearer(before))
			case now.cheaper(before):
				t.Logf("%s, of %s: %d instructions, was %d; keep that with -update", name, v.object, now.instructions, before.instructions)
			}
		}
		if len(v.before) != len(v.now) {
			t.Errorf("%s has %d lines for %d classes; write it with -update", pathCosts, len(v.before), len(v.now))
		}
	}
}

// An ordinary segment is parsed, and no more.
func TestDataPaysForParsingAlone(t *testing.T) {
	for object, x := range interpreted(t) {
		for name, cost := range x.costs() {
			if strings.HasPrefix(name, "tcp-data") && cost.calls > 0 || strings.HasPrefix(name, "tcp-ack") && cost.calls > 0 {
				t.Errorf("%s, of %s: %d calls", name, object, cost.calls)
			}
		}
	}
}

// The comparison must be able to fail.
func TestDearerPathsAreTold(t *testing.T) {
	before := pathCost{100, 3}
	for now, dearer := range map[pathCost]bool{
		{100, 3}: false, {102, 3}: false, {103, 3}: false, {104, 3}: true, {90, 4}: true, {90, 3}: false,
	} {
		if got := now.dearer(before) != ""; got != dearer {
			t.Errorf("%v after %v: dearer %t", now, before, got)
		}
	}
	if short := (pathCost{22, 0}); short.dearer(pathCost{20, 0}) != "" {
		t.Error("two instructions are told")
	}
}

func writeCosts(t *testing.T, old, recent map[string]pathCost) {
	t.Helper()
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(old)) {
		fmt.Fprintf(&text, "%s %d %d %d %d\n", name, old[name].instructions, old[name].calls, recent[name].instructions, recent[name].calls)
	}
	if err := os.WriteFile(pathCosts, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readCosts(t *testing.T) (old, recent map[string]pathCost) {
	t.Helper()
	file, err := os.Open(pathCosts)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	old, recent = make(map[string]pathCost), make(map[string]pathCost)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var name string
		var a, b pathCost
		if _, err := fmt.Sscan(lines.Text(), &name, &a.instructions, &a.calls, &b.instructions, &b.calls); err != nil {
			t.Fatalf("%s: %q: %v", pathCosts, lines.Text(), err)
		}
		old[name], recent[name] = a, b
	}
	return old, recent
}
