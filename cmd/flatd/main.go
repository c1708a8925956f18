// Command flatd measures how long the network takes to answer.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/daemon"
	"github.com/flatd/flatd/daemon/config"
)

// version is set by the linker.
var version = "devel"

// Exit codes (sysexits.h, systemd.exec(5)).
const (
	exitFailed = 1
	exitUsage  = 2
	exitConfig = 78 // EX_CONFIG: restarting would not help
)

func main() {
	if err := command().Execute(); err != nil {
		if _, done := errors.AsType[reported](err); !done {
			fmt.Fprintf(os.Stderr, "flatd: %v\n", err)
		}
		os.Exit(exitCode(err))
	}
}

// reported is an error that standard error has already.
type reported struct{ error }

// Unwrap lets errors.Is find the cause.
func (r reported) Unwrap() error { return r.error }

// errUsage marks what the user typed wrong.
var errUsage = errors.New("see `flatd --help`")

func exitCode(err error) int {
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, config.ErrInvalid):
		return exitConfig
	}
	return exitFailed
}

func command() *cobra.Command {
	var path string
	var check bool
	c := &cobra.Command{
		Use:   "flatd",
		Short: "Measure how long the network takes to answer",
		Long: `flatd measures how long the network takes to answer: every TCP connection
attempt, DNS query, UDP exchange and ping of this host, seen by eBPF programs
on its interfaces. Events go to the journal, to NATS and to standard output.

It runs as a service: systemctl enable --now flatd. Talk to it with flatctl.`,
		Example: `  flatd                             run with /etc/flatd/flatd.toml, or the defaults
  flatd --config ./flatd.toml       run with another file
  flatd --check                     say what is wrong with the configuration
  journalctl -u flatd -f            what it sees`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unexpected argument %q; %w", args[0], errUsage)
			}
			return nil
		},
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if check {
				return checkConfig(c, path)
			}
			return run(c.Context(), path)
		},
	}
	c.Flags().StringVar(&path, "config", config.DefaultPath, "the configuration `file`")
	c.Flags().BoolVar(&check, "check", false, "check the configuration and exit: 0 if it is good, 78 if not")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w; %w", err, errUsage) })
	addServer(c)
	return c
}

func checkConfig(c *cobra.Command, path string) error {
	if _, err := config.Load(path); err != nil {
		return fmt.Errorf("%w:\n%w", config.ErrInvalid, err)
	}
	for _, warning := range config.Exposed(path) {
		fmt.Fprintf(c.ErrOrStderr(), "warning: %s\n", warning)
	}
	fmt.Fprintf(c.OutOrStdout(), "%s: good\n", path)
	return nil
}

// run is flatd until a signal: TERM and INT end it, HUP reloads. After the
// first signal to end, a second one kills.
func run(ctx context.Context, path string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop)

	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)

	stopServer, err := startServer()
	if err != nil {
		return err
	}
	defer stopServer()
	log, stderr := logger()
	defer stderr.flush(diagnosticsPatience)
	if err := daemon.Run(ctx, daemon.Options{ConfigPath: path, Version: version, Log: log, Hangup: hangup}); err != nil {
		fmt.Fprintf(stderr, "flatd: %v\n", err)
		return reported{err}
	}
	return nil
}
