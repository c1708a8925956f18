// Package daemon is flatd at work: it keeps the kernel's half attached, reads
// what that reports, hands it to the outputs, and answers on the control
// socket.
//
// Reading order: daemon.go says what there is, pipeline/pipeline.go is the way of an
// event, links/links.go the way of an interface.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/cgroups"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/daemon/control"
	"github.com/flatd/flatd/daemon/links"
	"github.com/flatd/flatd/daemon/pipeline"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// Options are what the command line says.
type Options struct {
	ConfigPath string
	Version    string
	Log        *slog.Logger
	Hangup     <-chan os.Signal // each one reloads the configuration
	// Reconcile is how often the interfaces are looked at when the kernel
	// has reported nothing; 0 is every 30 seconds.
	Reconcile time.Duration
}

// Daemon is one run of flatd. Make it with New, end it by the context of Run.
type Daemon struct {
	options  Options
	log      *slog.Logger
	host     atomic.Pointer[flows.Host] // its name may change
	started  time.Time
	state    *bpf.State
	fanout   *outputs.Fanout
	control  *control.Control
	pipeline *pipeline.Pipeline
	links    *links.Keeper
	owners   *cgroups.Tree
	service  *service

	reloading   sync.Mutex // one reload at a time
	mu          sync.Mutex // guards what follows
	config      config.Config
	natsService *outputs.NATSService // nil: none
}

// drainTime bounds how long a stop waits for the outputs.
const drainTime = 10 * time.Second

// reloadTime bounds how long a reload waits for the interfaces.
const reloadTime = 20 * time.Second

// Run is flatd from start to stop, which is when ctx ends. What it measured
// until then is delivered; the programs stay and go on measuring.
func Run(ctx context.Context, options Options) (err error) {
	loaded, err := config.Load(options.ConfigPath)
	if err != nil {
		return fmt.Errorf("%w:\n%w", config.ErrInvalid, err)
	}
	d := &Daemon{options: options, log: options.Log, config: loaded, started: time.Now()}
	d.warnOfExposure()
	host, err := flows.LocalHost()
	if err != nil {
		return err
	}
	d.host.Store(&host)
	// First, for the state is locked: of two that start at once, one has come no further.
	if err := d.openState(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.state.Close()) }()
	if d.service, err = openService(loaded.Socket, d.log); err != nil {
		return err
	}
	defer d.service.close()
	return d.run(ctx)
}

// openState takes over or makes the kernel's half and sets what it measures.
func (d *Daemon) openState() (err error) {
	if d.state, err = bpf.Open(d.config.PinPath, bpf.Mode(d.config.Attach)); err != nil {
		return err
	}
	if err := d.state.Apply(pipeline.Settings(d.config)); err != nil {
		return errors.Join(err, d.state.Close())
	}
	return nil
}

