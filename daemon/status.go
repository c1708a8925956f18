package daemon

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// Status is how flatd is, as /v1/status tells it.
type Status struct {
	Version string    `json:"version"`
	Host    string    `json:"host"`
	Start   bpf.Start `json:"start"` // what was found in the kernel: fresh, adopt, replace
	Since   time.Time `json:"since"`
	// Programs is which of the two objects is in the kernel: flat, or flat510 before Linux 5.12.
	// Refused is why the verifier of a newer kernel did not take flat, which is to be reported.
	Programs string `json:"programs"`
	Refused  string `json:"programs_refused,omitempty"`

	Measuring bool `json:"measuring"`
	// TakingOver: programs of an older layout follow their requests to the end.
	TakingOver bool     `json:"taking_over,omitempty"`
	Summary    string   `json:"summary"` // one line, also that of systemctl status
	Problems   []string `json:"problems,omitempty"`

	Interfaces []InterfaceStatus `json:"interfaces"`
	Outputs    []OutputStatus    `json:"outputs"`
	Books      Books             `json:"books"`
	Ring       RingStatus        `json:"ring"`
	// Counters are the kernel's, since the pins were made (bpf/counters.h).
	Counters map[string]uint64 `json:"counters"`
}

// InterfaceStatus is one interface that is measured or, if there is an error,
// should be.
type InterfaceStatus struct {
	Name  string   `json:"name"`
	Index int      `json:"index,omitempty"`
	Mode  bpf.Mode `json:"attach,omitempty"` // tcx or clsact
	L3    bool     `json:"l3,omitempty"`     // no link header
	// Ahead are the programs of others that see its packets before flatd does,
	// and can swallow them.
	Ahead []string `json:"ahead,omitempty"`
	Error string   `json:"error,omitempty"`
}

// OutputStatus are the books of one output: offered = delivered + withheld +
// failed + dropped + queued.
type OutputStatus struct {
	Name      string `json:"name"`
	Offered   uint64 `json:"offered"`
	Delivered uint64 `json:"delivered"`
	Withheld  uint64 `json:"withheld"`
	Failed    uint64 `json:"failed"`
	Dropped   uint64 `json:"dropped"`
	Queued    uint64 `json:"queued"`
	Down      bool   `json:"down"`
	Error     string `json:"error,omitempty"`
}

// Books are what came in and where it went (DESIGN: the books balance). Those
// of the kernel count since the pins were made, those of the daemon since its
// start.
type Books struct {
	// requests = finished + timed_out + half_open + translated + not_looking + open + replaced + pending_full
	Requests    uint64 `json:"requests"`
	Finished    uint64 `json:"finished"`
	TimedOut    uint64 `json:"timed_out"`
	HalfOpen    uint64 `json:"half_open"`   // TCP attempts from outside that were not completed
	Translated  uint64 `json:"translated"`  // whose answer may have come to a translated address
	NotLooking  uint64 `json:"not_looking"` // during which flatd did not see every packet
	Open        uint64 `json:"open"`        // as of the last sweep, a second ago at most
	Overdue     uint64 `json:"overdue"`     // of these, timeouts that wait for room in the ring
	Replaced    uint64 `json:"replaced"`
	PendingFull uint64 `json:"pending_full"`
	Paused      uint64 `json:"paused"` // not in requests: not begun, while an interface was being attached
	// finished + timed_out + late + rescued = result_out + too_fast + sampled_out + ring_full +
	// read_before + read, and what is still in the ring
	Late       uint64 `json:"late"`    // answers after their timeout was reported
	Rescued    uint64 `json:"rescued"` // of pending_full, those that got an answer
	ResultOut  uint64 `json:"result_out"`
	TooFast    uint64 `json:"too_fast"`
	SampledOut uint64 `json:"sampled_out"`
	RingFull   uint64 `json:"ring_full"`

	ReadBefore uint64 `json:"read_before"` // records, by daemons before this one
	Read       uint64 `json:"read"`        // records, by this daemon
	// each output's offered = read + taken_over - taken_over_both - decode_errors + own
	TimeoutsSeen uint64 `json:"timeouts_seen"` // of read
	DecodeErrors uint64 `json:"decode_errors"`
	TakenOver    uint64 `json:"taken_over"` // records of programs of an older layout
	Own          uint64 `json:"own"`        // events about flatd itself, and summaries
	// What the ring of those programs had no room for, as far as no daemon before
	// this one has told. Some of it the new programs may have reported.
	TakenOverLost uint64 `json:"taken_over_lost"`
	// What the settings left out of the exchanges of those programs.
	TakenOverOut uint64 `json:"taken_over_out"`
	// Records, of either ring, of exchanges that the programs of both layouts have begun:
	// left out, since the others' record is reported. Their sequence numbers are missing.
	TakenOverBoth uint64 `json:"taken_over_both"`
	// What daemons before this one have read and then ended with, while an output
	// was away, as far as they had not reported it as lost to every output.
	LostBefore uint64 `json:"lost_before"`
}

