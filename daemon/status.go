package daemon

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/links"
	"github.com/flatd/flatd/daemon/pipeline"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// Status asks everything that has a part in flatd how it is.
func (d *Daemon) Status() (api.Status, error) {
	counters, err := d.state.Counters()
	if err != nil {
		return api.Status{}, err
	}
	s := api.Status{
		Version: d.options.Version, Host: d.host.Load().Name, Start: d.state.Start, Since: d.started,
		Programs: d.state.Object, Refused: d.state.Refused,
		Interfaces: d.Interfaces(),
		Books: api.Books{
			Requests: counters[bpf.Requests], Finished: counters[bpf.Finished], TimedOut: counters[bpf.TimedOut],
			HalfOpen: counters[bpf.HalfOpen], Translated: counters[bpf.Translated], NotLooking: counters[bpf.NotLooking],
			Late: counters[bpf.Late], Rescued: counters[bpf.Rescued],
			Replaced: counters[bpf.Replaced], PendingFull: counters[bpf.PendingFull], Paused: counters[bpf.Paused],
			ResultOut: counters[bpf.ResultOut], TooFast: counters[bpf.TooFast], SampledOut: counters[bpf.SampledOut], RingFull: counters[bpf.RingFull],
		},
		Counters: counters.Map(),
		Stuck:    d.Stuck(),
	}
	d.pipeline.Account(&s)
	for _, o := range d.fanout.Stats() {
		s.Outputs = append(s.Outputs, outputStatus(o))
	}
	s.Measuring, s.Problems = d.judge(s)
	s.Summary = summarize(s)
	return s, nil
}

func outputStatus(o outputs.Stats) api.OutputStatus {
	s := api.OutputStatus{
		Name: o.Name, Offered: o.Offered, Delivered: o.Delivered, Withheld: o.Withheld,
		Failed: o.Failed, Dropped: o.Dropped, Queued: o.Queued, Down: o.Down,
	}
	if o.Down {
		s.Error = o.LastError
	}
	return s
}

// Interfaces lists those that are measured, then those that are not but should.
func (d *Daemon) Interfaces() []api.InterfaceStatus {
	all := []api.InterfaceStatus{}
	ahead := d.links.Ahead()
	for _, a := range d.state.Attacher.Attachments() {
		all = append(all, api.InterfaceStatus{Name: a.Name, Index: a.Index, Mode: a.Mode, L3: a.L3, Ahead: ahead[a.Index]})
	}
	failing := d.links.Failing()
	for _, name := range slices.Sorted(maps.Keys(failing)) {
		all = append(all, api.InterfaceStatus{Name: name, Error: failing[name]})
	}
	return all
}

// judge says whether flatd measures and delivers, and what is in the way.
func (d *Daemon) judge(s api.Status) (measuring bool, problems []string) {
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
	if s.Stuck != "" {
		problems = append(problems, "no progress: "+s.Stuck)
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
		problems = append(problems, pipeline.LostBefore(s.Books.LostBefore))
	}
	if s.Books.PendingFull > 0 {
		problems = append(problems, fmt.Sprintf("%d requests not followed since the pins were made: the table was full", s.Books.PendingFull))
	}
	return measuring, problems
}

func summarize(s api.Status) string {
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
	linksPatience    = 2*links.ReconcileEvery + 15*time.Second
	outputsPatience  = 4 * outputs.WriteTimeout
)

// Stuck names what makes no progress, or is "".
func (d *Daemon) Stuck() string {
	now := time.Now()
	if now.Sub(d.pipeline.Beat()) > pipelinePatience {
		return "the reader of the event ring"
	}
	if now.Sub(d.links.Beat()) > linksPatience {
		return "the watch on the interfaces"
	}
	if now.Sub(d.fanout.Progress()) > outputsPatience {
		return "an output whose write does not return"
	}
	return ""
}

func (d *Daemon) reportStart() {
	d.pipeline.Status(flows.ActionStart, flows.Interface{}, fmt.Sprintf("flatd %s started (%s): %s", d.options.Version, d.state.Start, d.statusLine()))
}

// Finished are the kernel's histograms of exchanges that had an answer.
func (d *Daemon) Finished() ([]bpf.Histogram, error) {
	all, err := d.state.Histograms()
	return slices.DeleteFunc(all, func(h bpf.Histogram) bool { return h.Result == uint8(flows.ResultTimeout) }), err
}
