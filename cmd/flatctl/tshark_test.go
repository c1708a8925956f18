package main

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed/tshark"
)

// figures are tshark's of some exchanges.
type figures struct {
	one       tshark.Exchange // of them
	results   map[string]uint64
	durations []time.Duration // of what was answered, the shortest first
	// How far apart the two clocks' readings of one exchange are at most: the
	// capture is taken a few instructions from flatd's programs.
	apart time.Duration
}

// figuresBy are those of each kind, destination or whatever key names.
func figuresBy(found []judged, key func(*judged) string) map[string]*figures {
	by := make(map[string]*figures)
	for i := range found {
		j := &found[i]
		f := by[key(j)]
		if f == nil {
			f = &figures{one: j.Exchange, results: make(map[string]uint64)}
			by[key(j)] = f
		}
		f.results[j.Result]++
		if j.Result != "timeout" {
			f.durations = append(f.durations, j.Duration)
			f.apart = max(f.apart, j.apart)
		}
	}
	for _, f := range by {
		slices.Sort(f.durations)
	}
	return by
}

func (f *figures) count() (n uint64) {
	for _, m := range f.results {
		n += m
	}
	return n
}

// failed is how many did not end well: flatd-events(7) has the results.
func (f *figures) failed() uint64 {
	return f.count() - f.results["established"] - f.results["answered"] - f.results["noerror"]
}

// check wants a distribution to be tshark's, as `flatctl histogram --help` says:
// the answer of that rank took less than a percentile, and at least 80 % of it.
func (f *figures) check(t *testing.T, what string, d flows.Distribution) {
	t.Helper()
	if d.Count != uint64(len(f.durations)) {
		t.Errorf("%s: %d answers, tshark has %d", what, d.Count, len(f.durations))
		return
	}
	for percent, got := range map[float64]time.Duration{50: d.P50, 90: d.P90, 99: d.P99, 100: d.MaxBound} {
		var want time.Duration
		if n := len(f.durations); n > 0 {
			want = f.durations[int(math.Ceil(percent/100*float64(n)))-1]
		}
		if want >= got+f.apart && want > 0 || want+f.apart < got*8/10 {
			t.Errorf("%s: %v %% within %v, of tshark's within %v (the two are up to %v apart)", what, percent, got, want, f.apart)
		}
	}
}

// judged is an exchange that tshark found and flatd told of.
type judged struct {
	tshark.Found
	apart time.Duration // their durations are
}

func exchangeOf(e *flows.Event) tshark.Exchange {
	return tshark.Exchange{
		Kind: e.Kind.String(), Side: e.Side.String(), Source: e.Source, Destination: e.Destination,
		Result: e.ResultName(), ID: uint32(e.DNS.ID),
	}
}

// judge wants the events of the API to be what tshark found, one for one, and
// their durations to be the same but for what lies between capture and programs.
func (s *site) judge(found []tshark.Found) (all []judged) {
	s.t.Helper()
	told := make(map[tshark.Exchange][]time.Duration)
	var want, got []tshark.Exchange
	for _, e := range s.exchanges() {
		got = append(got, exchangeOf(&e))
		told[exchangeOf(&e)] = append(told[exchangeOf(&e)], e.Duration)
	}
	var apart []time.Duration
	for _, f := range found {
		if f.Kind == "icmp" {
			f.ID = 0 // which echo it was is not in the event
		}
		want = append(want, f.Exchange)
		j := judged{Found: f}
		if d := told[f.Exchange]; len(d) > 0 && f.Result != "timeout" {
			j.apart, told[f.Exchange] = (d[0] - f.Duration).Abs(), d[1:]
			apart = append(apart, j.apart)
		}
		all = append(all, j)
	}
	missing, invented := tshark.Differences(want, got)
	if len(missing)+len(invented) > 0 {
		s.t.Fatalf("the API lacks %v, and has %v that tshark lacks", missing, invented)
	}
	slices.Sort(apart)
	median := apart[len(apart)/2]
	s.t.Logf("%d durations differ from tshark's by %v at the median, %v at most", len(apart), median, apart[len(apart)-1])
	if median > 100*time.Microsecond {
		s.t.Errorf("durations differ from tshark's by %v at the median", median)
	}
	return all
}

