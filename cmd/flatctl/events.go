package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/outputs"
)

// eventFilters are the flags that /v1/events knows as parameters.
var eventFilters = []struct{ name, usage string }{
	{"kind", "only this `kind`: tcp, dns, udp, icmp, status, summary"},
	{"side", "only of this `side`: where this host asked (client) or was asked (server)"},
	{"result", "only this `result`: established, refused, timeout, answered, nxdomain …"},
	{"peer", "only with this `address` or prefix at either end"},
	{"port", "only with this `port` at either end"},
	{"interface", "only on the interface of this `name`"},
	{"unit", "only of this systemd `unit` on this host, such as nginx.service"},
}

func eventsCommand(c *client) *cobra.Command {
	var follow bool
	var limit int
	var format, slower string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show recent events, and new ones as they happen",
		Long: `Show recent events, and with -f new ones as they happen. flatd remembers the
last 1024; the journal has more: journalctl -u flatd.

A filter may be given several times, or with commas; one value must match.`,
		Example: `  flatctl events -f
  flatctl events -f --result refused,timeout
  flatctl events --peer 10.0.0.0/8 --port 443 --slower 100ms
  flatctl events -o json | jq .event.duration`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{"limit": {strconv.Itoa(limit)}, "follow": {strconv.FormatBool(follow)}}
			for _, f := range eventFilters {
				if values, err := cmd.Flags().GetStringSlice(f.name); err == nil && len(values) > 0 {
					query[f.name] = values
				}
			}
			if slower != "" {
				query.Set("slower", slower)
			}
			switch format {
			case "json":
			case "text":
				query.Set("format", "text")
				query.Set("color", strconv.FormatBool(outputs.UseColor(os.Stdout)))
			default:
				return fmt.Errorf("-o %s: must be text or json; %w", format, errUsage)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
			defer stop()
			return c.copy(ctx, "/v1/events?"+query.Encode(), cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "go on with new events until interrupted")
	flags.IntVarP(&limit, "limit", "n", 100, "the `number` of recent events to show at first")
	flags.StringVarP(&format, "output", "o", "text", "`format` of each event: text or json")
	flags.StringVar(&slower, "slower", "", "only what took at least this `duration`, such as 100ms")
	for _, f := range eventFilters {
		flags.StringSlice(f.name, nil, f.usage)
	}
	return cmd
}