func (d *Daemon) run(ctx context.Context) error {
	reader, err := d.state.Requests.Reader()
	if err != nil {
		return err
	}
	defer reader.Close()
	queues, err := d.makeQueues(d.config, nil)
	if err != nil {
		return err
	}
	recent := pipeline.NewRecent()
	d.fanout = outputs.NewFanout(drainTime, queues...)
	d.owners = cgroups.New()
	defer d.owners.Close()
	if problem := d.owners.Problem(); problem != "" {
		d.log.Warn(problem + "; continuing")
	}
	if d.state.Refused != "" {
		d.log.Warn("the kernel refused the usual programs; measuring with those for Linux 5.10, which cost more. Please report it",
			"programs", d.state.Object, "refused", d.state.Refused)
	}
	d.pipeline = pipeline.New(d.state, reader, d.fanout, recent, d.owners, d.config, d.log)
	d.control = control.New(d, d.pipeline, d.host.Load, recent)
	if err := d.pipeline.TakeOver(); err != nil {
		return err
	}
	// Before they are attached, and anybody hears that flatd is ready, the programs are awake.
	if err := d.pipeline.RenewLease(d.config.KeepFor); err != nil {
		return err
	}
	d.links = links.New(d.state.Attacher, d.pipeline, d.config, d.options.Reconcile, d.log)

	// What waits in the ring is read at once, and is to have names.
	d.links.LearnNames()

	d.serveNATS(d.config.Outputs.NATS)

	tasks, tasksCtx := errgroup.WithContext(ctx)
	run := func(name string, task func(context.Context) error) {
		tasks.Go(func() error {
			if err := task(tasksCtx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	run("pipeline", d.pipeline.Run)
	run("interfaces", d.links.Run)
	run("cgroups", d.owners.Run)
	run("lease", d.renewLease)
	run("control socket", func(ctx context.Context) error {
		return d.control.Serve(ctx, d.service.control, d.service.metrics, d.log)
	})
	run("reload", d.reloadOnHangup)
	run("readiness", func(ctx context.Context) error { return d.service.report(ctx, d) })

	err = tasks.Wait()
	d.serveNATS(config.NATS{})
	return errors.Join(err, d.stop())
}

// renewLease keeps the programs awake. They go to sleep once no daemon has
// done so for the configured time, so that a host whose flatd is gone for good
// does not pay for it for ever.
func (d *Daemon) renewLease(ctx context.Context) error {
	select {
	case <-d.links.Ready:
	case <-ctx.Done():
		return nil
	}
	if err := d.pipeline.Wake(d.Config().KeepFor); err != nil {
		return err
	}
	for {
		pause := time.Minute
		if keep := d.Config().KeepFor; keep > 0 {
			pause = min(pause, keep/4)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		if err := d.pipeline.RenewLease(d.Config().KeepFor); err != nil {
			return err
		}
	}
}

func (d *Daemon) reloadOnHangup(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.options.Hangup:
			if err := d.Reload(); err != nil {
				d.log.Error("reload failed", "error", err)
			}
		}
	}
}

// stop delivers what has been measured, then leaves. The programs stay.
func (d *Daemon) stop() error {
	d.service.stopping(drainTime)
	d.pipeline.Status(flows.ActionStop, flows.Interface{}, "flatd stops; the programs stay attached and go on measuring")
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	err := d.pipeline.Drain(ctx)
	for _, s := range d.fanout.Stats() {
		d.log.Info("output stopped", "output", s.Name, "offered", s.Offered, "delivered", s.Delivered,
			"withheld", s.Withheld, "failed", s.Failed, "dropped", s.Dropped, "queued", s.Queued)
	}
	d.log.Info("flatd stopped; measuring goes on without it", "read", d.pipeline.Read(),
		"for", d.Config().KeepFor, "end it with", "flatctl detach")
	return err
}

// followName notices that the host has another name, as from DHCP or cloud-init after flatd
// has started. Events that no output has yet bear the new one.
func (d *Daemon) followName() {
	now := *d.host.Load()
	before := now.Name
	name, err := os.Hostname()
	// The caller feeds the watchdog, so it does not wait for a reload, which serves NATS as well.
	if err != nil || name == before || !d.reloading.TryLock() {
		return
	}
	defer d.reloading.Unlock()
	now.Name = name
	d.host.Store(&now)
	d.log.Info("the host has another name", "name", name, "before", before)
	d.pipeline.Status(flows.ActionConfig, flows.Interface{}, fmt.Sprintf("the host is called %s now, and was %s", name, before))
	d.serveNATS(d.Config().Outputs.NATS)
}

// Config returns the configuration in force.
func (d *Daemon) Config() config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config
}

func (d *Daemon) warnOfExposure() {
	for _, warning := range config.Exposed(d.options.ConfigPath) {
		d.log.Warn("the configuration is not safe: " + warning)
	}
}

// Reload reads the configuration again and puts it into force. If anything is
// wrong with it nothing changes, and the error says what.
func (d *Daemon) Reload() error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.service.reloading()
	defer d.service.reloaded()

	old := d.Config()
	loaded, err := config.Load(d.options.ConfigPath)
	if err != nil {
		return fmt.Errorf("%w, nothing changed:\n%w", config.ErrInvalid, err)
	}
	if loaded.PinPath != old.PinPath || loaded.Socket != old.Socket {
		return fmt.Errorf("%w, nothing changed: pin_path and socket need a restart (`systemctl restart flatd`)", config.ErrInvalid)
	}
	queues, err := d.makeQueues(loaded, &old)
	if err != nil {
		return fmt.Errorf("%w, nothing changed: %w", config.ErrInvalid, err)
	}
	if err := d.pipeline.Configure(loaded); err != nil {
		return fmt.Errorf("apply the configuration: %w", err)
	}
	if err := d.pipeline.RenewLease(loaded.KeepFor); err != nil {
		return err
	}
	d.fanout.Replace(queues)
	if loaded.Outputs.NATS != old.Outputs.NATS {
		d.serveNATS(loaded.Outputs.NATS)
	}
	d.mu.Lock()
	d.config = loaded
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), reloadTime)
	defer cancel()
	d.links.Configure(ctx, loaded)
	d.warnOfExposure()
	d.log.Info("configuration reloaded", "file", d.options.ConfigPath)
	d.pipeline.Status(flows.ActionConfig, flows.Interface{}, "configuration reloaded")
	return nil
}
