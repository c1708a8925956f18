package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
)

type statusFlags struct {
	json, counters bool
	interval       time.Duration
	nats           sourceFlags
}

func statusCommand(c *source.Client) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether flatd measures, where events go and what is lost",
		Long: `Show whether flatd measures, where events go and what is lost, and, if there is a
problem, what to do.

With --nats it is a line for each host whose flatd the NATS server knows: whether
it measures, since when it runs, its events a second, what is lost, and outputs
that are in trouble.

The exit status is 0 if all is well and 1 if flatd does not measure, does not
answer, or reports a problem.`,
		Example: `  flatctl status
  flatctl status --counters | grep full
  flatctl status --json | jq .books
  flatctl status --nats nats://10.99.0.1:4222`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, c) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.json, "json", false, "print it as JSON, as GET /v1/status does; with --nats a list, by host")
	flags.BoolVar(&f.counters, "counters", false, "add the kernel's counters, one for each way a packet can end")
	flags.DurationVar(&f.interval, "interval", fleetInterval, "with --nats, count events for this `duration`")
	f.nats.register(flags)
	_ = flags.MarkHidden("subject") // it is of events; fails only if there is no such flag
	return cmd
}

func (f *statusFlags) run(cmd *cobra.Command, c *source.Client) error {
	from, err := f.nats.source(cmd.Flags(), c, nil)
	if err != nil {
		return err
	}
	if from.Remote() {
		return f.runFleet(cmd, from)
	}
	var s api.Status
	if err := c.Get(cmd.Context(), "/v1/status", &s); err != nil {
		return withState(cmd.Context(), c, err)
	}
	if f.json {
		err = printJSON(cmd.OutOrStdout(), s)
	} else {
		err = inFolds(cmd.OutOrStdout(), func(to io.Writer) error { return printStatus(to, &s, f.counters) })
	}
	return errors.Join(err, verdict(&s))
}

// verdict is an error if all is not well.
func verdict(s *api.Status) error {
	switch {
	case len(s.Problems) > 0:
		return fmt.Errorf("%d problems, see above", len(s.Problems))
	case !s.Measuring:
		return errors.New("flatd does not measure")
	}
	return nil
}

