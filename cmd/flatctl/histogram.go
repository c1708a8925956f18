package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

type histogramFlags struct {
	compare  []string
	interval time.Duration
	format   string
	nats     sourceFlags
}

// What an interval can be compared with.
const (
	compareNext  = "next"
	compareStart = "start"
)

func histogramCommand(c *source.Client) *cobra.Command {
	var f histogramFlags
	cmd := &cobra.Command{
		Use:   "histogram",
		Short: "Draw how long answers took, or compare two such distributions",
		Long: `Draw how long answers took: how many for each range of durations, ranges getting
longer by the same factor, with the percentiles.

The kernel counts every exchange that got an answer, by interface, kind, side,
family and result, since flatd's programs were first attached; what never became
an event is counted, too. For what it does not tell apart (from, to, peer, port,
unit, slower, since, and response codes of DNS) the histogram is made of events:
the last ` + fmt.Sprint(api.RecentMax) + ` that flatd remembers or, with --nats, those of a stream since a time.
Timeouts have no duration and are in neither.

--interval measures for so long, from now on. --compare draws a second
histogram beside the first: of the same selection with something else in it
(side=server), of the interval after the first (next), or of all before it
(start).

A percentile is the upper bound of the range that has the answer of that rank,
ceil(p/100 x count) from the fastest: the answer took less, and at least 80 % of
it. There are four ranges to each power of two nanoseconds, from 1.02 µs to 137 s.
The drawing joins some where there are too many.`,
		Example: `  flatctl histogram --kind tcp --side client
  flatctl histogram --interface eth0 --compare interface=wg0
  flatctl histogram --kind dns --interval 10s --compare start
  flatctl histogram --to 10.0.0.7 --port 443 --compare to=10.0.0.8
  flatctl histogram --unit nginx --since 10m -o json | jq .histograms[0].p99
  flatctl histogram --nats nats://10.99.0.1:4222 --kind tcp --interval 1m`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, c) },
	}
	flags := cmd.Flags()
	filterFlags(flags)
	flags.Lookup("kind").Usage = "only this `kind`: " + strings.Join(flows.ExchangeKindNames(), ", ")
	flags.Lookup("result").Usage = "only this `result`: established, refused, unreachable, answered, nxdomain …"
	flags.StringSlice("family", nil, "only of this address `family`: ipv4, ipv6")
	flags.DurationVar(&f.interval, "interval", 0, "count for this `duration`, such as 10s, and not since the start")
	flags.StringArrayVar(&f.compare, "compare", nil, "compare with this `other`: a condition as name=value, or next, or start")
	flags.StringVarP(&f.format, "output", "o", "text", "`format` of the histogram: text or json")
	f.nats.register(flags)
	return cmd
}

// measured is one histogram, and what it is of.
type measured struct {
	Name      string        `json:"name"`
	Selection url.Values    `json:"selection"`
	Source    string        `json:"source"`             // kernel or events
	Interval  time.Duration `json:"interval,omitempty"` // in nanoseconds; absent: all there is
	flows.Distribution

	histogram flows.Histogram
}

