package daemon

import (
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/outputs"
)

// makeQueues makes the outputs that c asks for, each behind its queue. With
// the configuration that was in force so far, what it left unchanged goes on.
func (d *Daemon) makeQueues(c config.Config, old *config.Config) (queues []*outputs.Queue, err error) {
	add := func(name string, capacity int, unchanged bool, open func() (outputs.Output, error)) {
		if err != nil {
			return
		}
		if old != nil && unchanged {
			if q := d.fanout.Queue(name); q != nil {
				queues = append(queues, q)
				return
			}
		}
		output, openErr := open()
		if openErr != nil {
			err = fmt.Errorf("open output %s: %w", name, openErr)
			return
		}
		queues = append(queues, outputs.NewQueue(output, capacity, d.outputChanged))
	}
	o, was := c.Outputs, config.Outputs{}
	if old != nil {
		was = old.Outputs
	}
	if o.Journald.Enabled && d.journald() {
		add("journald", o.Journald.Queue, o.Journald == was.Journald, func() (outputs.Output, error) {
			return outputs.NewJournal(outputs.JournalOptions{
				Host: d.host.Load, Profile: o.Journald.Profile, NoObjectUnit: !o.Journald.ObjectUnit,
				SuccessRate: o.Journald.SuccessesPerSecond, SuccessBurst: o.Journald.SuccessesBurst,
				FailureRate: o.Journald.FailuresPerSecond, FailureBurst: o.Journald.FailuresBurst,
			})
		})
	}
	if o.NATS.URL != "" {
		add("nats", o.NATS.Queue, o.NATS == was.NATS, func() (outputs.Output, error) {
			return outputs.NewNATS(d.natsOptions(o.NATS))
		})
	}
	if o.Stdout.Enabled {
		add("stdout", o.Stdout.Queue, o.Stdout == was.Stdout, func() (outputs.Output, error) {
			return outputs.NewStdout(outputs.StdoutOptions{
				Host: d.host.Load, Writer: os.Stdout, Format: o.Stdout.Format, Color: outputs.UseColor(os.Stdout),
			})
		})
	}
	if len(queues) == 0 && err == nil {
		d.log.Warn("no output is at work; events can be seen with `flatctl events` and are counted, nothing else")
	}
	return queues, err
}

// journald reports whether there is one to write to. Under systemd there
// always is; elsewhere flatd does without.
func (d *Daemon) journald() bool {
	if journal.Enabled() {
		return true
	}
	d.log.Warn("no journald on this host, continuing without it; `flatctl reload` looks again", "socket", outputs.JournalSocket)
	return false
}

func (d *Daemon) natsOptions(c config.NATS) outputs.NATSOptions {
	return outputs.NATSOptions{
		Host: d.host.Load, URL: c.URL, Subject: c.Subject, Mode: c.Mode,
		Credentials: c.Credentials, NKey: c.NKey, Token: c.Token, User: c.User, Password: c.Password,
		CA: c.TLSCA, Cert: c.TLSCert, Key: c.TLSKey,
	}
}

// outputChanged logs that an output starts to fail, or works again. It is called
// once for each.
func (d *Daemon) outputChanged(name string, err error) {
	if err != nil {
		d.log.Warn("output fails, its queue keeps the newest events and tries on", "output", name, "error", err)
		return
	}
	d.log.Info("output works", "output", name)
}
