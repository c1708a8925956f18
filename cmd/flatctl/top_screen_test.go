package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/flows"
)

// synthetic is a screen of so many destinations, the first of which is asked the
// most often.
func synthetic(t terminal, destinations int) *screen {
	f := &feed{board: board.New(time.Hour, time.Now())}
	s := newScreen(t, f, arrangement{}, url.Values{}, time.Second)
	web1 := &flows.Host{Name: "web1", BootID: "6f1c0d2e"}
	for i := range destinations {
		e := &flows.Event{
			Kind: flows.KindTCP, Side: flows.SideClient, Result: flows.ResultEstablished, Time: time.Now(), Duration: time.Duration(i+1) * time.Microsecond,
			Source:      netip.MustParseAddrPort("192.0.2.1:40000"),
			Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 443),
		}
		f.board.Add(time.Now(), web1, e)
		if i == 0 {
			f.board.Add(time.Now(), web1, e)
		}
	}
	s.refresh()
	return s
}

func (s *screen) keysOf(names ...string) {
	for _, name := range names {
		code, ok := map[string]rune{"up": tea.KeyUp, "down": tea.KeyDown, "pgdown": tea.KeyPgDown, "home": tea.KeyHome, "end": tea.KeyEnd, "enter": tea.KeyEnter}[name]
		key := tea.Key{Code: code}
		if !ok {
			key = tea.Key{Code: []rune(name)[0], Text: name}
		}
		s.Update(tea.KeyPressMsg(key))
	}
}

// TestScreenOfMany: of 100,000 destinations those that are told apart can all be
// reached, and the others are not forgotten; each line has room.
func TestScreenOfMany(t *testing.T) {
	s := synthetic(terminal{utf8: true}, 100_000)
	for _, size := range [][2]int{{80, 24}, {120, 40}, {40, 12}, {20, 5}, {1, 1}} {
		s.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		for _, keys := range []string{"home", "down", "pgdown", "end", "up", "enter", "enter", "?", "?"} {
			s.keysOf(keys)
			lines := strings.Split(s.View().Content, "\n")
			if len(lines) != size[1] {
				t.Fatalf("%v, %s: %d lines", size, keys, len(lines))
			}
			for _, line := range lines {
				if ansi.StringWidth(line) > size[0] {
					t.Errorf("%v, %s: too long: %q", size, keys, line)
				}
			}
		}
	}
	s.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	s.keysOf("end")
	text := s.View().Content
	for _, want := range []string{"100001 in", fmt.Sprintf("%d exchanges with others", 100_000-board.RowsMax), othersName} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not on the screen:\n%s", want, text)
		}
	}
	if s.keysOf("home"); !strings.Contains(s.View().Content, ">10.0.0.0:443") {
		t.Errorf("the busiest is not the first:\n%s", s.View().Content)
	}
}

// TestScreenFollowsRow: what was chosen stays so, wherever it goes.
func TestScreenFollowsRow(t *testing.T) {
	s := synthetic(terminal{utf8: true, width: 80}, 50)
	s.keysOf("down", "down")
	chosen := s.row().Key
	s.keysOf("s", "s") // by p99: the last is the first
	if s.row().Key != chosen || s.selected != 47 {
		t.Errorf("row %d, %v", s.selected, s.row().Key)
	}
	if !strings.Contains(s.View().Content, ">"+chosen.End.String()) {
		t.Errorf("it is not to be seen:\n%s", s.View().Content)
	}
	s.keysOf("S", "S")
	if s.arranged.order != board.OrderRate || s.selected != 2 {
		t.Errorf("by %s, row %d", s.arranged.order, s.selected)
	}
}

func TestParseConditions(t *testing.T) {
	for typed, want := range map[string]string{
		"":                           "",
		"to=10.0.0.0/8 port=443,80":  "port=443,80 to=10.0.0.0/8",
		"--to 10.0.0.7 --slower=1ms": "slower=1ms to=10.0.0.7",
		"  kind=tcp kind=dns ":       "kind=tcp,dns",
	} {
		given, err := parseConditions(typed)
		if err != nil {
			t.Errorf("%q: %v", typed, err)
			continue
		}
		again, err := parseConditions(conditionsText(given))
		words := strings.Fields(conditionsText(again))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(given) || len(words) != len(strings.Fields(want)) {
			t.Errorf("%q: %v, then %v, %v", typed, given, again, err)
		}
		for _, word := range words {
			if !strings.Contains(" "+want+" ", " "+word+" ") {
				t.Errorf("%q: %q is not in %q", typed, word, want)
			}
		}
	}
	for _, typed := range []string{"10.0.0.7", "colour=red", "port=http", "--to", "since=10m", "to=10.0.0.0/8 x"} {
		if given, err := parseConditions(typed); err == nil {
			t.Errorf("%q is taken for %v", typed, given)
		}
	}
}

