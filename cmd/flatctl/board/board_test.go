package board

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
)

var (
	start = time.Date(2026, 11, 22, 16, 0, 0, 0, time.UTC)
	web1  = &flows.Host{Name: "web1", BootID: "6f1c0d2e"}
)

// sample is an exchange with destination n.
func sample(n int, change func(*flows.Event)) *flows.Event {
	e := &flows.Event{
		Kind: flows.KindTCP, Side: flows.SideClient, Result: flows.ResultEstablished, Time: start, Duration: time.Millisecond,
		Source:      netip.MustParseAddrPort("192.0.2.1:40000"),
		Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 443),
		Interface:   flows.Interface{Index: 2, Name: "eth0"},
	}
	if change != nil {
		change(e)
	}
	return e
}

func timedOut(e *flows.Event) { e.Result, e.Duration, e.Limit = flows.ResultTimeout, 0, 10*time.Second }

func read(b *Board, g Group, now time.Time) *Snapshot {
	var s Snapshot
	b.Read(&s, g, now)
	return &s
}

// A response code without a name is a failure like those that have one.
func TestUnnamedResult(t *testing.T) {
	b := New(time.Minute, start)
	b.Add(start, &flows.Host{}, sample(0, func(e *flows.Event) {
		e.Kind, e.Result, e.DNS.RCode = flows.KindDNS, flows.ResultAnswered, 3841
	}))
	total := read(b, ByDestination, start).Total
	if total.Count != 1 || total.Failed() != 1 || total.ByResult()["other"] != 1 {
		t.Errorf("%d exchanges, %d failed: %v", total.Count, total.Failed(), total.ByResult())
	}
}

// TestBoard: what is counted, by each group, and in what order.
func TestBoard(t *testing.T) {
	b := New(time.Minute, start)
	for range 3 {
		b.Add(start, web1, sample(1, nil))
	}
	b.Add(start, web1, sample(2, timedOut))
	b.Add(start, web1, sample(2, timedOut))
	b.Add(start, &flows.Host{Name: "web2"}, sample(3, func(e *flows.Event) {
		e.Kind, e.Result, e.DNS.RCode, e.Duration = flows.KindDNS, flows.ResultAnswered, 3, time.Second
	}))
	b.Add(start, web1, sample(1, func(e *flows.Event) { e.Side, e.Duration = flows.SideServer, time.Microsecond }))
	b.Add(start, web1, &flows.Event{Kind: flows.KindStatus, Status: &flows.Status{Action: flows.ActionLoss, Lost: 7}})

	now := start.Add(2 * time.Second)
	for order, want := range map[Order]string{
		OrderRate:     "[tcp>1 3 0 0] [tcp>2 2 2 2] [tcp<1 1 0 0] [dns>3 1 1 0]",
		OrderP99:      "[dns>3 1 1 0] [tcp>1 3 0 0] [tcp<1 1 0 0] [tcp>2 2 2 2]",
		OrderFailures: "[tcp>2 2 2 2] [dns>3 1 1 0] [tcp>1 3 0 0] [tcp<1 1 0 0]",
		OrderTimeouts: "[tcp>2 2 2 2] [tcp>1 3 0 0] [tcp<1 1 0 0] [dns>3 1 1 0]",
	} {
		s := read(b, ByDestination, now)
		s.Sort(order)
		if got := rows(s); got != want {
			t.Errorf("by %s:\n%s, want\n%s", order, got, want)
		}
	}
	s := read(b, ByHost, now)
	if s.Sort(OrderRate); rows(s) != "[tcp>web1 5 2 2] [tcp<web1 1 0 0] [dns>web2 1 1 0]" {
		t.Errorf("by host: %s", rows(s))
	}
	if s.Total.Count != 7 || s.Total.Failed() != 3 || s.Total.Rate != 3.5 || s.Others.Count != 0 {
		t.Errorf("in all %+v; others %d", s.Total.Counts, s.Others.Count)
	}
	if s := read(b, ByUnit, now); len(s.Rows) != 3 {
		t.Errorf("by unit: %s", rows(s))
	}
}