// RingStatus is the state of the event ring, in bytes.
type RingStatus struct {
	Size        int `json:"size"`
	Backlog     int `json:"backlog"`     // not read yet
	Outstanding int `json:"outstanding"` // read, but held back for an output
	// AtRisk is how many events have left the ring and some output does not have:
	// only queues hold them, and a restart or a crash would lose them.
	AtRisk int `json:"at_risk"`
}

// Status asks everything that has a part in flatd how it is.
func (d *Daemon) Status() (Status, error) {
	counters, err := d.state.Counters()
	if err != nil {
		return Status{}, err
	}
	p := d.pipeline
	s := Status{
		Version: d.options.Version, Host: d.host.Name, Start: d.state.Start, Since: d.started,
		Programs: d.state.Object, Refused: d.state.Refused,
		Interfaces: d.interfaces(), TakingOver: p.takingOver.Load(),
		Books: Books{
			Requests: counters[bpf.Requests], Finished: counters[bpf.Finished], TimedOut: counters[bpf.TimedOut],
			HalfOpen: counters[bpf.HalfOpen], Translated: counters[bpf.Translated], NotLooking: counters[bpf.NotLooking],
			Open: uint64(p.open[0].Load() + p.open[1].Load()), Overdue: uint64(p.overdue.Load()),
			Late: counters[bpf.Late], Rescued: counters[bpf.Rescued],
			Replaced: counters[bpf.Replaced], PendingFull: counters[bpf.PendingFull], Paused: counters[bpf.Paused],
			ResultOut: counters[bpf.ResultOut], TooFast: counters[bpf.TooFast], SampledOut: counters[bpf.SampledOut], RingFull: counters[bpf.RingFull],
			ReadBefore: p.readBefore, Read: p.read.Load(),
			TimeoutsSeen: p.timedOut.Load(), DecodeErrors: p.decodeErrors.Load(), Own: p.own.Load(),
			TakenOver: p.takenOver.Load(), TakenOverLost: p.previousLost.Load(), TakenOverOut: p.previousLeftOut(), LostBefore: p.lostBefore, TakenOverBoth: p.both.Load(),
		},
		Ring: RingStatus{
			Size: p.reader.Size(), Backlog: int(p.backlog.Load()),
			Outstanding: int(p.outstanding.Load()), AtRisk: int(p.atRisk.Load()),
		},
		Counters: counters.Map(),
	}
	for _, o := range d.fanout.Stats() {
		s.Outputs = append(s.Outputs, outputStatus(o))
	}
	s.Measuring, s.Problems = d.judge(s)
	s.Summary = summarize(s)
	return s, nil
}

func outputStatus(o outputs.Stats) OutputStatus {
	s := OutputStatus{
		Name: o.Name, Offered: o.Offered, Delivered: o.Delivered, Withheld: o.Withheld,
		Failed: o.Failed, Dropped: o.Dropped, Queued: o.Queued, Down: o.Down,
	}
	if o.Down {
		s.Error = o.LastError
	}
	return s
}