func (f *histogramFlags) run(cmd *cobra.Command, c *source.Client) error {
	if f.format != "text" && f.format != "json" {
		return fmt.Errorf("-o %s: must be text or json; %w", f.format, errUsage)
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	all, err := f.measure(ctx, cmd, c)
	if err != nil || ctx.Err() != nil {
		return err
	}
	for i := range all {
		all[i].Distribution = all[i].histogram.Distribution()
	}
	if f.format == "json" {
		return printJSON(cmd.OutOrStdout(), map[string]any{"histograms": all})
	}
	t := terminalOf(cmd.OutOrStdout())
	if len(all) == 1 {
		return drawOne(cmd.OutOrStdout(), t, &all[0])
	}
	return drawTwo(cmd.OutOrStdout(), t, &all[0], &all[1])
}

// measure returns one histogram or the two that are compared.
func (f *histogramFlags) measure(ctx context.Context, cmd *cobra.Command, c *source.Client) ([]measured, error) {
	say := sayTo(cmd.ErrOrStderr())
	from, err := f.nats.source(cmd.Flags(), c, say)
	if err != nil {
		return nil, err
	}
	selections, when, err := f.selections(cmd.Flags())
	if err != nil {
		return nil, err
	}
	var all []measured
	var meters []meter
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, s := range selections {
		m, origin, err := f.meter(c, from, s, when)
		if err != nil {
			return nil, err
		}
		meters = append(meters, m)
		all = append(all, measured{Name: nameOf(s), Selection: s, Source: origin})
	}
	if f.interval == 0 {
		return all, readAll(ctx, meters, func(i int, h flows.Histogram) { all[i].histogram = h })
	}
	return f.measureInterval(ctx, meters, all, when, say)
}

// selections are the conditions of the first histogram and, if the comparison is
// with another selection, of the second; else when says which time it is with.
func (f *histogramFlags) selections(flags *pflag.FlagSet) (selections []url.Values, when string, err error) {
	first, err := conditions(flags)
	if err != nil {
		return nil, "", err
	}
	if families := valuesOf(flags, "family"); families != nil {
		first["family"] = families
	}
	if _, err := newEventSelection(first); err != nil {
		return nil, "", fmt.Errorf("%w; %w", err, errUsage)
	}
	switch {
	case f.interval < 0:
		return nil, "", fmt.Errorf("--interval %v: must be positive; %w", f.interval, errUsage)
	case len(f.compare) == 0:
		return []url.Values{first}, "", nil
	case len(f.compare) == 1 && (f.compare[0] == compareNext || f.compare[0] == compareStart):
		if f.interval == 0 {
			return nil, "", fmt.Errorf("--compare %s: with what interval? say --interval; %w", f.compare[0], errUsage)
		}
		return []url.Values{first}, f.compare[0], nil
	}
	second, err := f.second(first)
	if err != nil {
		return nil, "", fmt.Errorf("--compare: %w; %w", err, errUsage)
	}
	return []url.Values{first, second}, "", nil
}

// second is the first selection with the conditions that differ.
func (f *histogramFlags) second(first url.Values) (url.Values, error) {
	second := maps.Clone(first)
	names := selectionNames()
	for _, condition := range f.compare {
		name, value, ok := strings.Cut(condition, "=")
		if !ok || !slices.Contains(names, name) {
			return nil, fmt.Errorf("%q must be %s, %s, or name=value with one of the names %s", condition, compareNext, compareStart, strings.Join(names, ", "))
		}
		second.Set(name, value)
	}
	if _, err := newEventSelection(second); err != nil {
		return nil, err
	}
	return second, absolute(second)
}

// nameOf describes a selection as one would type it.
func nameOf(s url.Values) string { return cmp.Or(conditionsText(s), "all") }

// measureInterval counts for the interval, and once more if the next is wanted.
func (f *histogramFlags) measureInterval(ctx context.Context, meters []meter, all []measured, when string, say source.Say) ([]measured, error) {
	var before, after [2]flows.Histogram
	if err := readAll(ctx, meters, func(i int, h flows.Histogram) { before[i] = h }); err != nil {
		return nil, err
	}
	if err := f.wait(ctx, meters, say, &after); err != nil {
		return nil, err
	}
	for i := range all {
		all[i].histogram, all[i].Interval = after[i].Since(&before[i]), f.interval
		all[i].Name += ", " + f.interval.String()
	}
	switch when {
	case compareStart:
		second := all[0]
		second.Name, second.Interval, second.histogram = nameOf(second.Selection)+", before", 0, before[0]
		all = append(all, second)
	case compareNext:
		second := all[0]
		var next [2]flows.Histogram
		if err := f.wait(ctx, meters, say, &next); err != nil {
			return nil, err
		}
		second.Name, second.histogram = nameOf(second.Selection)+", next "+f.interval.String(), next[0].Since(&after[0])
		all = append(all, second)
	}
	return all, nil
}

// wait lets the interval pass, and reads.
func (f *histogramFlags) wait(ctx context.Context, meters []meter, say source.Say, to *[2]flows.Histogram) error {
	say("counting for %v", f.interval)
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(f.interval):
	}
	return readAll(ctx, meters, func(i int, h flows.Histogram) { to[i] = h })
}

func readAll(ctx context.Context, meters []meter, take func(i int, h flows.Histogram)) error {
	for i, m := range meters {
		h, err := m.read(ctx)
		if err != nil {
			return err
		}
		take(i, h)
	}
	return nil
}
