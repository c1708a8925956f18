package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

type eventsFlags struct {
	follow  bool
	limit   int
	format  string
	columns []string
	nats    sourceFlags
}

const usualLimit = 100

func eventsCommand(c *source.Client) *cobra.Command {
	var f eventsFlags
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show recent events, and new ones as they happen",
		Long: fmt.Sprintf(`Show recent events, and with -f new ones as they happen. flatd remembers the
last %d; the journal has more: journalctl -u flatd.

A filter may be given several times, or with commas; one value must match. All
filters together must.

With --nats events come from a NATS server, and may be of many hosts; with a
second one the table gets a column for the host. The server has nothing past, so
new events are shown until interrupted, as with -f. But if a JetStream stream
has the subject, --since shows what the stream has since then, and ends there
unless -f is given.

While flatd or the server is away, -f waits for it and then goes on.`, api.RecentMax),
		Example: `  flatctl events -f
  flatctl events -f --result refused,timeout
  flatctl events --to 10.0.0.0/8 --port 443 --slower 100ms --since 10m
  flatctl events --kind dns --side client --unit nginx
  flatctl events --columns time,destination,duration,flatd.rtt
  flatctl events -o json | jq .event.duration
  flatctl events --nats nats://10.99.0.1:4222 --subject 'flatd.v1.*.*.timeout'
  flatctl events --nats nats://10.99.0.1:4222 --since 1h --to 10.0.0.7`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, c) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on with new events until interrupted")
	flags.IntVarP(&f.limit, "limit", "n", usualLimit, "the `number` of past events to show at most, the latest; with --since all, if not given")
	flags.StringVarP(&f.format, "output", "o", "table", "`format` of the events: table, line or json")
	flags.StringSliceVar(&f.columns, "columns", flows.DefaultColumns(), "the `columns` of the table: "+strings.Join(columnNames(), ", ")+", or any field, such as flatd.rtt")
	flags.Lookup("columns").DefValue = strings.Join(flows.DefaultColumns(), ", ") // for the help
	filterFlags(flags)
	f.nats.register(flags)
	return cmd
}

func columnNames() (names []string) {
	for _, c := range flows.Columns() {
		names = append(names, c.Name)
	}
	return names
}

func (f *eventsFlags) run(cmd *cobra.Command, c *source.Client) error {
	given, err := conditions(cmd.Flags())
	if err != nil {
		return err
	}
	say := sayTo(cmd.ErrOrStderr())
	from, err := f.nats.source(cmd.Flags(), c, say)
	if err != nil {
		return err
	}
	r := source.Request{Conditions: given, Limit: f.limit, Follow: f.follow}
	if err := f.bound(cmd.Flags(), from, &r); err != nil {
		return err
	}
	out := bufio.NewWriter(cmd.OutOrStdout())
	show, err := f.form(cmd, out, r.Follow)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	ctx, cancel := untilClosed(ctx, cmd.OutOrStdout())
	defer cancel()
	shown := false
	err = from.Events(ctx, r, func(one *source.Report) error {
		shown = true
		if err := show.show(one); err != nil || !r.Follow {
			return err
		}
		return out.Flush()
	})
	if err == nil && !shown && !r.Follow {
		say("no event matches")
	}
	return errors.Join(err, show.end(), out.Flush())
}

// bound says how far back events go.
func (f *eventsFlags) bound(flags *pflag.FlagSet, from source.Source, r *source.Request) error {
	since, limited := r.Conditions.Has("since"), flags.Changed("limit")
	switch {
	case limited && (f.limit < 0 || f.limit > api.RecentMax):
		return fmt.Errorf("--limit %d: must be from 0 to %d; %w", f.limit, api.RecentMax, errUsage)
	case limited && from.Remote() && !since:
		return fmt.Errorf("--limit: a NATS server has nothing past, but a stream of it may: say --since; %w", errUsage)
	case limited:
	case from.Remote():
		r.Limit = source.Unlimited
	case since:
		r.Limit = api.RecentMax
	}
	r.Follow = r.Follow || from.Remote() && !since
	return nil
}

func (f *eventsFlags) form(cmd *cobra.Command, out io.Writer, live bool) (form, error) {
	chosen := cmd.Flags().Changed("columns")
	if chosen && f.format != "table" {
		return nil, fmt.Errorf("--columns is for -o table; %w", errUsage)
	}
	terminal := terminalOf(cmd.OutOrStdout())
	switch f.format {
	case "json":
		return jsonForm{out}, nil
	case "line":
		return &lineForm{to: out, terminal: terminal}, nil
	case "table":
	default:
		return nil, fmt.Errorf("-o %s: must be table, line or json; %w", f.format, errUsage)
	}
	table := &tableForm{to: out, terminal: terminal, chosen: chosen, live: live}
	for _, name := range f.columns {
		column, ok := flows.ColumnOf(name)
		if !ok {
			return nil, fmt.Errorf("--columns: no column %q: there are %s, and every field; %w", name, strings.Join(columnNames(), ", "), errUsage)
		}
		table.columns = append(table.columns, column)
	}
	return table, nil
}

// sayTo writes for people, a line each, beside the output.
func sayTo(w io.Writer) source.Say {
	return func(format string, args ...any) { fmt.Fprintf(plain{w}, "flatctl: "+format+"\n", args...) }
}

// interruptible ends with Ctrl-C.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}
