package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
)

// fleetInterval is for how long events are counted, unless a flag says otherwise.
const fleetInterval = time.Second

// fleetLine is one host of a fleet, as JSON has it.
type fleetLine struct {
	Host   string      `json:"host"`
	Error  string      `json:"error,omitempty"` // without a status
	Status *api.Status `json:"status,omitempty"`
	// Events, with timeouts, in so many nanoseconds. They are absent if flatd has
	// started anew in between.
	Events   *uint64       `json:"events,omitempty"`
	Interval time.Duration `json:"interval,omitempty"`
}

// runFleet asks twice, and so learns how many events there are a second.
func (f *statusFlags) runFleet(cmd *cobra.Command, from source.Source) error {
	fleet, err := from.Fleet()
	if err != nil {
		return err
	}
	defer fleet.Close()
	if f.interval <= 0 || f.counters {
		return fmt.Errorf("--interval must be positive, and --counters is for one host; %w", errUsage)
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	before, err := fleet.Statuses(ctx)
	if err != nil {
		return source.UnlessEnded(ctx, err)
	}
	if len(before) == 0 {
		return errors.New("no flatd answers on this server: does outputs.nats of flatd.toml name it, with service = true, and may this login publish to $SRV.> and srv.flatd.>?")
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(f.interval):
	}
	after, err := fleet.Statuses(ctx)
	if err != nil {
		return source.UnlessEnded(ctx, err)
	}
	lines := fleetLines(before, after)
	if f.json {
		err = printJSON(cmd.OutOrStdout(), lines)
	} else {
		err = printFleet(cmd.OutOrStdout(), lines)
	}
	return errors.Join(err, fleetVerdict(lines))
}

// fleetLines joins two rounds of answers. Who answered only in the first has
// stopped in between.
func fleetLines(before, after []source.HostStatus) []fleetLine {
	earlier := make(map[string]*source.HostStatus)
	for i := range before {
		earlier[before[i].Host] = &before[i]
	}
	var lines []fleetLine
	for i := range after {
		lines = append(lines, fleetLineOf(earlier[after[i].Host], &after[i]))
		delete(earlier, after[i].Host)
	}
	for _, h := range before {
		if earlier[h.Host] != nil {
			lines = append(lines, fleetLine{Host: h.Host, Error: "has gone away"})
		}
	}
	return lines
}

func fleetLineOf(before, after *source.HostStatus) fleetLine {
	line := fleetLine{Host: after.Host}
	if after.Err != nil {
		line.Error = after.Err.Error()
		return line
	}
	line.Status = &after.Status
	if before != nil && before.Err == nil && before.Status.Since.Equal(after.Status.Since) {
		n := eventsOf(&after.Status.Books) - eventsOf(&before.Status.Books)
		line.Events, line.Interval = &n, after.At.Sub(before.At)
	}
	return line
}

// eventsOf is how many exchanges a daemon has reported.
func eventsOf(b *api.Books) uint64 { return b.Read + b.TakenOver - b.TakenOverBoth - b.DecodeErrors }

func printFleet(to io.Writer, lines []fleetLine) error {
	w := tabwriter.NewWriter(plain{to}, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tSTATE\tSINCE\tEVENTS/S\tLOST\tTROUBLE")
	for _, l := range lines {
		if l.Status == nil {
			fmt.Fprintf(w, "%s\tUNKNOWN\t-\t-\t-\t%s\n", l.Host, l.Error)
			continue
		}
		state := "measuring"
		if !l.Status.Measuring {
			state = "NOT MEASURING"
		}
		rate := "-"
		if l.Events != nil {
			rate = short(float64(*l.Events) / l.Interval.Seconds())
		}
		trouble := "-"
		if len(l.Status.Problems) > 0 {
			trouble = strings.Join(l.Status.Problems, "; ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Host, state, l.Status.Since.Local().Format(time.DateTime), rate, losses(l.Status), trouble)
	}
	return w.Flush()
}

// fleetVerdict is an error if all is not well with all hosts.
func fleetVerdict(lines []fleetLine) error {
	var bad []string
	for _, l := range lines {
		if l.Status == nil || verdict(l.Status) != nil {
			bad = append(bad, l.Host)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("not well: %d of %d hosts, %s", len(bad), len(lines), strings.Join(bad, ", "))
}
