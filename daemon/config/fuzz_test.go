package config

import (
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/packaging"
)

// Whatever is in a file, Parse returns: a configuration that holds its own
// invariants, or messages that each name the file and can be shown on a
// terminal.
func FuzzParse(f *testing.F) {
	everything, err := os.ReadFile("testdata/everything.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(everything))
	f.Add(uncomment(packaging.Config))
	f.Add("attach = \"tc\"\n[mesure]\n[[filter]]\noutputs.\"a.b\" = {c = [1]}")
	f.Add("filter.include = [\"10.0.0.1/8\", \"::ffff:1.2.3.4/97\"]\nfilter.ports = [\"9-1\", 0]")
	f.Add("outputs.nats.url = \"nats://a,b@c,:%\"\nkeep_for = inf")
	f.Add("a = 0b\x00")
	f.Add("\"\u202e\x1b\" = 1\n'\r' = 1")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(File{"f", text})
		if err == nil {
			checkInvariants(t, c)
			return
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !strings.HasPrefix(line, "f:") || strings.ContainsFunc(line, func(r rune) bool { return !strconv.IsPrint(r) }) {
				t.Errorf("message is %q", line)
			}
		}
	})
}

func checkInvariants(t *testing.T, c Config) {
	t.Helper()
	m, f := &c.Measure, &c.Filter
	if len(c.Interfaces) == 0 || len(m.Kinds) == 0 || len(m.Sides) == 0 || len(m.DNSPorts) == 0 ||
		len(m.DNSPorts) > bpf.MaxDNSPorts || len(f.Ports) > bpf.MaxPortRanges || len(f.Include)+len(f.Exclude) > bpf.MaxNets {
		t.Errorf("a list has a length out of bounds: %+v", c)
	}
	for _, p := range append(f.Include, f.Exclude...) {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
			t.Errorf("prefix %v", p)
		}
	}
	for _, r := range f.Ports {
		if r.First == 0 || r.First > r.Last {
			t.Errorf("ports %v", r)
		}
	}
	if m.Timeout <= f.MinDuration || m.Slow <= 0 || m.UDPInterval <= 0 || c.KeepFor < 0 || f.Sample == 0 {
		t.Errorf("a number out of bounds: %+v", c)
	}
	if !reflect.DeepEqual(c, c) {
		t.Errorf("not equal to itself: %+v", c)
	}
}
