// Command flatctl talks to flatd and looks after it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
)

// version is set by the linker.
var version = "devel"

// Exit codes: 0 all is well, 1 it is not, 2 typed wrong.
const (
	exitFailed = 1
	exitUsage  = 2
)

var errUsage = errors.New("see `flatctl --help`")

func main() {
	// Who writes into a pipe that nobody reads gets an error, and is not killed.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := command().Execute(); err != nil && !errors.Is(err, syscall.EPIPE) {
		fmt.Fprintf(os.Stderr, "flatctl: %v\n", err)
		if errors.Is(err, errUsage) {
			os.Exit(exitUsage)
		}
		os.Exit(exitFailed)
	}
}

func command() *cobra.Command {
	c := &source.Client{}
	root := &cobra.Command{
		Use:   "flatctl",
		Short: "Talk to flatd, which measures how long the network takes to answer",
		Example: `  flatctl status                       is it measuring, does it lose anything
  flatctl top                          who answers how fast, live
  flatctl events -f                    what it sees, live
  flatctl events --result timeout      who never got an answer
  flatctl histogram --kind dns         how long answers took, drawn
  flatctl summary                      what the last minute came to
  flatctl doctor                       what is missing on this host, and the remedy`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
				hint = fmt.Sprintf("did you mean %q? ", similar[0])
			}
			return fmt.Errorf("no command %q: %s%w", args[0], hint, errUsage)
		},
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SuggestionsMinimumDistance = 2
	root.PersistentFlags().StringVar(&c.Socket, "socket", config.Defaults().Socket, "`path` of flatd's control socket")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w; %w", err, errUsage) })
	root.AddCommand(
		statusCommand(c),
		eventsCommand(c),
		topCommand(c),
		histogramCommand(c),
		summaryCommand(c),
		interfacesCommand(c),
		configCommand(c),
		reloadCommand(c),
		detachCommand(),
		doctorCommand(c),
		versionCommand(c),
	)
	for _, sub := range root.Commands() {
		if sub.Args == nil && !sub.HasSubCommands() {
			sub.Args = noArguments
		}
	}
	completeAll(root)
	return root
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q; %w", args[0], errUsage)
	}
	return nil
}

func reloadCommand(c *source.Client) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have flatd read its configuration again",
		Long: `Have flatd read its configuration again. It is in force when the command
returns. If anything is wrong with it nothing changes, and the error says what.`,
		Example: `  flatctl config check && flatctl reload`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.Post(cmd.Context(), "/v1/reload"); err != nil {
				return fmt.Errorf("reload: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "reloaded")
			return nil
		},
	}
}

func versionCommand(c *source.Client) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of flatctl and of the flatd at work",
		Example: `  flatctl version`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "flatctl %s\n", version)
			var s api.Status
			if err := c.Get(cmd.Context(), "/v1/status", &s); err != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "flatd   not reached: %v\n", err)
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "flatd   %s\n", s.Version)
			return nil
		},
	}
}
