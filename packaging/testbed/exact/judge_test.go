package exact

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// printed is an event as flatd prints it; by is how long after made.
func printed(e Exchange, sequence int, result string) string {
	side := "client"
	if e.Inbound {
		side = "server"
	}
	id, number := fmt.Sprint("boot-", sequence), fmt.Sprintf(`,"sequence":%d`, sequence)
	if sequence < 0 {
		id, number = fmt.Sprint("boot-t", -sequence), ""
	}
	dns := ""
	if e.Kind == "dns" {
		dns = fmt.Sprintf(`"dns":{"id":%d,"question":{"name":%q}},`, e.ID, e.Name)
	}
	return fmt.Sprintf(`{"event":{"id":%q,"dataset":"flatd.%s"%s},"source":{"ip":%q,"port":%d},"destination":{"ip":%q,"port":%d},%s"flatd":{"result":%q,"side":%q}}`+"\n",
		id, e.Kind, number, e.From.Addr(), e.From.Port(), e.To.Addr(), e.To.Port(), dns, result, side)
}

// TestFaultsAreFound has the judge look at every fault there can be.
func TestFaultsAreFound(t *testing.T) {
	var made []Exchange
	for n := range 80 {
		e := outbound(n)
		e.From = netip.MustParseAddrPort("10.99.0.1:4000")
		made = append(made, e)
	}
	made[0].Took = 2 * time.Second
	nobodys := outbound(100)
	nobodys.From = made[0].From
	all := func(but ...int) (text string) {
		for n, e := range made {
			if !slices.Contains(but, n) {
				text += printed(e, n+1, e.Result)
			}
		}
		return text
	}
	for _, c := range []struct {
		name   string
		output []string
		want   string
	}{
		{"well", []string{all()}, ""},
		{"repeated", []string{all(), printed(made[79], 80, made[79].Result)}, ""},
		{"torn", []string{all(79) + `{"event`, printed(made[79], 80, made[79].Result)}, ""},
		{"late", []string{all(0), printed(made[0], 1, "timeout")}, ""},
		{"late answer", []string{all(), printed(made[0], -1, "timeout")}, ""},
		{"missing", []string{all(79)}, "1 exchanges are missing"},
		{"doubled", []string{all(), printed(made[3], 81, made[3].Result)}, "1 events double an exchange under another id"},
		{"wrong", []string{all(3), printed(made[3], 4, "refused")}, "1 events say what was not so"},
		{"false timeout", []string{all(), printed(made[3], -7, "timeout")}, "1 events double an exchange under another id\n1 events say what was not so"},
		{"changed", []string{all(), printed(made[3], 4, "refused")}, "1 events come again and say something else"},
		{"twice", []string{all() + printed(made[3], 4, "established")}, "1 events come twice from one flatd"},
		{"unknown", []string{all(), printed(nobodys, 81, nobodys.Result)}, "1 events are of exchanges that nobody made"},
		{"skipped", []string{all(79), printed(made[79], 90, made[79].Result)}, "10 sequence numbers are skipped, in 1 places, the most at once 10; lost events are not the reason"},
		{"lost", []string{all(79), printed(made[79], 82, made[79].Result), `{"event":{"id":"l","action":"loss"},"flatd":{"lost":2}}` + "\n"}, ""},
		{"preceded", []string{all(), `{"event":{"id":"p","action":"preceded"}}` + "\n"}, "1 warnings of other programs ahead of flatd's, which are flatd's own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var runs []Run
			for i, text := range c.output {
				runs = append(runs, Run{Name: fmt.Sprint("run ", i), Output: strings.NewReader(text), Killed: true})
			}
			v, err := Judge(slices.Clone(made), time.Second, runs, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(v.Faults(), "\n"); got != c.want {
				t.Errorf("%s\ngot  %q\nwant %q\n%q", v, got, c.want, v.Examples)
			}
		})
	}
}

// TestAddressesTellExchangesApart: each role and number has its own.
func TestAddressesTellExchangesApart(t *testing.T) {
	seen := make(map[netip.Addr]bool)
	for n := range 5000 {
		for _, a := range []netip.Addr{outbound(n).far(), inbound(n).far(), unanswered(n+most/4, "udp").far()} {
			if seen[a] {
				t.Fatalf("%s, of number %d, is another's too", a, n)
			}
			seen[a] = true
			if got := number(a) % (most / 4); got != n {
				t.Fatalf("%s is said to be that of %d, not of %d", a, got, n)
			}
		}
	}
}