// exchanges are those that the API remembers, the oldest first.
func (s *site) exchanges() (all []flows.Event) {
	s.t.Helper()
	out, status := s.run("events", "-o", "json", "-n", fmt.Sprint(api.RecentMax))
	if status != 0 {
		s.t.Fatal(out)
	}
	for line := range strings.Lines(out) {
		var e flows.Event
		if _, err := flows.ParseJSON([]byte(line), &e); err == nil && e.Exchange() {
			all = append(all, e)
		}
	}
	return all
}

// TestFiguresAreTsharks: what top and histogram show of real traffic is what the
// API has, and what tshark finds in a capture of it.
func TestFiguresAreTsharks(t *testing.T) {
	s := newSite(t)
	s.configure("[measure]\ntimeout = \"2s\"\n")
	a := s.newAsking()
	m := s.top("100", "24", "--window", "1h", "--interval", "200ms")
	m.awaitText("nothing yet", hostname(t))
	var found, latest []tshark.Found
	var once topDocument
	const triesMax = 5 // and the API remembers all of them
	for try := 1; ; try++ {
		latest, once = a.watched(func(latest []tshark.Found) {
			found = append(found, latest...)
			m.awaitText(fmt.Sprintf(" %d in ", len(found)))
		})
		// Interrupted, it may not have read what the screen has. Then once more.
		if once.Total.Exchanges == uint64(len(latest)) {
			break
		}
		if try == triesMax {
			t.Fatalf("%d exchanges of %d", once.Total.Exchanges, len(latest))
		}
	}
	all := s.judge(found)
	checkOnceOfTshark(t, &once, all[len(all)-len(latest):])
	s.checkScreen(m.screen(), all)
	s.checkHistograms(all)
	m.keys("q")
	m.awaitText("ended with 0")
}

// watched asks everything before the eyes of tcpdump and of `top --once`, which is
// interrupted when shown returns.
func (a *asking) watched(shown func([]tshark.Found)) (found []tshark.Found, once topDocument) {
	a.t.Helper()
	c := tshark.StartCapture(a.t, a.client)
	r := flatctl(a.t, "top", "--once", "--interval", "1h", "-o", "json", "--socket", a.socket)
	r.await("counting for")
	a.everything()
	c.End()
	found = c.Found("client", tshark.Addressed(a.client))
	shown(found)
	r.stop()
	lines, err := r.rest()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(strings.Join(lines, "\n")), &once); err != nil {
		a.t.Fatalf("%v: %q", err, lines)
	}
	return found, once
}

func anything(*judged) string { return "" }

func destinationOf(j *judged) string { return endName(j.Destination) + " " + j.Kind }

// endName is a destination as the screen has it.
func endName(end netip.AddrPort) string {
	if end.Port() == 0 {
		return end.Addr().String()
	}
	return end.String()
}

func checkOnceOfTshark(t *testing.T, d *topDocument, found []judged) {
	t.Helper()
	check := func(what string, got *topCounts, want *figures) {
		t.Helper()
		if got.Exchanges != want.count() || got.Failed != want.failed() || got.Timeouts != want.results["timeout"] || fmt.Sprint(got.Results) != fmt.Sprint(want.results) {
			t.Errorf("top --once: %s: %+v, tshark has %v", what, got, want.results)
		}
		want.check(t, "top --once: "+what, got.Durations)
	}
	by := figuresBy(found, destinationOf)
	for i := range d.Rows {
		r := &d.Rows[i]
		name := endName(netip.AddrPortFrom(netip.MustParseAddr(r.Destination.IP), r.Destination.Port)) + " " + r.Kind
		want, known := by[name]
		if !known {
			t.Errorf("top --once: tshark knows no %s", name)
			continue
		}
		check(name, &r.topCounts, want)
		delete(by, name)
	}
	for name := range by {
		t.Errorf("top --once: no %s", name)
	}
	check("in all", &d.Total, figuresBy(found, anything)[""])
	if d.Lost+d.LeftOut+d.Others.Exchanges != 0 {
		t.Errorf("top --once: %d lost, %d left out, %d others", d.Lost, d.LeftOut, d.Others.Exchanges)
	}
}

