package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/packaging"
)

func configCommand(c *source.Client) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check, show or explain the configuration",
		Example: `  flatctl config check
  flatctl config default >/etc/flatd/flatd.toml`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check [FILE]",
		Short: "Say what is wrong with the configuration, with file, line and key",
		Example: `  flatctl config check && systemctl reload flatd
  flatctl config check ./flatd.toml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := config.DefaultPath
			if len(args) == 1 {
				path = args[0]
			}
			if _, err := config.Load(path); err != nil {
				return fmt.Errorf("%w:\n%w", config.ErrInvalid, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", path)
			return nil
		},
	}, &cobra.Command{
		Use:   "show",
		Short: "Print the configuration that flatd runs on",
		Example: `  flatctl config show
  flatctl config show | grep -A3 measure`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.Copy(cmd.Context(), "/v1/config?format=toml", cmd.OutOrStdout())
		},
	}, &cobra.Command{
		Use:   "default",
		Short: "Print the reference: every key, its meaning, unit, range and default",
		Example: `  flatctl config default | less
  flatctl config default >/etc/flatd/flatd.toml`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), packaging.Config)
			return err
		},
	})
	return cmd
}

func detachCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "detach",
		Short: "Remove everything of flatd's from the kernel",
		Long: `Remove everything of flatd's from the kernel: its programs from every
interface, and its pins with all that was measured and not yet delivered.
flatd must have been stopped. Other programs, filters and qdiscs stay.

Stopping flatd alone leaves the programs in place, so that measuring goes on.`,
		Example: `  systemctl stop flatd && flatctl detach
  flatctl detach --config ./flatd.toml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pins := config.Defaults().PinPath
			if c, err := config.Load(path); err == nil {
				pins = c.PinPath
			} else {
				fmt.Fprintf(os.Stderr, "flatctl: %v\nflatctl: using the default pin_path %s\n", err, pins)
			}
			removed, err := bpf.Remove(pins)
			for _, what := range removed {
				fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", what)
			}
			if err != nil {
				return fmt.Errorf("detach: %w", err)
			}
			if len(removed) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing of flatd's below "+pins)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", config.DefaultPath, "the configuration `file`, for its pin_path")
	return cmd
}
