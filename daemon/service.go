package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/control"
)

// service is flatd's side of the service manager: the sockets it hands over
// and the notifications it wants (sd_notify(3)). Without one the control
// socket is made here and notifications go nowhere.
type service struct {
	log     *slog.Logger
	control net.Listener
	metrics []net.Listener
	own     string // path of a socket that we made, to be removed
}

func openService(socket string, log *slog.Logger) (*service, error) {
	s := &service{log: log}
	inherited, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("take over inherited sockets: %w", err)
	}
	for name, listeners := range inherited {
		switch name {
		case control.SocketName:
			s.control = listeners[0]
		case control.MetricsSocketName:
			s.metrics = listeners
		default:
			log.Warn("inherited a socket of a name that means nothing to flatd, closing it", "name", name,
				"known", control.SocketName+", "+control.MetricsSocketName)
			for _, l := range listeners {
				l.Close()
			}
		}
	}
	if s.control == nil {
		if s.control, err = listenControl(socket); err != nil {
			return nil, err
		}
		s.own = socket
	}
	return s, nil
}

// listenControl makes the control socket, as flatd.socket would.
func listenControl(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create the directory of the control socket: %w", err)
	}
	unlock, err := lockSocket(path) // against a flatd with another state
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	defer unlock()
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("control socket %s: another flatd answers on it; stop that one (`systemctl stop flatd`), or set another socket", path)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("open the control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("control socket %s: there is something else of this name, no socket; move it away, or set another socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the old control socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	if err := restrict(path); err != nil {
		l.Close()
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	return l, nil
}

// lockSocket waits until no other process has the lock of a socket. That is a file which
// stays, and not the directory: anybody who may read that could lock it, and so hold up the
// start for ever.
func lockSocket(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// restrict gives the socket to root and the group flatd, if there is one.
func restrict(path string) error {
	if err := os.Chmod(path, 0o660); err != nil {
		return err
	}
	group, err := user.LookupGroup(api.ControlGroup)
	if err != nil {
		return nil // root alone
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return fmt.Errorf("group %s: %w", api.ControlGroup, err)
	}
	return os.Chown(path, -1, gid)
}

func (s *service) close() {
	s.control.Close()
	for _, l := range s.metrics {
		l.Close()
	}
}

// report notifies the service manager when flatd is ready, how it is, and that it
// is alive, until ctx ends.
func (s *service) report(ctx context.Context, d *Daemon) error {
	select {
	case <-d.links.Ready:
	case <-ctx.Done():
		return nil
	}
	d.log.Info("flatd is ready", "version", d.options.Version, "start", d.state.Start,
		"interfaces", len(d.state.Attacher.Attachments()), "control", s.control.Addr())
	s.notify(sd.SdNotifyReady + "\nSTATUS=" + d.statusLine())
	d.reportStart()
	debug.FreeOSMemory() // what the start took, mostly to load programs, is several times what comes after it

	watchdog, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the watchdog interval: %w", err)
	}
	pause := 10 * time.Second
	if watchdog > 0 {
		pause = min(pause, watchdog/3)
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		d.followName()
		d.pipeline.ReportRefused()
		message := "STATUS=" + d.statusLine()
		if stuck := d.Stuck(); stuck == "" {
			message += "\n" + sd.SdNotifyWatchdog
		} else {
			d.log.Error("no progress; the service manager will start flatd anew", "stuck", stuck)
		}
		s.notify(message)
	}
}

func (s *service) stopping(limit time.Duration) {
	s.notify(fmt.Sprintf("%s\nSTATUS=delivering what was measured\nEXTEND_TIMEOUT_USEC=%d", sd.SdNotifyStopping, 2*limit.Microseconds()))
}

func (s *service) reloading() {
	s.notify(sd.SdNotifyReloading + "\n" + strings.TrimSuffix(sd.SdNotifyMonotonicUsec(), "\n"))
}

func (s *service) reloaded() { s.notify(sd.SdNotifyReady) }

func (s *service) notify(message string) {
	if _, err := sd.SdNotify(false, message); err != nil {
		s.log.Debug("the service manager could not be notified", "error", err)
	}
}