// withState adds what systemd says of flatd to an error, if it is the flatd that
// systemd runs.
func withState(ctx context.Context, c *source.Client, err error) error {
	if c.Socket != config.Defaults().Socket {
		return err
	}
	if state := unitState(ctx); state != "" {
		return fmt.Errorf("%w\nsystemd: %s", err, state)
	}
	return err
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printStatus(to io.Writer, s *api.Status, counters bool) error {
	w := tabwriter.NewWriter(plain{to}, 0, 8, 2, ' ', 0)
	state := "measuring"
	if !s.Measuring {
		state = "NOT MEASURING"
	}
	fmt.Fprintf(w, "flatd %s on %s:\t%s\n", s.Version, s.Host, state)
	fmt.Fprintf(w, "  running:\tsince %s (%s), found the kernel's half %s\n", s.Since.Local().Format(time.DateTime),
		time.Since(s.Since).Round(time.Second), found[string(s.Start)])
	fmt.Fprintf(w, "  programs:\t%s\n", programs(s))
	for _, p := range s.Problems {
		fmt.Fprintf(w, "  PROBLEM:\t%s\n", p)
	}
	for _, r := range remedies(s) {
		fmt.Fprintf(w, "  remedy:\t%s\n", r)
	}
	for _, i := range s.Interfaces {
		if i.Error == "" {
			fmt.Fprintf(w, "  interface:\t%s (index %d) by %s\n", i.Name, i.Index, i.Mode)
		}
		for _, other := range i.Ahead {
			fmt.Fprintf(w, "  WARNING:\ton %s another sees the packets first, %s\n", i.Name, other)
		}
	}
	for _, o := range s.Outputs {
		fmt.Fprintf(w, "  output %s:\t%d delivered, %d withheld, %d failed, %d dropped, %d queued\n",
			o.Name, o.Delivered, o.Withheld, o.Failed, o.Dropped, o.Queued)
	}
	fmt.Fprintf(w, "  lost:\t%s\n", losses(s))
	fmt.Fprintf(w, "  at risk:\t%s\n", atRisk(s))
	b := &s.Books
	fmt.Fprintf(w, "  requests:\t%d = %d finished + %d timed out + %d half open + %d open + %d replaced + %d dropped: table full + %d unreported\n",
		b.Requests, b.Finished, b.TimedOut, b.HalfOpen, b.Open, b.Replaced, b.PendingFull, b.Translated+b.NotLooking)
	if b.Overdue > 0 {
		fmt.Fprintf(w, "  overdue:\t%d of the open ones: their timeouts wait for room in the ring\n", b.Overdue)
	}
	if b.Translated+b.NotLooking > 0 {
		fmt.Fprintf(w, "  unreported:\t%d translated, %d while flatd did not see every packet\n", b.Translated, b.NotLooking)
	}
	if b.Paused > 0 {
		fmt.Fprintf(w, "  not begun:\t%d while an interface was being attached\n", b.Paused)
	}
	fmt.Fprintf(w, "  reported:\t%d finished, %d timed out, %d late, %d though the table was full\n", b.Finished, b.TimedOut, b.Late, b.Rescued)
	fmt.Fprintf(w, "  of these:\t%d filtered by result, %d below min_duration, %d sampled out, %d lost, the rest read\n",
		b.ResultOut, b.TooFast, b.SampledOut, b.RingFull)
	fmt.Fprintf(w, "  this daemon:\t%d records read, of them %d timeouts, %d not understood\n", b.Read, b.TimeoutsSeen, b.DecodeErrors)
	if b.TakenOver+b.TakenOverLost+b.TakenOverOut+b.TakenOverBoth > 0 {
		fmt.Fprintf(w, "  taken over:\t%d exchanges of programs of another layout, %d of both layouts and reported once, %d left out by the settings, %d lost\n",
			b.TakenOver, b.TakenOverBoth, b.TakenOverOut, b.TakenOverLost)
	}
	if counters {
		for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
			fmt.Fprintf(w, "  counter %s:\t%d\n", name, s.Counters[name])
		}
	}
	return w.Flush()
}

// atRisk says what the end of flatd would cost.
func atRisk(s *api.Status) string {
	if s.Ring.AtRisk == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d events, which only the queues of outputs hold: a restart or a crash of flatd would lose them", s.Ring.AtRisk)
}

var found = map[string]string{
	"fresh":   "absent, and made it",
	"adopt":   "at work, and took it over as it was",
	"replace": "of another version, and replaced the programs",
	"beside":  "of another layout, and made its own beside it",
}

func interfacesCommand(c *source.Client) *cobra.Command {
	return &cobra.Command{
		Use:     "interfaces",
		Short:   "List the interfaces that are measured, and those that should be",
		Example: `  flatctl interfaces`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []api.InterfaceStatus
			if err := c.Get(cmd.Context(), "/v1/interfaces", &all); err != nil {
				return err
			}
			w := tabwriter.NewWriter(plain{cmd.OutOrStdout()}, 0, 8, 2, ' ', 0)
			defer w.Flush()
			fmt.Fprintln(w, "NAME\tINDEX\tATTACHED\tNOTE")
			for _, i := range all {
				if i.Error != "" {
					fmt.Fprintf(w, "%s\t-\tno\t%s\n", i.Name, i.Error)
					continue
				}
				var notes []string
				if i.L3 {
					notes = append(notes, "no link header")
				}
				for _, other := range i.Ahead {
					notes = append(notes, "ahead on "+other)
				}
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", i.Name, i.Index, i.Mode, strings.Join(notes, "; "))
			}
			return nil
		},
	}
}
