package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

func decodeHistograms(t *testing.T, lines []string) []measured {
	t.Helper()
	var answer struct{ Histograms []measured }
	if err := json.Unmarshal([]byte(strings.Join(lines, "\n")), &answer); err != nil {
		t.Fatalf("%v: %q", err, lines)
	}
	return answer.Histograms
}

func sameDistribution(t *testing.T, what string, got flows.Distribution, want *flows.Histogram) {
	t.Helper()
	w := want.Distribution()
	if got.Count != w.Count || got.Sum != w.Sum || got.P50 != w.P50 || got.P90 != w.P90 || got.P99 != w.P99 ||
		got.MaxBound != w.MaxBound || !slices.Equal(got.Buckets, w.Buckets) {
		t.Errorf("%s:\nis   %+v\nwant %+v", what, got, w)
	}
}

// TestHistogramOfFlatd: what flatctl says is what the API says, and what the
// events say.
func TestHistogramOfFlatd(t *testing.T) {
	s := newSite(t)
	const connections = 20
	for range connections {
		s.connect()
	}
	c := source.Client{Socket: s.socket}
	var api api.Histograms
	for deadline := time.Now().Add(patience); api.Total.Count < connections; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d connections", api.Total.Count, connections)
		}
		if err := c.Get(t.Context(), "/v1/histogram?kind=tcp", &api); err != nil {
			t.Fatal(err)
		}
	}
	events := s.awaitEvents(connections)
	sameDistribution(t, "the API", api.Total, events)
	for _, c := range []struct{ args, source string }{
		{"", "kernel"},
		{"--kind tcp --side client --family ipv4 --interface eth0", "kernel"},
		{"--result established", "kernel"},
		{"--to " + s.server.V4, "events"},
		{"--to 10.99.0.0/16 --from " + s.client.V4 + " --family ipv4 --result established", "events"},
		{"--since 1h --kind tcp", "events"},
	} {
		out, status := s.run(append([]string{"histogram", "-o", "json"}, strings.Fields(c.args)...)...)
		if status != 0 {
			t.Fatalf("%s: %s", c.args, out)
		}
		got := decodeHistograms(t, []string{out})
		if len(got) != 1 || got[0].Source != c.source {
			t.Fatalf("%s: %s", c.args, out)
		}
		sameDistribution(t, c.args, got[0].Distribution, events)
	}
	s.compare(events)
	for _, c := range []struct {
		args string
		want string
	}{
		{"--kind status", "must be one of tcp, dns, udp, icmp"},
		{"--result timeout", "a timeout has no duration"},
		{"--family 6", "must be one of ipv4, ipv6"},
		{"--compare next", "say --interval"},
		{"--compare colour=blue", "name=value"},
		{"--compare port=http", "not a port number"},
		{"--interval -1s", "must be positive"},
		{"-o yaml", "must be text or json"},
	} {
		if out, status := s.run(append([]string{"histogram"}, strings.Fields(c.args)...)...); status != 2 || !strings.Contains(out, c.want) {
			t.Errorf("%s: status %d, %s", c.args, status, out)
		}
	}
}

// awaitEvents waits until flatd has told of so many connections, and returns
// their histogram.
func (s *site) awaitEvents(n int) *flows.Histogram {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		out, status := s.run("events", "-o", "json", "--kind", "tcp", "-n", "1024")
		if status != 0 {
			s.t.Fatal(out)
		}
		var h flows.Histogram
		for line := range strings.Lines(out) {
			var e flows.Event
			if _, err := flows.ParseJSON([]byte(line), &e); err == nil {
				h.Add(e.Duration)
			}
		}
		if h.Count() == uint64(n) {
			return &h
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d events of %d:\n%s", h.Count(), n, out)
		}
	}
}

// compare has an interval with one connection more compared with all before it,
// and with the next one, in which nothing happens; and two selections.
func (s *site) compare(before *flows.Histogram) {
	s.t.Helper()
	for _, selection := range []string{"--kind=tcp", "--to=" + s.server.V4} {
		r := flatctl(s.t, "histogram", "--socket", s.socket, selection, "--interval", "1500ms", "--compare", "start", "-o", "json")
		r.await("counting for 1.5s")
		s.connect()
		lines, err := r.rest()
		if err != nil {
			s.t.Fatal(err)
		}
		got := decodeHistograms(s.t, lines)
		if len(got) != 2 || got[0].Count != 1 || got[0].Interval != 1500*time.Millisecond || got[1].Interval != 0 {
			s.t.Fatalf("%s: %q", selection, lines)
		}
		sameDistribution(s.t, selection+" before", got[1].Distribution, before)
		before.Merge(must(got[0].Distribution.Histogram()))
	}
	r := flatctl(s.t, "histogram", "--socket", s.socket, "--interval", "1500ms", "--compare", "next", "-o", "json")
	r.await("counting for 1.5s")
	s.connect()
	lines, err := r.rest()
	if got := decodeHistograms(s.t, lines); err != nil || len(got) != 2 || got[0].Count != 1 || got[1].Count != 0 {
		s.t.Errorf("two intervals: %v, %q", err, lines)
	}
	r = flatctl(s.t, "histogram", "--socket", s.socket, "--kind", "tcp", "--compare", "result=refused", "--compare", "side=client", "-o", "json")
	lines, err = r.rest()
	got := decodeHistograms(s.t, lines)
	if err != nil || len(got) != 2 || got[0].Count != before.Count()+1 || got[1].Count != 0 || got[1].Name != "kind=tcp side=client result=refused" {
		s.t.Errorf("two selections: %v, %q", err, lines)
	}
}

func must(h flows.Histogram, err error) *flows.Histogram {
	if err != nil {
		panic(err)
	}
	return &h
}