// rows has of each row the key, the count, the failures and the timeouts.
func rows(s *Snapshot) string {
	var all []string
	for _, r := range s.Rows {
		arrow, name := ">", r.Key.Name
		if r.Key.Side == flows.SideServer {
			arrow = "<"
		}
		if r.Key.End.IsValid() {
			name = fmt.Sprint(r.Key.End.Addr().As4()[3])
		}
		all = append(all, fmt.Sprintf("[%s%s%s %d %d %d]", r.Key.Kind, arrow, name, r.Count, r.Failed(), r.Timeouts()))
	}
	return strings.Join(all, " ")
}

// TestWindow: each figure is that of the window, as if it were counted anew.
func TestWindow(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const window = 30 * time.Second
	b := New(window, start)
	type told struct {
		at time.Time
		e  *flows.Event
	}
	var all []told
	now := start
	for range 5000 {
		now = now.Add(time.Duration(random.IntN(int(40 * time.Millisecond))))
		e := sample(random.IntN(40), func(e *flows.Event) {
			e.Duration = time.Duration(random.IntN(int(time.Second)))
			if random.IntN(4) == 0 {
				timedOut(e)
			}
		})
		all = append(all, told{now, e})
		b.Add(now, web1, e)
		if random.IntN(100) > 0 {
			continue
		}
		s := read(b, ByDestination, now)
		if s.Covered > window || now.Sub(start) > window && s.Covered < window-window/Slots || s.Cut {
			t.Fatalf("at %v it covers %v, cut: %t", now.Sub(start), s.Covered, s.Cut)
		}
		want := make(map[Key]*Counts)
		for _, one := range all {
			if one.at.Before(now.Add(-s.Covered)) {
				continue
			}
			k := ByDestination.keyOf("", one.e)
			if want[k] == nil {
				want[k] = new(Counts)
			}
			want[k].Count++
			want[k].Results[resultOf(one.e)]++
			if one.e.Result != flows.ResultTimeout {
				want[k].Histogram.Add(one.e.Duration)
			}
		}
		if len(s.Rows) != len(want) {
			t.Fatalf("%d rows, want %d", len(s.Rows), len(want))
		}
		for _, r := range s.Rows {
			if want[r.Key] == nil || r.Counts != *want[r.Key] {
				t.Fatalf("%v: %+v, want %+v", r.Key, r.Counts, want[r.Key])
			}
			var n uint64
			for _, slot := range r.Slots {
				n += uint64(slot)
			}
			if n != r.Count {
				t.Fatalf("%d in slots, want %d", n, r.Count)
			}
		}
	}
	if s := read(b, ByDestination, now.Add(time.Hour)); len(s.Rows) != 0 || s.Total.Count != 0 || s.Total.Histogram != (flows.Histogram{}) {
		t.Errorf("an hour later: %d rows, %d exchanges", len(s.Rows), s.Total.Count)
	}
}

// TestSlots: the parts of the window come from the oldest to the latest.
func TestSlots(t *testing.T) {
	b := New(time.Minute, start)
	for second := range 90 {
		for range second {
			b.Add(start.Add(time.Duration(second)*time.Second), web1, sample(1, nil))
		}
	}
	s := read(b, ByDestination, start.Add(89*time.Second))
	for i, n := range s.Rows[0].Slots {
		if want := uint32(30 + i); n != want {
			t.Fatalf("slot %d has %d, want %d", i, n, want)
		}
	}
}

// TestFailures: the latest are remembered, and an earlier snapshot keeps its own.
func TestFailures(t *testing.T) {
	b := New(time.Minute, start)
	var before *Snapshot
	for i := range 3 * failuresMax {
		b.Add(start, web1, sample(1, func(e *flows.Event) { e.Result, e.Sequence = flows.ResultRefused, uint64(i) }))
		if i == failuresMax {
			before = read(b, ByDestination, start)
		}
	}
	for s, first := range map[*Snapshot]uint64{before: 1, read(b, ByDestination, start): 2 * failuresMax} {
		for i, f := range s.Rows[0].Failures() {
			if f.Event.Sequence != first+uint64(i) || len(s.Rows[0].Failures()) != failuresMax {
				t.Errorf("failure %d of %d is %d, want %d", i, len(s.Rows[0].Failures()), f.Event.Sequence, first+uint64(i))
			}
		}
	}

	// Whoever gets the row next has none of them.
	later := start.Add(2 * time.Minute)
	b.Add(later, web1, sample(2, nil))
	if s := read(b, ByDestination, later); len(s.Rows) != 1 || len(s.Rows[0].Failures()) != 0 {
		t.Errorf("%s inherits %d failures", rows(s), len(s.Rows[0].Failures()))
	}
}

