package bpf

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// layoutFile has ABI and what has that number: the maps, variables and records,
// with where in them each member is.
const layoutFile = "testdata/layout.txt"

// TestLayoutHasItsNumber compares the layout of what is pinned with what is
// committed. State of another layout under the same number would be taken for
// flatd's own, or stop it at its start. Under the same number spare members may get
// names, and counters may be added. Raise ABI before any other change of the layout is
// released. Then, or after such a change, write the file anew:
//
//	go test ./bpf -run TestLayoutHasItsNumber -update
func TestLayoutHasItsNumber(t *testing.T) {
	now := layoutText(t)
	before, err := os.ReadFile(layoutFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) == now {
		return
	}
	sameABI := strings.HasPrefix(string(before), fmt.Sprintf("ABI %d\n", ABI))
	var problems []string
	if sameABI {
		problems = incompatible(string(before), now)
	}
	if *update && len(problems) == 0 {
		if err := os.WriteFile(layoutFile, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, problem := range problems {
		t.Error(problem)
	}
	if len(problems) > 0 {
		t.Errorf("the layout is not that of ABI %d any more: raise it (layout.go)", ABI)
	} else {
		t.Errorf("%s has to be written anew, with -update", layoutFile)
	}
}

// incompatible says in what programs and maps of one layout cannot be used by those who
// expect the other: in anything but names for spare members, and more counters.
func incompatible(before, now string) (problems []string) {
	was, is := parsedLayout(before), parsedLayout(now)
	for name := range was {
		if _, ok := is[name]; !ok {
			problems = append(problems, "gone: "+name)
		}
	}
	for name, line := range is {
		old, ok := was[name]
		switch {
		case !ok:
			problems = append(problems, "new: "+name)
		case strings.HasSuffix(name, " flat_counter"):
			problems = append(problems, movedCounters(name, old, line)...)
		case old.head != line.head:
			problems = append(problems, fmt.Sprintf("%s: %s, was %s", name, line.head, old.head))
		default:
			problems = append(problems, movedMembers(name, old, line)...)
		}
	}
	return problems
}

// layoutLine is a line behind the name that it begins with: a map, a variable, or a
// type, whose members are each at an offset.
type layoutLine struct {
	head    string
	size    int
	members map[int][]string // at an offset: several in a union
	order   []string
}

// parsedLayout are the lines by what they are about. Unions have no names: their
// members distinguish them.
func parsedLayout(text string) map[string]layoutLine {
	all := make(map[string]layoutLine)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, rest, _ := strings.Cut(line, ":")
		if object, kind, ok := strings.Cut(name, " "); ok && strings.HasPrefix(kind, "union,") {
			name, rest = object+" "+line, ""
		}
		l := layoutLine{members: make(map[int][]string)}
		if name, size, ok := strings.Cut(name, ", "); ok && rest != "" {
			l.order, l.head = strings.Fields(rest), size
			fmt.Sscan(size, &l.size)
			for _, m := range l.order {
				member, at, _ := strings.Cut(m, "@")
				offset, _ := strconv.Atoi(at)
				l.members[offset] = append(l.members[offset], member)
			}
			all[name] = l
			continue
		}
		if strings.HasSuffix(name, " flat_counter") {
			l.order = strings.Fields(rest)
		} else {
			l.head = rest
		}
		all[name] = l
	}
	return all
}

func isSpare(members []string) bool { return strings.HasPrefix(members[0], "spare") }

// movedMembers says which members are not where they were, and which are new where
// nothing was spare.
func movedMembers(name string, was, is layoutLine) (problems []string) {
	for offset, members := range was.members {
		if !isSpare(members) && !slices.Equal(members, is.members[offset]) {
			problems = append(problems, fmt.Sprintf("%s: %v at %d, was %v", name, is.members[offset], offset, members))
		}
	}
	for offset, members := range is.members {
		if was.members[offset] == nil && !isSpare(was.memberAt(offset)) || was.members[offset] != nil && isSpare(members) && !isSpare(was.members[offset]) {
			problems = append(problems, fmt.Sprintf("%s: %v at %d, where nothing was spare", name, members, offset))
		}
	}
	return problems
}

// memberAt is the member in which an offset lies.
func (l *layoutLine) memberAt(offset int) []string {
	for ; offset >= 0; offset-- {
		if members := l.members[offset]; members != nil {
			return members
		}
	}
	return []string{""}
}

// movedCounters says what is wrong with the counters, of which the map has room for
// countersRoom: new ones come last.
func movedCounters(name string, was, is layoutLine) (problems []string) {
	const countersRoom = 128
	kept := len(was.order) - 1 // but for the end
	if len(is.order) <= kept || !slices.Equal(was.order[:kept], is.order[:kept]) || len(is.order)-1 > countersRoom {
		problems = append(problems, name+": not the same counters, with new ones behind them")
	}
	return problems
}

// The comparison must be able to fail.
func TestOnlySpareMembersGetNames(t *testing.T) {
	const before = `ABI 3
flat flat_counter: COUNT_A=0 COUNT_B=1 COUNTERS_END=2
flat flat_one, 32 octets: first@0 second@8 spare@16
flat flat_two, 16 octets: first@0 spare_half@6 union@8
flat map flat_ours: Hash, 8 octets to 144, 61440 entries, flags 0x0
flat union, 8 octets: one@0 other@0
`
	for _, c := range []struct {
		old, new string
		fits     bool
	}{
		{"spare@16", "third@16 spare@24", true},
		{"spare@16", "third@16 fourth@20 fifth@24", true},
		{"spare_half@6", "third@6 fourth@7", true},
		{"COUNTERS_END=2", "COUNT_C=2 COUNTERS_END=3", true},
		{"COUNT_B=1 COUNTERS_END=2", "COUNT_C=1 COUNT_B=2 COUNTERS_END=3", false},
		{" COUNT_B=1 COUNTERS_END=2", " COUNTERS_END=1", false},
		{"second@8", "second@8 third@12", false},
		{"second@8", "another@8", false},
		{"second@8", "spare@8", false},
		{"first@0 second@8", "second@0 first@8", false},
		{"32 octets", "40 octets", false},
		{"to 144", "to 152", false},
		{"61440", "8192", false},
		{"one@0 other@0", "one@0", false},
		{"flat flat_two,", "flat flat_three,", false},
	} {
		now := strings.Replace(before, c.old, c.new, 1)
		if now == before {
			t.Fatalf("there is no %q", c.old)
		}
		if problems := incompatible(before, now); (len(problems) == 0) != c.fits {
			t.Errorf("%q for %q: %q", c.new, c.old, problems)
		}
	}
}

// layoutText describes both objects: a line for each map, type and variable.
func layoutText(t *testing.T) string {
	t.Helper()
	lines := []string{fmt.Sprintf("ABI %d", ABI)}
	for _, of := range []struct {
		object string
		load   func() (*ebpf.CollectionSpec, error)
	}{{"flat510", loadKernel510}, {"flat", loadKernel}} {
		spec, err := of.load()
		if err != nil {
			t.Fatal(err)
		}
		var record *btf.Struct
		if err := spec.Types.TypeByName("flat_dns_record", &record); err != nil {
			t.Fatal(err)
		}
		var counter *btf.Enum
		if err := spec.Types.TypeByName("flat_counter", &counter); err != nil {
			t.Fatal(err)
		}
		types := make(map[string]string)
		describe(types, record)
		describe(types, counter)
		for _, name := range []string{"flat_overdue", "flat_shared_words"} {
			var found *btf.Struct
			if err := spec.Types.TypeByName(name, &found); err != nil {
				t.Fatal(err)
			}
			describe(types, found)
		}
		var found []string
		for name, m := range spec.Maps {
			if name == ".rodata" {
				continue // of the programs, and not pinned
			}
			found = append(found, fmt.Sprintf("map %s: %s, %d octets to %d, %d entries, flags %#x",
				name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, uint32(m.Flags)))
			if name != variablesMap {
				describe(types, m.Key)
				describe(types, m.Value)
			}
		}
		for name, v := range spec.Variables {
			if v.SectionName == variablesMap {
				found = append(found, fmt.Sprintf("variable %s: %d octets at %d", name, v.Size(), v.Offset))
			}
		}
		found = slices.Sorted(slices.Values(slices.AppendSeq(found, maps.Values(types))))
		for _, line := range found {
			lines = append(lines, of.object+" "+line)
		}
	}
	return strings.Join(append(lines, marksText()...), "\n") + "\n"
}

// marksText describes the types that only user space knows.
func marksText() (lines []string) {
	for _, of := range []struct {
		name string
		reflect.Type
	}{{"marksPage", reflect.TypeFor[marks]()}, {"markValues", reflect.TypeFor[markValues]()}, {"Marks", reflect.TypeFor[Marks]()}} {
		line := fmt.Sprintf("%s, %d octets:", of.name, of.Size())
		for i := range of.NumField() {
			f := of.Field(i)
			line += fmt.Sprintf(" %s@%d", f.Name, f.Offset)
		}
		lines = append(lines, line)
	}
	return lines
}

// describe adds a line for a type that has members, and for those of its members.
func describe(lines map[string]string, of btf.Type) {
	var members []btf.Member
	switch of := btf.UnderlyingType(of).(type) {
	case *btf.Array:
		describe(lines, of.Type)
		return
	case *btf.Struct:
		members = of.Members
	case *btf.Union:
		members = of.Members
	case *btf.Enum:
		line := of.TypeName() + ":"
		for _, v := range of.Values {
			line += fmt.Sprintf(" %s=%d", v.Name, v.Value)
		}
		lines[line] = line
	}
	if members == nil {
		return
	}
	size, _ := btf.Sizeof(of)
	line := fmt.Sprintf("%s, %d octets:", cmp.Or(of.TypeName(), "union"), size)
	for _, m := range members {
		line += fmt.Sprintf(" %s@%d", m.Name, m.Offset.Bytes())
		describe(lines, m.Type)
	}
	lines[line] = line // the unions within have no names
}