// TestLayOut: columns go one after the other, the name and the rate never.
func TestLayOut(t *testing.T) {
	before := len(topColumns)
	for width := 200; width > 0; width-- {
		l := layOut(width, 21)
		used := markWidth + l.name
		for _, c := range l.columns {
			used += 1 + c.width
		}
		if l.spark > 0 {
			used += 1 + l.spark
		}
		if used > width && width > 25 {
			t.Errorf("%d columns for %d", used, width)
		}
		if len(l.columns) > before || len(l.columns) == 0 || l.columns[min(1, len(l.columns)-1)].title != "RATE" && l.columns[0].title != "RATE" {
			t.Errorf("at %d: %+v", width, l)
		}
		before = len(l.columns)
	}
	if l := layOut(80, len("255.255.255.255:65535")); len(l.columns) != len(topColumns) || l.spark < sparkLeast || l.name != 21 {
		t.Errorf("80 columns do not show all: %+v", l)
	}
}

func TestSparkline(t *testing.T) {
	counts := make([]uint32, board.Slots)
	for i := range counts {
		counts[i] = uint32(i)
	}
	for _, c := range []struct {
		terminal terminal
		counts   []uint32
		want     string
	}{
		{terminal{utf8: true}, counts, " ▁▂▃▄▅▆▇█"},
		{terminal{}, counts, " .:-=+*#@"},
		{terminal{}, make([]uint32, board.Slots), "         "},
	} {
		got := c.terminal.sparkline(c.counts, board.Slots)
		if utf8.RuneCountInString(got) != board.Slots {
			t.Errorf("%q", got)
		}
		for _, r := range got {
			if !strings.ContainsRune(c.want, r) {
				t.Errorf("%q has %q", got, r)
			}
		}
		if first, last := []rune(got)[0], []rune(got)[board.Slots-1]; string(first) != " " || last != []rune(c.want)[8] {
			t.Errorf("%q", got)
		}
	}
	one := make([]uint32, board.Slots)
	one[0], one[1] = 1000, 1
	if got := (terminal{}).sparkline(one, board.Slots); got[:3] != "@. " {
		t.Errorf("one in a thousand is not to be seen: %q", got)
	}
}

func TestShort(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0", 0.02: "0.02", 9.994: "9.99", 9.996: "10.0", 99.94: "99.9", 99.96: "100", 999.4: "999", 999.6: "1.00k", 123_456: "123k", 9.87e6: "9.87M", 1e15: ">1T",
	} {
		if got := short(n); got != want || len(got) > 5 {
			t.Errorf("%v is %q, want %q", n, got, want)
		}
	}
}

// TestAccount: what is lost is said, and what other hosts lose is added.
func TestAccount(t *testing.T) {
	f := &feed{board: board.New(time.Minute, time.Now())}
	loss := &source.Report{Event: flows.Event{Kind: flows.KindStatus, Status: &flows.Status{Action: flows.ActionLoss, Lost: 7, Message: "this follower was too slow\x1b[2J"}}}
	for range 2 {
		if err := f.take(loss); err != nil {
			t.Fatal(err)
		}
	}
	a := f.status()
	if got := a.lacks(new(board.Snapshot)); len(got) != 1 || got[0] != `lost 14 events; the latest: this follower was too slow\u001b[2J` {
		t.Errorf("%q", got)
	}
	f.fleet, _ = source.NewSocket(&source.Client{Socket: "/nonexistent"}, nil).Fleet() // connects when asked
	if err := f.ask(t.Context()); err == nil || len(f.known.lacks(new(board.Snapshot))) != 2 {
		t.Errorf("nobody answers, but %v, %q", err, f.known.lacks(new(board.Snapshot)))
	}
	f.say("flatd has gone away")
	f.live()
	for i := range 5 {
		f.say("%d", i)
	}
	if a := f.status(); len(a.notes) != notesMax || a.notes[2].text != "4" {
		t.Errorf("%+v", a.notes)
	}
}

// BenchmarkView: a change of the screen with 100,000 destinations.
func BenchmarkView(b *testing.B) {
	s := synthetic(terminal{utf8: true, color: true, width: 120}, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		s.refresh()
		s.View()
	}
}

// BenchmarkFeed: an event of flatd's from its JSON onto the board.
func BenchmarkFeed(b *testing.B) {
	f := &feed{board: board.New(time.Minute, time.Now())}
	const destinations = 100_000
	lines := make([][]byte, destinations)
	for i := range lines {
		one := sampleReport("web1", uint16(i))
		one.Event.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 443)
		lines[i] = one.Host.AppendJSON(nil, &one.Event)
	}
	var one source.Report
	var err error
	for i := 0; b.Loop(); i++ {
		if one.Host, err = flows.ParseJSON(lines[i%destinations], &one.Event); err != nil {
			b.Fatal(err)
		}
		if err := f.take(&one); err != nil {
			b.Fatal(err)
		}
	}
}
