package links

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/flatd/flatd/packaging/testbed"
)

// The kernel is asked, so it does not matter how a default route is made.
func TestDefaultInterfaces(t *testing.T) {
	for name, c := range map[string]struct {
		commands []string // of ip(8), on a host with eth0, up1 and up2
		want     []string
	}{
		"no route":              {nil, nil},
		"a default route":       {[]string{"route add default via 10.99.0.2"}, []string{"eth0"}},
		"one of IPv6":           {[]string{"-6 route add default via fd99::2"}, []string{"eth0"}},
		"a device":              {[]string{"route add default dev up1"}, []string{"up1"}},
		"a more specific route": {[]string{"route add 45.0.0.0/8 dev up1", "route add 160.0.0.0/3 dev up1"}, nil},
		"one beside a default route": {[]string{"route add default dev eth0", "route add 45.0.0.0/8 dev up1"},
			[]string{"eth0"}},
		"halves": {[]string{"route add default dev eth0", "route add 0.0.0.0/1 dev up1", "route add 128.0.0.0/1 dev up2"},
			[]string{"up1", "up2"}},
		"parts of IPv6":      {[]string{"-6 route add 2000::/4 dev up1", "-6 route add 3000::/4 dev up2"}, []string{"up1", "up2"}},
		"the whole of 2000":  {[]string{"-6 route add 2000::/3 dev up1"}, []string{"up1"}},
		"several nexthops":   {[]string{"route add default nexthop dev up1 nexthop dev up2"}, []string{"up1", "up2"}},
		"a nexthop object":   {[]string{"nexthop add id 7 via 10.99.0.2 dev eth0", "route add default nhid 7"}, []string{"eth0"}},
		"another table":      {[]string{"route add default dev up1 table 100", "rule add from all table 100"}, []string{"up1"}},
		"a table of nobody":  {[]string{"route add default dev up1 table 100"}, nil},
		"a mark":             {[]string{"route add default dev eth0", "route add default dev up1 table 100", "rule add fwmark 5 table 100"}, []string{"eth0", "up1"}},
		"a source":           {[]string{"route add default dev up1 table 100", "rule add from 10.99.0.0/24 table 100"}, []string{"up1"}},
		"a user":             {[]string{"route add default dev up1 table 100", "rule add uidrange 5000-5001 table 100"}, []string{"up1"}},
		"all but a mark":     {[]string{"route add default dev eth0", "route add default dev up1 table 51820", "rule add not fwmark 51820 table 51820", "rule add table main suppress_prefixlength 0"}, []string{"eth0", "up1"}},
		"a route to nowhere": {[]string{"route add blackhole default"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			host, _ := testbed.Pair(t)
			for _, up := range []string{"up1", "up2"} {
				testbed.Run(t, "ip", "-n", host.Name, "link", "add", up, "type", "veth", "peer", "name", "of-"+up)
				testbed.Run(t, "ip", "-n", host.Name, "link", "set", "of-"+up, "up")
				testbed.Run(t, "ip", "-n", host.Name, "link", "set", up, "up")
			}
			for _, command := range c.commands {
				testbed.Run(t, "ip", append([]string{"-n", host.Name}, strings.Fields(command)...)...)
			}
			var got []string
			for _, compat := range []string{"1", "0"} {
				host.Do(func() {
					if out, err := host.Command("sysctl", "-qw", "net.ipv4.nexthop_compat_mode="+compat).CombinedOutput(); err != nil {
						t.Errorf("%v: %s", err, out)
					}
					all, err := netlink.LinkList()
					if err != nil {
						t.Error(err)
						return
					}
					found, err := defaultInterfaces(all)
					if err != nil {
						t.Error(err)
					}
					got = nil
					for _, l := range all {
						if found[l.Attrs().Index] {
							got = append(got, l.Attrs().Name)
						}
					}
					slices.Sort(got)
					if !slices.Equal(got, c.want) {
						t.Errorf("%q of %v, want %q", got, slices.Collect(maps.Keys(found)), c.want)
					}
				})
			}
		})
	}
}
