package exact

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Run is what one flatd printed, from its start to its end.
type Run struct {
	Name   string
	Output io.Reader // JSON lines
	Killed bool      // it may have ended within a line
}

// Mark is a moment that the judge is to tell faults by.
type Mark struct {
	Name string
	At   time.Time
}

// Verdict is what a judge found. An event that comes again under its id is one.
type Verdict struct {
	Made     int
	Reported int // once, and as it was
	Missing  int // no event
	Doubled  int // events beyond the first of their exchange, under other ids
	Wrong    int // another result than it had, or not its ends, id or name
	Unknown  int // events of what nobody has made
	Repeated int // events under an id that has been: a kill may cost that
	Changed  int // of which these say something else
	Twice    int // of which these come from one flatd

	Numbered int    // events with a sequence number
	Skipped  uint64 // numbers that no event has, between the first and the last
	Jumps    int    // in how many places
	Farthest uint64 // the most in one place
	Shared   int    // numbers that several events have
	Lost     uint64 // events that flatd says it lost
	Unused   uint64 // numbers that flatd says it left out in a take-over
	Preceded int    // warnings of programs ahead of flatd's

	// Where faults are, in words: how many of a kind, by the mark that their
	// requests came after, and examples.
	Places   []string
	Examples []string
}

func (v Verdict) String() string {
	return fmt.Sprintf("%d made: %d missing, %d doubled, %d wrong, %d unknown; %d repeated (%d changed, %d by one flatd); "+
		"%d sequence numbers: %d skipped in %d places (%d at once), %d shared, %d said to be lost; %d warnings of programs ahead",
		v.Made, v.Missing, v.Doubled, v.Wrong, v.Unknown, v.Repeated, v.Changed, v.Twice,
		v.Numbered, v.Skipped, v.Jumps, v.Farthest, v.Shared, v.Lost, v.Preceded)
}

// Faults are what must not be, one line each; none: all is well.
func (v Verdict) Faults() (faults []string) {
	fault := func(n uint64, what string) {
		if n != 0 {
			faults = append(faults, fmt.Sprintf("%d %s", n, what))
		}
	}
	fault(uint64(v.Missing), "exchanges are missing")
	fault(uint64(v.Doubled), "events double an exchange under another id")
	fault(uint64(v.Wrong), "events say what was not so")
	fault(uint64(v.Unknown), "events are of exchanges that nobody made")
	fault(uint64(v.Changed), "events come again and say something else")
	fault(uint64(v.Twice), "events come twice from one flatd")
	fault(v.Skipped-min(v.Skipped, v.Lost+v.Unused), fmt.Sprintf("sequence numbers are skipped, in %d places, the most at once %d; lost events are not the reason", v.Jumps, v.Farthest))
	fault(uint64(v.Shared), "sequence numbers stand for several events")
	fault(uint64(v.Preceded), "warnings of other programs ahead of flatd's, which are flatd's own")
	return faults
}

// line is what the judge looks at of flatd's JSON.
type line struct {
	Event struct {
		ID, Dataset, Action string
		Duration            int64
		Sequence            uint64
	}
	Source, Destination struct {
		IP   netip.Addr
		Port uint16
	}
	DNS struct {
		ID       uint16
		Question struct{ Name string }
	}
	Message string
	Flatd   struct {
		Result, Side string
		Lost         uint64
	}
	run string
}

// unused is what flatd says of sequence numbers that it left out.
var unused = regexp.MustCompile(`(\d+) sequence numbers are unused`)

func (l *line) String() string {
	return fmt.Sprintf("%s %s %s from %s", l.Flatd.Side, l.Flatd.Result, l.Event.ID, l.run)
}

func (l *line) kind() string { return strings.TrimPrefix(l.Event.Dataset, "flatd.") }

func (l *line) far() netip.Addr {
	if l.Flatd.Side == "server" {
		return l.Source.IP
	}
	return l.Destination.IP
}

// same reports whether an event that comes again says the same.
func (l *line) same(o *line) bool {
	a, b := *l, *o
	a.run, b.run = "", ""
	return a == b
}

// describes reports whether an event is as its exchange was. A question of many
// that nobody answered may have been forgotten. Where the answer took limit or
// more, a timeout is right as well.
func (l *line) describes(e *Exchange, limit time.Duration) bool {
	ends := netip.AddrPortFrom(l.Destination.IP, l.Destination.Port) == e.To && l.Source.Port == e.From.Port()
	name := l.DNS.Question.Name == e.Name || l.DNS.Question.Name == "" && l.Flatd.Result == "timeout"
	result := l.Flatd.Result == e.Result || l.Flatd.Result == "timeout" && e.Took >= limit
	side := map[bool]string{false: "client", true: "server"}[e.Inbound]
	return l.kind() == e.Kind && ends && name && l.DNS.ID == e.ID && result && l.Flatd.Side == side
}

// judge has the events, by what they are about.
type judge struct {
	Verdict
	limit   time.Duration
	marks   []Mark
	byID    map[string]*line
	reports map[netip.Addr][]*line // by the far end
	places  map[string]int
}

