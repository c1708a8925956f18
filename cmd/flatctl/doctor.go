package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
)

// finding is what the doctor says of one thing.
type finding struct {
	what, verdict string
	remedy        string // "" if nothing is to be done
	bad           bool   // flatd cannot measure like this
}

func doctorCommand(c *source.Client) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine this host: what flatd needs, a verdict each, and the remedy",
		Example: `  flatctl doctor
  flatctl doctor --config ./flatd.toml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			loaded, configErr := config.Load(path)
			if configErr != nil {
				loaded = config.Defaults()
			}
			if !cmd.Flags().Changed("socket") {
				c.Socket = loaded.Socket
			}
			findings := []finding{
				examineKernel(),
				examineRights(),
				examineBPFFS(loaded.PinPath),
				examineAttach(),
				examineConfig(path, configErr),
				examineJournald(loaded),
				examineNATS(loaded),
			}
			findings = append(findings, examineDaemon(cmd.Context(), c)...)
			return inFolds(cmd.OutOrStdout(), func(to io.Writer) error { return printFindings(to, findings) })
		},
	}
	cmd.Flags().StringVar(&path, "config", config.DefaultPath, "the configuration `file`, which also names the socket unless --socket does")
	return cmd
}

func printFindings(to io.Writer, findings []finding) error {
	w := tabwriter.NewWriter(plain{to}, 0, 8, 2, ' ', 0)
	bad := 0
	for _, f := range findings {
		mark := "ok"
		if f.bad {
			mark = "BAD"
			bad++
		} else if f.remedy != "" {
			mark = "note"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.what, f.verdict)
		if f.remedy != "" {
			fmt.Fprintf(w, "\t\t-> %s\n", f.remedy)
		}
	}
	if err := w.Flush(); err != nil || bad == 0 {
		return err
	}
	if bad == 1 {
		return errors.New("one thing is in the way")
	}
	return fmt.Errorf("%d things are in the way", bad)
}

func examineKernel() finding {
	f := finding{what: "kernel"}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.verdict, f.bad = err.Error(), true
		return f
	}
	f.verdict = unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if n, _ := fmt.Sscanf(f.verdict, "%d.%d", &major, &minor); n == 2 && (major < 5 || major == 5 && minor < 10) {
		f.bad, f.remedy = true, "flatd needs Linux 5.10 or later"
	}
	return f
}

func examineRights() finding {
	f := finding{what: "rights", verdict: "root"}
	if os.Geteuid() != 0 {
		f.verdict, f.remedy = "not root", "the doctor sees more as root: sudo flatctl doctor"
	}
	return f
}

func examineBPFFS(pinPath string) finding {
	f := finding{what: "bpffs", verdict: pinPath}
	path := pinPath
	for path != "/" {
		if _, err := os.Stat(path); err == nil || errors.Is(err, os.ErrPermission) {
			break
		}
		path = path[:max(strings.LastIndexByte(path, '/'), 1)]
	}
	var s unix.Statfs_t
	switch err := unix.Statfs(path, &s); {
	case err != nil && os.Geteuid() != 0:
		f.verdict, f.remedy = "not visible to this user", "sudo flatctl doctor"
	case err != nil:
		f.verdict, f.bad = err.Error(), true
	case uint32(s.Type) != unix.BPF_FS_MAGIC:
		f.verdict, f.bad = pinPath+" is not on a BPF file system", true
		f.remedy = "mount -t bpf bpf /sys/fs/bpf (systemd does so by itself)"
	}
	return f
}

func examineAttach() finding {
	f := finding{what: "attach"}
	switch err := bpf.HaveTCX(); {
	case err == nil:
		f.verdict = "tcx"
	case errors.Is(err, bpf.ErrNoTCX):
		f.verdict = "clsact (tcx needs Linux 6.6)"
	case errors.Is(err, bpf.ErrPermission):
		f.verdict, f.remedy = "not visible to this user", "sudo flatctl doctor"
	default:
		f.verdict, f.bad, f.remedy = err.Error(), true, "does the kernel have CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT?"
	}
	return f
}

func examineConfig(path string, err error) finding {
	f := finding{what: "config", verdict: path + " is good"}
	if err != nil {
		f.verdict, f.bad, f.remedy = "bad", true, strings.ReplaceAll(err.Error(), "\n", "\n\t\t   ")
	} else if _, statErr := os.Stat(path); errors.Is(statErr, os.ErrNotExist) {
		f.verdict = "no " + path + ": the defaults hold"
	}
	return f
}

func examineJournald(c config.Config) finding {
	f := finding{what: "journald", verdict: "listening"}
	switch {
	case !c.Outputs.Journald.Enabled:
		f.verdict = "turned off"
	case !journal.Enabled():
		f.verdict, f.remedy = "not on this host", "set outputs.journald.enabled = false, and use NATS or stdout"
	}
	return f
}

func examineNATS(c config.Config) finding {
	f := finding{what: "nats", verdict: "no url set"}
	if c.Outputs.NATS.URL == "" {
		return f
	}
	var reached, failed []string
	for _, text := range strings.Split(c.Outputs.NATS.URL, ",") {
		host := hostPort(strings.TrimSpace(text))
		conn, err := net.DialTimeout("tcp", host, 3*time.Second)
		if err != nil {
			failed = append(failed, err.Error())
			continue
		}
		conn.Close()
		reached = append(reached, host)
	}
	f.verdict = "reached " + strings.Join(reached, ", ")
	if len(reached) == 0 {
		f.verdict, f.remedy = strings.Join(failed, "; "), "is the server up, and is outputs.nats.url right? Events are queued until then"
	}
	return f
}

// hostPort is where to dial for a NATS URL; 4222 is the registered port.
func hostPort(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return text
	}
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "4222")
	}
	return u.Host
}

// examineDaemon says whether flatd measures, then what it loses.
func examineDaemon(ctx context.Context, c *source.Client) []finding {
	f := finding{what: "flatd"}
	var s api.Status
	if err := c.Get(ctx, "/v1/status", &s); err != nil {
		f.verdict, f.bad = "does not answer", true
		f.remedy = strings.ReplaceAll(withState(ctx, c, err).Error(), "\n", "\n\t\t-> ")
		return []finding{f}
	}
	f.verdict = s.Summary
	advice := append(s.Problems, remedies(&s)...)
	for _, i := range s.Interfaces {
		for _, other := range i.Ahead {
			advice = append(advice, fmt.Sprintf("on %s another sees the packets first, %s: if it swallows any, attach it behind flatd's", i.Name, other))
		}
	}
	f.remedy = strings.Join(advice, "\n\t\t-> ")
	f.bad = !s.Measuring
	return []finding{f, examinePrograms(&s), {what: "lost", verdict: losses(&s)}, examineBooks(&s)}
}

// programs says which of the two objects the kernel runs, and why if it is not the usual one.
func programs(s *api.Status) string {
	if s.Refused == "" {
		return s.Programs
	}
	return s.Programs + ", for the kernel refused the usual ones: " + s.Refused
}

func examinePrograms(s *api.Status) finding {
	f := finding{what: "programs", verdict: programs(s)}
	if s.Refused != "" {
		f.remedy = "flatd measures all the same, at a higher cost; please report this, with `uname -r`"
	}
	return f
}

// examineBooks says what is left out of the events on purpose, which who looks
// for an event in vain may have forgotten.
func examineBooks(s *api.Status) finding {
	f := finding{what: "left out", verdict: "nothing"}
	b := &s.Books
	if n := b.ResultOut + b.TooFast + b.SampledOut; n > 0 {
		f.verdict = fmt.Sprintf("%d of %d exchanges: %d by `results`, %d by `min_duration`, %d by `sample`",
			n, b.Finished, b.ResultOut, b.TooFast, b.SampledOut)
	}
	for _, o := range s.Outputs {
		if o.Withheld > 0 {
			f.verdict += fmt.Sprintf("; output %s withheld %d of %d events, by its budget", o.Name, o.Withheld, o.Offered)
		}
	}
	return f
}
