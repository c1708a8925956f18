package links

import (
	"slices"
	"testing"

	"github.com/flatd/flatd/bpf"
)

func TestWish(t *testing.T) {
	named := func(name string) device { return device{Interface: bpf.Interface{Name: name}} }
	eth0, eth1, veth0, lo, port := named("eth0"), named("eth1"), named("veth0"), named("lo"), named("eth2")
	eth0.Default = true
	eth1.AltNames = []string{"enp7s0f1", "a-name-of-more-than-15-bytes"}
	port.Enslaved = true
	port.Default = true
	all := []device{eth0, eth1, veth0, lo, port}

	for _, c := range []struct {
		name                string
		interfaces, exclude []string
		want                []string
	}{
		{"auto is what has a default route, and no port", []string{"auto"}, nil, []string{"eth0"}},
		{"auto may be excluded", []string{"auto"}, []string{"eth*"}, nil},
		{"a glob takes neither lo nor ports", []string{"*"}, nil, []string{"eth0", "eth1", "veth0"}},
		{"a glob takes no excluded one", []string{"*"}, []string{"veth*"}, []string{"eth0", "eth1"}},
		{"a name wins over everything", []string{"lo", "veth0", "eth2"}, []string{"*"}, []string{"veth0", "lo", "eth2"}},
		{"both", []string{"auto", "lo"}, []string{"veth*"}, []string{"eth0", "lo"}},
		{"an alternative name", []string{"enp7s0f1"}, []string{"*"}, []string{"eth1"}},
		{"a long alternative name", []string{"a-name-of-more-than-15-bytes"}, nil, []string{"eth1"}},
		{"a glob of alternative names", []string{"enp*"}, nil, []string{"eth1"}},
		{"an excluded alternative name", []string{"eth*"}, []string{"enp7s0f1"}, []string{"eth0"}},
		{"none", []string{"wlan0"}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, d := range desired(all, c.interfaces, c.exclude) {
				got = append(got, d.Name)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("desired(%q, %q) = %q, want %q", c.interfaces, c.exclude, got, c.want)
			}
		})
	}
	if got := absent(all, []string{"auto", "eth*", "eth0", "enp7s0f1", "eth9"}); !slices.Equal(got, []string{"eth9"}) {
		t.Errorf("absent: %q", got)
	}
}

func TestLinkLayer(t *testing.T) {
	for encap, l3 := range map[string]bool{"ether": false, "loopback": false, "none": true, "ppp": true, "ipip": true} {
		if got, unsupported := linkLayer(encap); got != l3 || unsupported != "" {
			t.Errorf("%s: l3 %t, unsupported %q", encap, got, unsupported)
		}
	}
	if _, unsupported := linkLayer("infiniband"); unsupported != "infiniband" {
		t.Errorf("infiniband is said to be supported")
	}
}