// heap is what the process has allocated and still uses.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestManyDestinations: 100,000 of them, each failing, and more exchanges than a
// window can have, take no more memory than is said; and what is not told apart
// is counted all the same.
func TestManyDestinations(t *testing.T) {
	before := heap()
	b := New(time.Minute, start)
	const destinations, all = 100_000, historyMax + 300_000
	now := start
	for i := range all {
		if i%10_000 == 0 {
			now = now.Add(100 * time.Millisecond)
		}
		b.Add(now, web1, sample(i%destinations, func(e *flows.Event) { e.Result = flows.ResultRefused }))
	}
	s := read(b, ByDestination, now)
	var told uint64
	for _, r := range s.Rows {
		told += r.Count
	}
	if len(s.Rows) != RowsMax || told+s.Others.Count != s.Total.Count || s.Others.Count == 0 {
		t.Errorf("%d rows of %d exchanges, and %d others; in all %d", len(s.Rows), told, s.Others.Count, s.Total.Count)
	}
	if !s.Cut || s.Covered >= time.Minute || s.Total.Count > historyMax || s.Total.Count < historyMax/2 {
		t.Errorf("cut: %t, covers %v with %d exchanges", s.Cut, s.Covered, s.Total.Count)
	}
	const most = 64 << 20
	if grown := heap() - before; grown > most {
		t.Errorf("it holds %d MB, more than %d", grown>>20, most>>20)
	} else {
		t.Logf("it holds %d MB", grown>>20)
	}
	if s := read(b, ByDestination, now.Add(2*time.Minute)); s.Cut || len(s.Rows) > 0 {
		t.Errorf("later: cut: %t, %d rows", s.Cut, len(s.Rows))
	}
	runtime.KeepAlive(b)
}

// TestFullTable: when the table is full of what was seen once, who is seen often
// gets a row as soon as one is free.
func TestFullTable(t *testing.T) {
	b := New(time.Minute, start)
	now := start
	n := 1
	for range 120 { // seconds, a scan in each
		for range 500 {
			b.Add(now, web1, sample(n, nil))
			n++
		}
		for range 50 {
			b.Add(now, web1, sample(0, nil))
		}
		now = now.Add(time.Second)
	}
	s := read(b, ByDestination, now)
	s.Sort(OrderRate)
	if len(s.Rows) < RowsMax-500 || s.Rows[0].Key.End != sample(0, nil).Destination {
		t.Errorf("%d rows, the first %v with %d", len(s.Rows), s.Rows[0].Key, s.Rows[0].Count)
	}
}

func TestNames(t *testing.T) {
	for _, name := range Groups() {
		if g, err := ParseGroup(name); err != nil || g.String() != name {
			t.Errorf("%s: %v, %v", name, g, err)
		}
	}
	for _, name := range Orders() {
		if o, err := ParseOrder(name); err != nil || o.String() != name {
			t.Errorf("%s: %v, %v", name, o, err)
		}
	}
	if _, err := ParseGroup("colour"); err == nil {
		t.Error("there is a group that there is not")
	}
	if ByHost.Next() != ByDestination || OrderTimeouts.Next() != OrderRate {
		t.Error("the last has a next one")
	}
	if len(resultNames) >= resultsMax {
		t.Errorf("%d results and the others, room for %d", len(resultNames), resultsMax)
	}
}

// BenchmarkAdd: one exchange, among 100 destinations and among 100,000.
func BenchmarkAdd(b *testing.B) {
	for _, destinations := range []int{100, 100_000} {
		b.Run(fmt.Sprint(destinations), func(b *testing.B) {
			board, now := New(time.Minute, start), start
			events := make([]*flows.Event, destinations)
			for i := range events {
				events[i] = sample(i, nil)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				now = now.Add(50 * time.Microsecond)
				board.Add(now, web1, events[i%destinations])
			}
		})
	}
}

// BenchmarkRead: what a change of the screen takes with 100,000 destinations.
func BenchmarkRead(b *testing.B) {
	board := New(time.Minute, start)
	for i := range 100_000 {
		board.Add(start, web1, sample(i, nil))
	}
	var s Snapshot
	b.ReportAllocs()
	for b.Loop() {
		board.Read(&s, ByDestination, start)
		s.Sort(OrderP99)
	}
}
