package api

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
)

func TestQueryMatches(t *testing.T) {
	e := flows.Event{
		Kind: flows.KindTCP, Side: flows.SideClient, Result: flows.ResultEstablished, Duration: 5 * time.Millisecond,
		Source: netip.MustParseAddrPort("192.0.2.1:40000"), Destination: netip.MustParseAddrPort("[2001:db8::1]:443"),
		Interface: flows.Interface{Name: "eth0"}, Time: time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC),
		Owner: flows.OwnerOf("/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service"),
	}
	for text, want := range map[string]bool{
		"":                                 true,
		"kind=tcp":                         true,
		"kind=dns,udp":                     false,
		"kind=dns&kind=tcp":                true,
		"side=server":                      false,
		"result=established,refused":       true,
		"result=refused":                   false,
		"peer=192.0.2.0/24":                true,
		"peer=2001:db8::1":                 true,
		"peer=192.0.2.2":                   false,
		"to=2001:db8::/32":                 true,
		"to=192.0.2.1":                     false,
		"from=10.0.0.0/8,192.0.2.0/24":     true,
		"from=2001:db8::1":                 false,
		"from=192.0.2.1&to=2001:db8::1":    true,
		"from=::ffff:192.0.2.1":            true,
		"since=2026-11-22T13:00:00Z":       true,
		"since=2026-11-22T13:00:00.1Z":     false,
		"port=443":                         true,
		"port=40000":                       true,
		"port=80,22":                       false,
		"interface=eth1":                   false,
		"unit=sync.service":                true,
		"unit=sync":                        true,
		"unit=nginx,sync":                  true,
		"unit=user@1000.service":           true,
		"unit=sync.scope":                  false,
		"unit=nginx.service":               false,
		"slower=5ms":                       true,
		"slower=6ms":                       false,
		"kind=tcp&port=443&side=client":    true,
		"kind=tcp&port=443&result=timeout": false,
	} {
		values, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseEventsQuery(values)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := q.Match(&e); got != want {
			t.Errorf("%q matches: %t, want %t", text, got, want)
		}
	}
}

// An event whose unit is unknown is of no unit.
func TestQueryUnitUnknown(t *testing.T) {
	for text, want := range map[string]bool{"": true, "unit=nginx": false} {
		values, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseEventsQuery(values)
		if err != nil {
			t.Fatal(err)
		}
		if got := q.Match(&flows.Event{Kind: flows.KindTCP}); got != want {
			t.Errorf("%q matches: %t, want %t", text, got, want)
		}
	}
}

// A duration is so long ago.
func TestQuerySinceDuration(t *testing.T) {
	q, err := ParseEventsQuery(url.Values{"since": {"1h"}})
	if err != nil {
		t.Fatal(err)
	}
	for ago, want := range map[time.Duration]bool{0: true, 50 * time.Minute: true, 2 * time.Hour: false} {
		if got := q.Match(&flows.Event{Time: time.Now().Add(-ago)}); got != want {
			t.Errorf("%v ago: %t, want %t", ago, got, want)
		}
	}
}

func TestHistogramQuery(t *testing.T) {
	part := HistogramPart{Interface: "eth0", Kind: "tcp", Side: "client", Family: "ipv4", Result: "established"}
	for text, want := range map[string]bool{
		"": true, "kind=tcp,dns": true, "kind=dns": false, "side=client&family=ipv4": true, "family=ipv6": false,
		"interface=lo&interface=eth0": true, "interface=lo": false, "result=established": true, "result=refused": false,
	} {
		values, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseHistogramQuery(values)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got := q.Match(&part); got != want {
			t.Errorf("%q matches: %t, want %t", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"kind=status":     "must be one of tcp, dns, udp, icmp",
		"family=6":        "must be one of ipv4, ipv6",
		"result=nxdomain": "must be one of established, answered, refused, unreachable",
		"side=":           "must be one of client, server",
		"to=10.0.0.1":     "known are kind, side, interface, family, result",
	} {
		values, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseHistogramQuery(values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one that says %q", text, err, want)
		}
	}
}

func TestQueryRefusesWithReason(t *testing.T) {
	for text, want := range map[string]string{
		"limit=-1":        "from 0 to 1024",
		"limit=many":      "limit",
		"kind=sctp":       "tcp, dns, udp, icmp",
		"side=left":       "client, server",
		"peer=10.0.0/8":   "10.0.0.0/8",
		"port=70000":      "not a port",
		"to=example.com":  "neither an address nor a prefix",
		"result=timout":   "established, answered, refused",
		"since=yesterday": "neither a duration",
		"since=-10m":      "neither a duration",
		"slower=-1s":      "not a duration",
		"slower=fast":     "slower",
		"unit=a b":        "not the name of a unit",
		"unit=":           "not the name of a unit",
		"follow=perhaps":  "follow",
		"format=yaml":     "json, text",
		"colour=blue":     "unknown parameter",
		"limit=1&prot=17": `"prot"`,
	} {
		values, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseEventsQuery(values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one that says %q", text, err, want)
		}
	}
}