func measuredOf(name string, durations ...time.Duration) *measured {
	m := &measured{Name: name, Source: sourceKernel}
	for _, d := range durations {
		m.histogram.Add(d)
	}
	m.Distribution = m.histogram.Distribution()
	return m
}

// some are as many durations around a millisecond as one likes.
func some(n int, around time.Duration) (durations []time.Duration) {
	for i := range n {
		durations = append(durations, around*time.Duration(50+i*i%177)/100)
	}
	return durations
}

const wantASCII = `kind=tcp: 103 answers
p50 < 1.05 ms   p90 < 1.57 ms   p99 < 16.8 ms   max >= 137 s   mean 1.36 s

`

// Without colour and UTF-8 a drawing is ASCII; it fits the width; and its counts
// add up.
func TestDrawOne(t *testing.T) {
	m := measuredOf("kind=tcp", append(some(100, 700*time.Microsecond), 15*time.Millisecond, 0, 140*time.Second)...)
	for _, width := range []int{40, 60, 80, 132} {
		for _, utf8Too := range []bool{false, true} {
			var out strings.Builder
			if err := drawOne(&out, terminal{width: width, utf8: utf8Too}, m); err != nil {
				t.Fatal(err)
			}
			checkDrawing(t, out.String(), max(width, 48), utf8Too)
			if !utf8Too && width == 80 && !strings.HasPrefix(out.String(), wantASCII) {
				t.Errorf("begins otherwise:\n%s", out.String())
			}
			if sum := countsOf(t, out.String()); sum != 103 {
				t.Errorf("the rows have %d of 103:\n%s", sum, out.String())
			}
			for _, p := range []string{" p50", " p90", " p99"} {
				if strings.Count(out.String(), p+"\n")+strings.Count(out.String(), p+" p") != 1 {
					t.Errorf("%s is not marked once:\n%s", p, out.String())
				}
			}
		}
	}
	var color, empty strings.Builder
	if err := drawOne(&color, terminal{width: 80, color: true}, m); err != nil || !strings.Contains(color.String(), "\x1b[31m p99\x1b[0m") {
		t.Errorf("%v: %q", err, color.String())
	}
	if err := drawOne(&empty, terminal{width: 80}, measuredOf("all")); err != nil || empty.String() != "all: 0 answers\n" {
		t.Errorf("%v: %q", err, empty.String())
	}
}

// countsOf adds up the counts at the ends of the rows.
func countsOf(t *testing.T, text string) (sum int) {
	t.Helper()
	_, rows, _ := strings.Cut(text, "answers\n")
	_, rows, _ = strings.Cut(rows, "answers\n")
	for row := range strings.Lines(rows) {
		row, _, _ = strings.Cut(row, " p")
		words := strings.Fields(row)
		var n int
		if _, err := fmt.Sscan(words[len(words)-1], &n); err != nil {
			t.Errorf("%v in %q", err, row)
		}
		sum += n
	}
	return sum
}

func checkDrawing(t *testing.T, text string, width int, utf8Too bool) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if utf8.RuneCountInString(line) > width && strings.ContainsAny(line, "|│") {
			t.Errorf("%d characters wide, more than %d: %q", utf8.RuneCountInString(line), width, line)
		}
		if !utf8Too && strings.ContainsFunc(line, func(r rune) bool { return r > '~' || r < ' ' }) {
			t.Errorf("not ASCII: %q", line)
		}
		if strings.HasSuffix(line, " ") {
			t.Errorf("space at the end of %q", line)
		}
	}
}

func TestDrawTwo(t *testing.T) {
	a := measuredOf("kind=tcp", some(100, 700*time.Microsecond)...)
	b := measuredOf("kind=dns", some(7, 9*time.Millisecond)...)
	none := measuredOf("kind=udp")
	for _, pair := range [][2]*measured{{a, b}, {b, a}, {a, none}, {none, none}} {
		for _, utf8Too := range []bool{false, true} {
			var out strings.Builder
			if err := drawTwo(&out, terminal{width: 80, utf8: utf8Too}, pair[0], pair[1]); err != nil {
				t.Fatal(err)
			}
			checkDrawing(t, out.String(), 80, utf8Too)
		}
	}
	var out strings.Builder
	if err := drawTwo(&out, terminal{width: 80}, a, b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"A: kind=tcp\nB: kind=dns\n", "answers           100             7\n", "p50     < 1.05 ms     < 6.29 ms    x 6.00\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
}

// Whatever the range, rows are few, join, and have every bucket once.
func TestRows(t *testing.T) {
	for first := range flows.HistogramBuckets {
		for last := first; last < flows.HistogramBuckets; last++ {
			var h flows.Histogram
			h.Buckets[first], h.Buckets[last] = 1, 1
			rows := newDrawing(terminal{}, &h).rows
			if len(rows) > rowsMax+1 || rows[0].from > first || rows[len(rows)-1].to <= last {
				t.Fatalf("from %d to %d: %v", first, last, rows)
			}
			for i := 1; i < len(rows); i++ {
				if rows[i].from != rows[i-1].to {
					t.Fatalf("from %d to %d: %v", first, last, rows)
				}
			}
		}
	}
}

func TestSpeaksUTF8(t *testing.T) {
	for _, c := range []struct {
		all, ctype, lang string
		want             bool
	}{
		{"", "", "", false}, {"", "", "C", false}, {"", "", "de_DE.UTF-8", true}, {"C", "", "de_DE.UTF-8", false},
		{"", "C.utf8", "C", true}, {"", "", "de_DE.ISO-8859-1", false}, {"POSIX", "C.utf8", "", false},
	} {
		values := map[string]string{"LC_ALL": c.all, "LC_CTYPE": c.ctype, "LANG": c.lang}
		if got := speaksUTF8(func(name string) string { return values[name] }); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