// interfaces lists those that are measured, then those that are not but should.
func (d *Daemon) interfaces() []InterfaceStatus {
	all := []InterfaceStatus{}
	ahead := *d.links.ahead.Load()
	for _, a := range d.state.Attachments() {
		all = append(all, InterfaceStatus{Name: a.Name, Index: a.Index, Mode: a.Mode, L3: a.L3, Ahead: ahead[a.Index]})
	}
	failing := *d.links.failing.Load()
	names := make([]string, 0, len(failing))
	for name := range failing {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		all = append(all, InterfaceStatus{Name: name, Error: failing[name]})
	}
	return all
}

// judge says whether flatd measures and delivers, and what is in the way.
func (d *Daemon) judge(s Status) (measuring bool, problems []string) {
	for _, i := range s.Interfaces {
		if i.Error == "" {
			measuring = true
		} else {
			problems = append(problems, fmt.Sprintf("interface %s: %s", i.Name, i.Error))
		}
	}
	if len(s.Interfaces) == 0 {
		problems = append(problems, "no interface to measure: see `interfaces` in flatd.toml; \"auto\" needs a default route")
	}
	if problem := d.owners.Problem(); problem != "" {
		problems = append(problems, problem)
	}
	if stuck := d.stuck(); stuck != "" {
		problems = append(problems, "no progress: "+stuck)
	}
	for _, o := range s.Outputs {
		if o.Down {
			problems = append(problems, fmt.Sprintf("output %s: %s", o.Name, o.Error))
		}
		if o.Dropped > 0 {
			problems = append(problems, fmt.Sprintf("output %s has dropped %d events: its queue was full", o.Name, o.Dropped))
		}
	}
	if s.Books.RingFull > 0 {
		problems = append(problems, fmt.Sprintf("%d events lost since the pins were made: the ring was full", s.Books.RingFull))
	}
	if s.Books.TakenOverLost > 0 {
		problems = append(problems, fmt.Sprintf("%d events lost of those that programs of another layout were to report: their ring was full", s.Books.TakenOverLost))
	}
	if s.Books.LostBefore > 0 {
		problems = append(problems, lostBefore(s.Books.LostBefore))
	}
	if s.Books.PendingFull > 0 {
		problems = append(problems, fmt.Sprintf("%d requests not followed since the pins were made: the table was full", s.Books.PendingFull))
	}
	return measuring, problems
}

func summarize(s Status) string {
	var names []string
	for _, i := range s.Interfaces {
		if i.Error == "" {
			names = append(names, i.Name)
		}
	}
	what := "not measuring: no interface"
	if s.Measuring {
		const most = 4
		if len(names) > most {
			names = append(names[:most], fmt.Sprintf("%d more", len(names)-most))
		}
		what = "measuring " + strings.Join(names, ", ")
	}
	line := fmt.Sprintf("%s; %d events, %d timeouts", what, s.Books.Read, s.Books.TimeoutsSeen)
	for _, o := range s.Outputs {
		if o.Down {
			line += "; " + o.Name + " down"
		}
	}
	return line
}

func (d *Daemon) statusLine() string {
	s, err := d.Status()
	if err != nil {
		return "status unknown: " + err.Error()
	}
	return s.Summary
}

// How long each part may take over what it does in a loop.
const (
	pipelinePatience = 15 * time.Second
	linksPatience    = 2*reconcileEvery + 15*time.Second
	outputsPatience  = 4 * outputs.WriteTimeout
)

// stuck names what makes no progress, or is "".
func (d *Daemon) stuck() string {
	now := time.Now()
	since := func(unix int64) time.Duration { return now.Sub(time.Unix(unix, 0)) }
	if since(d.pipeline.beat.Load()) > pipelinePatience {
		return "the reader of the event ring"
	}
	if since(d.links.beat.Load()) > linksPatience {
		return "the watch on the interfaces"
	}
	if now.Sub(d.fanout.Progress()) > outputsPatience {
		return "an output whose write does not return"
	}
	return ""
}

func (d *Daemon) tellStart() {
	d.pipeline.status(flows.ActionStart, flows.Interface{}, fmt.Sprintf("flatd %s started (%s): %s", d.options.Version, d.state.Start, d.statusLine()))
}
