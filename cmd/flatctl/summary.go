package main

import (
	"bytes"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/cmd/flatctl/source"
)

func summaryCommand(c *source.Client) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "summary",
		Short: "Show what the latest interval came to, by kind, side and destination",
		Long: `Show what the latest interval that is over came to: the exchanges of each kind
and side, and of the busiest and the worst destinations, with the times within
which 50, 90 and 99 % were answered; and what was left out of the events.

The table [summary] of the configuration says how long an interval is. Earlier
summaries are in the journal: journalctl EVENT_DATASET=flatd.summary`,
		Example: `  flatctl summary
  flatctl summary -o json | jq '.[].flatd.summary.p99'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("-o %s: must be text or json; %w", format, errUsage)
			}
			var answer bytes.Buffer
			if err := c.Copy(cmd.Context(), "/v1/summary?format="+format, &answer); err != nil {
				return err
			}
			if answer.Len() == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no summary: no interval is over yet, the last one was quiet, or summary.interval is \"0s\"")
			}
			_, err := answer.WriteTo(cmd.OutOrStdout())
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "text", "`format` of the summary: text or json")
	return cmd
}
