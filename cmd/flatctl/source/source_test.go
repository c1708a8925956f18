package source

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
)

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"flatd.>", "flatd.>", true}, {">", "flatd.>", true}, {"flatd.>", "flatd.v1.*.tcp.timeout", true},
		{"flatd.v1.*.*.*", "flatd.v1.web1.tcp.>", false}, {"flatd.v1.*.*.*", "flatd.v1.*.tcp.*", true},
		{"flatd.v1.*.*.timeout", "flatd.v1.>", false}, {"flatd.v1.web1.>", "flatd.v1.*.tcp.x", false},
		{"flatd.>", "flatd", false}, {"a.b", "a.b", true}, {"a.b", "a.b.c", false}, {"a.*.c", "a.>", false},
	} {
		if got := covers([]string{"other", c.pattern}, c.subject); got != c.want {
			t.Errorf("%s covers %s: %t", c.pattern, c.subject, got)
		}
	}
}

func TestSeen(t *testing.T) {
	s := newSeen(2)
	for i, c := range []struct {
		id   string
		want bool
	}{{"a", true}, {"b", true}, {"a", false}, {"c", true}, {"b", false}, {"a", true}, {"c", false}} {
		if got := s.add(c.id); got != c.want {
			t.Errorf("%d: %s is new: %t", i, c.id, got)
		}
	}
}

// A connection that breaks within a line loses none of what came before.
func TestReadBreaks(t *testing.T) {
	host := flows.Host{Name: "web1", BootID: "6f1c0d2e"}
	line := string(host.AppendJSON(nil, &flows.Event{
		Kind: flows.KindTCP, Side: flows.SideClient, Result: flows.ResultRefused, Time: time.Unix(0, 0), Duration: 81 * time.Microsecond,
		Source: netip.MustParseAddrPort("192.0.2.1:40000"), Destination: netip.MustParseAddrPort("[2001:db8::1]:7"),
	})) + "\n"
	n := 0
	err := read(io.MultiReader(strings.NewReader(line+line+line[:20])), func(*Report) error { n++; return nil })
	if _, ok := err.(*broken); !ok || n != 2 {
		t.Errorf("%d events, then %v", n, err)
	}
	if err := read(strings.NewReader(line+"{}\n"), func(*Report) error { return nil }); err == nil {
		t.Error("another's JSON is taken")
	}
}
