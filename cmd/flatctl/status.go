package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/daemon"
)

func statusCommand(c *client) *cobra.Command {
	var asJSON, counters bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether flatd measures, where events go and what is lost",
		Long: `Show whether flatd measures, where events go and what is lost.

The exit status is 0 if all is well and 1 if flatd does not measure, does not
answer, or reports a problem.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s daemon.Status
			if err := c.get("/v1/status", &s); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), s)
			}
			printStatus(cmd.OutOrStdout(), &s, counters)
			if len(s.Problems) > 0 {
				return fmt.Errorf("%d problems, see above", len(s.Problems))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON, as GET /v1/status does")
	cmd.Flags().BoolVar(&counters, "counters", false, "add the kernel's counters, one for each way a packet can end")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printStatus(to io.Writer, s *daemon.Status, counters bool) {
	w := tabwriter.NewWriter(plain{to}, 0, 8, 2, ' ', 0)
	defer w.Flush()
	state := "measuring"
	if !s.Measuring {
		state = "NOT MEASURING"
	}
	fmt.Fprintf(w, "flatd %s on %s:\t%s\n", s.Version, s.Host, state)
	fmt.Fprintf(w, "  running:\tsince %s (%s), found the kernel's half %s\n", s.Since.Local().Format(time.DateTime),
		time.Since(s.Since).Round(time.Second), found[string(s.Start)])
	for _, p := range s.Problems {
		fmt.Fprintf(w, "  PROBLEM:\t%s\n", p)
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
	b := &s.Books
	fmt.Fprintf(w, "  requests:\t%d = %d finished + %d timed out + %d half open + %d open + %d replaced + %d not followed\n",
		b.Requests, b.Finished, b.TimedOut, b.HalfOpen, b.Open, b.Replaced, b.PendingFull)
	fmt.Fprintf(w, "  finished:\t%d of results not asked for, %d too fast to tell, %d sampled out, %d lost, the rest read\n",
		b.ResultOut, b.TooFast, b.SampledOut, b.RingFull)
	fmt.Fprintf(w, "  this daemon:\t%d records read, %d timeouts found, %d not understood\n", b.Read, b.TimeoutsSeen, b.DecodeErrors)
	if counters {
		printCounters(w, s.Counters)
	}
}

var found = map[string]string{
	"fresh":   "absent, and made it",
	"adopt":   "at work, and took it over as it was",
	"replace": "of another version, and replaced the programs",
}

func printCounters(w io.Writer, counters map[string]uint64) {
	names := make([]string, 0, len(counters))
	for name := range counters {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(w, "  counter %s:\t%d\n", name, counters[name])
	}
}

func interfacesCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:   "interfaces",
		Short: "List the interfaces that are measured, and those that should be",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []daemon.InterfaceStatus
			if err := c.get("/v1/interfaces", &all); err != nil {
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