// shownRows are destination, kind, and the figures from COUNT to T/O.
var shownRows = regexp.MustCompile(`(?m)^[> ](\S+) +(tcp|dns|udp|icmp) +\S+ +(\d+) +(-|\S+ \S+) +(-|\S+ \S+) +(\d+) +(\d+)`)

// checkScreen wants the rows to be tshark's, their percentiles as the API has them.
func (s *site) checkScreen(screen string, found []judged) {
	s.t.Helper()
	shown := make(map[string]string)
	for _, row := range shownRows.FindAllStringSubmatch(screen, -1) {
		shown[row[1]+" "+row[2]] = strings.Join(row[3:], " ")
	}
	t := terminal{utf8: true}
	for name, f := range figuresBy(found, destinationOf) {
		d := s.histogram(selectionOf(&f.one)...)
		f.check(s.t, "histogram: "+name, d)
		want := fmt.Sprintf("%d %s %s %d %d", f.count(), t.percentile(d.P50), t.percentile(d.P99), f.failed(), f.results["timeout"])
		if shown[name] != want {
			s.t.Errorf("top: %s: %q, tshark and the API have %q", name, shown[name], want)
		}
		delete(shown, name)
	}
	total, d := figuresBy(found, anything)[""], s.histogram("--since", "1h")
	total.check(s.t, "histogram: in all", d)
	want := fmt.Sprintf("%d failed  p50 %s  p99 %s", total.failed(), t.percentile(d.P50), t.percentile(d.P99))
	if len(shown) > 0 || !strings.Contains(screen, want) {
		s.t.Errorf("top: tshark knows no %v; %q is to be on the screen:\n%s", shown, want, screen)
	}
}

// selectionOf has the exchanges of one kind with one destination.
func selectionOf(x *tshark.Exchange) []string {
	selection := []string{"--kind", x.Kind, "--to", x.Destination.Addr().String()}
	if port := x.Destination.Port(); port != 0 {
		selection = append(selection, "--port", fmt.Sprint(port))
	}
	return selection
}

// histogram is what `flatctl histogram -o json` has of a selection.
func (s *site) histogram(selection ...string) flows.Distribution {
	s.t.Helper()
	out, status := s.run(append([]string{"histogram", "-o", "json"}, selection...)...)
	if status != 0 {
		s.t.Fatal(out)
	}
	return decodeHistograms(s.t, []string{out})[0].Distribution
}

// checkHistograms wants the kernel's histogram of each kind to be tshark's, from
// the API as from flatctl, and drawn in a terminal with the same figures.
func (s *site) checkHistograms(found []judged) {
	s.t.Helper()
	c := source.Client{Socket: s.socket}
	for kind, want := range figuresBy(found, func(j *judged) string { return j.Kind }) {
		var api api.Histograms
		if err := c.Get(s.t.Context(), "/v1/histogram?side=client&kind="+kind, &api); err != nil {
			s.t.Fatal(err)
		}
		want.check(s.t, "the API: "+kind, api.Total)
		d := s.histogram("--side", "client", "--kind", kind)
		h := must(api.Total.Histogram())
		sameDistribution(s.t, "histogram: "+kind, d, h)
		screen := newTmux(s.t, "80", "40", "env -u NO_COLOR LC_ALL=C.UTF-8 "+s.flatctl+" --socket "+s.socket+" histogram --side client --kind "+kind).
			awaitText("ended with 0")
		t := terminal{utf8: true}
		figures := fmt.Sprintf("p50 %s   p90 %s   p99 %s   max %s", t.bound(h, 50), t.bound(h, 90), t.bound(h, 99), t.bound(h, 100))
		for _, text := range []string{fmt.Sprintf("kind=%s side=client: %d answers\n", kind, len(want.durations)), figures} {
			if !strings.Contains(screen, text) {
				s.t.Errorf("histogram: %q is not on the screen:\n%s", text, screen)
			}
		}
		if sum := countsOf(s.t, strings.TrimSpace(strings.Split(screen, "ended with")[0])+"\n"); sum != len(want.durations) {
			s.t.Errorf("histogram: the rows of %s have %d of %d:\n%s", kind, sum, len(want.durations), screen)
		}
	}
}
