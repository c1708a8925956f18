package bpf

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
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
// flatd's own, or stop it at its start. Raise ABI before a change of the layout is
// released, and write the file anew:
//
//	go test ./bpf -run TestLayoutHasItsNumber -update
func TestLayoutHasItsNumber(t *testing.T) {
	now := layout(t)
	before, err := os.ReadFile(layoutFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) == now {
		return
	}
	sameABI := strings.HasPrefix(string(before), fmt.Sprintf("ABI %d\n", ABI))
	if *update && !sameABI {
		if err := os.WriteFile(layoutFile, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	was, is := strings.Split(string(before), "\n"), strings.Split(now, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			t.Errorf("gone: %s", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			t.Errorf("new:  %s", line)
		}
	}
	if sameABI {
		t.Errorf("the layout is not that of ABI %d any more: raise it (state.go)", ABI)
	} else {
		t.Errorf("%s is of another ABI: write it with -update", layoutFile)
	}
}

// layout describes both kinds of programs: a line for each map, type and variable.
func layout(t *testing.T) string {
	t.Helper()
	lines := []string{fmt.Sprintf("ABI %d", ABI)}
	for _, of := range []struct {
		linux string
		load  func() (*ebpf.CollectionSpec, error)
	}{{"5.10", loadKernel}, {"5.12", loadKernel512}} {
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
			lines = append(lines, of.linux+" "+line)
		}
	}
	// These only user space knows.
	for _, of := range []reflect.Type{reflect.TypeFor[ledgerPage](), reflect.TypeFor[ledgerBooks](), reflect.TypeFor[released](), reflect.TypeFor[claimed]()} {
		line := fmt.Sprintf("%s, %d octets:", of.Name(), of.Size())
		for i := range of.NumField() {
			f := of.Field(i)
			line += fmt.Sprintf(" %s@%d", f.Name, f.Offset)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n") + "\n"
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
