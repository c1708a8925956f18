package main

// The command `flatctl top`: its flags, the full screen, and --once.

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/outputs"
)

type topFlags struct {
	group, order string
	window       time.Duration
	interval     time.Duration
	once         bool
	format       string
	limit        int
	nats         sourceFlags
}

// Bounds of the flags.
const (
	windowUsual, windowMin, windowMax       = time.Minute, 10 * time.Second, time.Hour
	intervalUsual, intervalMin, intervalMax = time.Second, 100 * time.Millisecond, time.Hour
	onceUsual                               = 5 * time.Second
)

func topCommand(c *source.Client) *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch who answers how fast, and who does not, live",
		Long: `Watch who answers how fast, and who does not: a full screen of the last minute's
exchanges by destination, unit, interface or host, kept up to date. Kinds, and
the two sides of an exchange, have rows of their own; "in" is where this host
was asked. FAIL counts what did not end well, T/O the timeouts among it. The
percentiles are those of ` + "`flatctl histogram`" + `.

Keys: s sorts otherwise, g groups otherwise, / filters by the same words as
` + "`flatctl events`" + `, p pauses, the arrows choose a row and Enter looks into it: its
histogram, its results, its latest failures. ? has the rest, q ends.

Only what comes from now on is counted. What the counts lack is shown with
them: what flatd leaves out of its events (sample, results, min_duration), what
is lost, and destinations beyond ` + fmt.Sprint(board.RowsMax) + `, which are counted together. If flatd
restarts that is waited for, and told.

With --nats it is all hosts of a NATS server, as one.

--once counts for an interval, prints it as a table or as JSON, and ends.`,
		Example: `  flatctl top
  flatctl top --group unit --sort p99
  flatctl top --kind tcp --side client --port 443
  flatctl top --once --interval 10s -o json | jq '.rows[0]'
  flatctl top --nats nats://10.99.0.1:4222 --group host`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, c) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.group, "group", board.ByDestination.String(), "a row for each `thing`: "+strings.Join(board.Groups(), ", "))
	flags.StringVar(&f.order, "sort", board.OrderRate.String(), "the greatest `figure` first: "+strings.Join(board.Orders(), ", "))
	flags.DurationVar(&f.window, "window", windowUsual, "count what came in the last `duration`, 10s to 1h")
	flags.DurationVar(&f.interval, "interval", 0, "`duration` between two changes of the screen, or that --once counts for")
	flags.BoolVar(&f.once, "once", false, "count for an interval, print that, and end")
	flags.StringVarP(&f.format, "output", "o", "table", "`format` of --once: table or json")
	flags.IntVarP(&f.limit, "limit", "n", 0, "the `number` of rows that --once prints at most")
	flags.Lookup("interval").DefValue = fmt.Sprintf("%v, with --once %v,", intervalUsual, onceUsual)
	flags.Lookup("limit").DefValue = "all"
	liveFilterFlags(flags)
	f.nats.register(flags)
	return cmd
}

// arrangement is which rows there are, and their order.
type arrangement struct {
	group board.Group
	order board.Order
}

func (f *topFlags) run(cmd *cobra.Command, c *source.Client) error {
	a, err := f.check(cmd.Flags())
	if err != nil {
		return err
	}
	given, err := conditions(cmd.Flags())
	if err != nil {
		return err
	}
	counted := &feed{window: f.window}
	if counted.source, err = f.nats.source(cmd.Flags(), c, counted.say); err != nil {
		return err
	}
	if counted.fleet, err = counted.source.Fleet(); err != nil {
		return err
	}
	defer counted.fleet.Close()
	defer counted.end()
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	if f.once {
		return f.printOnce(ctx, cmd, counted, a, given)
	}
	return f.show(ctx, cmd, counted, a, given)
}

// check completes the flags, and says what is wrong with them.
func (f *topFlags) check(flags *pflag.FlagSet) (a arrangement, err error) {
	if a.group, err = board.ParseGroup(f.group); err != nil {
		return a, fmt.Errorf("--group: %w; %w", err, errUsage)
	}
	if a.order, err = board.ParseOrder(f.order); err != nil {
		return a, fmt.Errorf("--sort: %w; %w", err, errUsage)
	}
	switch {
	case f.window < windowMin || f.window > windowMax:
		return a, fmt.Errorf("--window %v: must be from %v to %v; %w", f.window, windowMin, windowMax, errUsage)
	case flags.Changed("interval") && (f.interval < intervalMin || f.interval > intervalMax):
		return a, fmt.Errorf("--interval %v: must be from %v to %v; %w", f.interval, intervalMin, intervalMax, errUsage)
	case f.format != "table" && f.format != "json":
		return a, fmt.Errorf("-o %s: must be table or json; %w", f.format, errUsage)
	case f.limit < 0:
		return a, fmt.Errorf("--limit %d: must not be negative; %w", f.limit, errUsage)
	case !f.once && (flags.Changed("output") || flags.Changed("limit")):
		return a, fmt.Errorf("--output and --limit are for --once; %w", errUsage)
	case f.once:
		f.interval = cmp.Or(f.interval, onceUsual)
		f.window = max(f.interval+time.Minute, windowMin) // all of it, though it ends late
	default:
		f.interval = cmp.Or(f.interval, intervalUsual)
	}
	return a, nil
}

// show is the full screen.
func (f *topFlags) show(ctx context.Context, cmd *cobra.Command, counted *feed, a arrangement, given url.Values) error {
	out, ok := cmd.OutOrStdout().(*os.File)
	if !ok || !outputs.IsTerminal(out) || !outputs.IsTerminal(os.Stdin) {
		return fmt.Errorf("top takes a terminal to draw on and to read keys from; --once does without")
	}
	if name := os.Getenv("TERM"); name == "" || name == "dumb" {
		return fmt.Errorf("TERM is %q, a terminal that cannot be drawn on; --once does without", name)
	}
	s := newScreen(terminalOf(out), counted, a, given, f.interval)
	if err := counted.follow(ctx, given, s.failed); err != nil || ctx.Err() != nil {
		return err
	}
	return s.run(ctx, out)
}

// printOnce counts for the interval, or until interrupted.
func (f *topFlags) printOnce(ctx context.Context, cmd *cobra.Command, counted *feed, a arrangement, given url.Values) error {
	failed := make(chan error, 1)
	if err := counted.follow(ctx, given, func(err error) { failed <- err }); err != nil || ctx.Err() != nil {
		return err
	}
	say := sayTo(cmd.ErrOrStderr())
	if err := counted.ask(ctx); err != nil {
		say("%v", err)
	}
	say("counting for %v", f.interval)
	select {
	case <-ctx.Done():
	case <-time.After(f.interval):
	case err := <-failed:
		return err
	}
	var s board.Snapshot
	counted.read(&s, a.group)
	s.Sort(a.order)
	if err := counted.ask(context.WithoutCancel(ctx)); err != nil {
		say("%v", err)
	}
	status := counted.status()
	for _, n := range status.notes {
		say("%s: %s", n.at.Format(time.TimeOnly), n.text)
	}
	if f.format == "json" {
		return printJSON(cmd.OutOrStdout(), topDocumentOf(&s, &status, a, f.limit))
	}
	for _, line := range status.lacks(&s) {
		say("%s", line)
	}
	t := terminalOf(cmd.OutOrStdout())
	_, err := io.WriteString(cmd.OutOrStdout(), t.plainTable(&s, f.limit))
	return err
}