// Judge holds what flatd printed in all its runs against what was made. limit is
// after how long a request times out.
func Judge(made []Exchange, limit time.Duration, runs []Run, marks []Mark) (Verdict, error) {
	j := &judge{limit: limit, marks: marks, byID: make(map[string]*line), reports: make(map[netip.Addr][]*line), places: make(map[string]int)}
	var errs []error
	for _, r := range runs {
		if err := j.read(r); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.Name, err))
		}
	}
	j.Made = len(made)
	for i := range made {
		e := &made[i]
		j.exchange(e, j.reports[e.far()])
		delete(j.reports, e.far())
	}
	for _, rest := range j.reports {
		for _, l := range rest {
			j.Unknown++
			j.example("unknown: %s %s", l.far(), l)
		}
	}
	j.sequence()
	for _, place := range slices.Sorted(maps.Keys(j.places)) {
		j.Places = append(j.Places, fmt.Sprintf("%d %s", j.places[place], place))
	}
	return j.Verdict, errors.Join(errs...)
}

// read takes the events of one run.
func (j *judge) read(r Run) error {
	lines := bufio.NewReaderSize(r.Output, 1<<20)
	seen := make(map[string]bool)
	for {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(text) > 0 && !r.Killed {
				return fmt.Errorf("ends within a line: %q", text)
			}
			return nil
		}
		if err != nil {
			return err
		}
		l := &line{run: r.Name}
		if err := json.Unmarshal(bytes.TrimSpace(text), l); err != nil {
			return fmt.Errorf("not an event: %q: %w", text, err)
		}
		j.event(l, seen)
	}
}

// event takes one. seen are the ids of its flatd.
func (j *judge) event(l *line, seen map[string]bool) {
	about := slices.Contains(kinds, l.kind())
	before := j.byID[l.Event.ID]
	switch {
	case about && before == nil:
		j.reports[l.far()] = append(j.reports[l.far()], l)
	case about:
		j.Repeated++
		if seen[l.Event.ID] {
			j.Twice++
		}
		if !before.same(l) {
			j.Changed++
			j.example("changed: %s, and %s", before, l)
		}
	case before != nil:
	case l.Event.Action == "loss":
		j.Lost += l.Flatd.Lost
	case l.Event.Action == "preceded":
		j.Preceded++
	case unused.MatchString(l.Message):
		n, _ := strconv.ParseUint(unused.FindStringSubmatch(l.Message)[1], 10, 64)
		j.Unused += n
	}
	seen[l.Event.ID] = true
	if before == nil {
		j.byID[l.Event.ID] = l
	}
}

// exchange judges what was reported of one.
func (j *judge) exchange(e *Exchange, reports []*line) {
	if len(reports) == 0 {
		j.Missing++
		j.fault("missing", e, reports)
		return
	}
	more := len(reports) - 1
	if e.Took >= j.limit && slices.ContainsFunc(reports, func(l *line) bool { return l.Flatd.Result == "timeout" }) {
		more-- // the late answer
	}
	if more > 0 {
		j.Doubled += more
		j.fault("doubled", e, reports)
	}
	wrong := 0
	for _, l := range reports {
		if !l.describes(e, j.limit) {
			wrong++
		}
	}
	if j.Wrong += wrong; wrong > 0 {
		j.fault("wrong", e, reports)
	} else if more <= 0 {
		j.Reported++
	}
}

func (j *judge) fault(what string, e *Exchange, reports []*line) {
	place := "the begin"
	for _, m := range j.marks {
		if !e.Began.Before(m.At) {
			place = m.Name
		}
	}
	about := "an answer"
	if e.Result == "timeout" {
		about = "a timeout"
	}
	for _, l := range reports {
		about += ", " + l.run
		if what == "wrong" {
			about += " says " + l.Flatd.Side + " " + l.Flatd.Result
		}
	}
	j.places[fmt.Sprintf("%s, begun after %s: %s", what, place, about)]++
	text := fmt.Sprintf("%s: %s, begun at %s", what, e, e.Began.Format("05.000000"))
	for _, l := range reports {
		text += fmt.Sprintf("; %s", l)
	}
	j.example("%s", text)
}

// example keeps the first of a kind.
func (j *judge) example(format string, args ...any) {
	const few = 4
	text := fmt.Sprintf(format, args...)
	kind, _, _ := strings.Cut(text, ":")
	same := 0
	for _, other := range j.Examples {
		if strings.HasPrefix(other, kind+":") {
			same++
		}
	}
	if same < few {
		j.Examples = append(j.Examples, text)
	}
}

// sequence looks for numbers that are left out, or given twice.
func (j *judge) sequence() {
	var all []*line
	for _, l := range j.byID {
		if l.Event.Sequence != 0 {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *line) int {
		if a.Event.Sequence < b.Event.Sequence {
			return -1
		}
		return 1
	})
	j.Numbered = len(all)
	for i := 1; i < len(all); i++ {
		switch apart := all[i].Event.Sequence - all[i-1].Event.Sequence; apart {
		case 0:
			j.Shared++
		case 1:
		default:
			j.Skipped += apart - 1
			j.Jumps++
			j.Farthest = max(j.Farthest, apart-1)
			j.example("skipped: %d between %s and %s", apart-1, all[i-1], all[i])
		}
	}
}
