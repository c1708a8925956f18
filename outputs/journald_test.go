package outputs

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/flatd/flatd/flows"
)

const journaldBinary = "/lib/systemd/systemd-journald"

// journald is a real one, in a mount namespace of its own: its /run and
// /var/log are folders of the test.
type journald struct {
	t       *testing.T
	dir     string
	process *exec.Cmd
	exited  chan struct{} // closed when process is gone
}

const journaldConfig = `[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
RateLimitIntervalSec=0
ForwardToSyslog=no
ForwardToKMsg=no
ForwardToConsole=no
ForwardToWall=no
`

func startJournald(t *testing.T) *journald {
	t.Helper()
	for _, tool := range []string{"unshare", "mount", "journalctl", journaldBinary} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, "a private journald needs %s: %v", tool, err)
		}
	}
	if os.Geteuid() != 0 {
		missing(t, "a private journald needs root for its mount namespace")
	}
	j := &journald{t: t, dir: t.TempDir()}
	for _, dir := range []string{"run/systemd/journal", "run/log/journal", "run/systemd/journald.conf.d", "log"} {
		if err := os.MkdirAll(filepath.Join(j.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(j.dir, "run/systemd/journald.conf.d/test.conf")
	if err := os.WriteFile(config, []byte(journaldConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	j.start()
	t.Cleanup(j.stop)
	return j
}

// start returns once journald has said that it is ready.
func (j *journald) start() {
	j.t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(j.dir, "run/notify"), Net: "unixgram"})
	if err != nil {
		j.t.Fatal(err)
	}
	defer notify.Close()
	script := fmt.Sprintf("mount --bind %[1]s/log /var/log && mount --bind %[1]s/run /run && exec %[2]s", j.dir, journaldBinary)
	j.process = exec.Command("unshare", "--mount", "sh", "-c", script)
	j.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	j.process.Env = append(os.Environ(), "NOTIFY_SOCKET=/run/notify")
	said, err := os.Create(filepath.Join(j.dir, "stderr")) // a file: no pipe to wait for
	if err != nil {
		j.t.Fatal(err)
	}
	defer said.Close()
	j.process.Stderr = said
	if err := j.process.Start(); err != nil {
		j.t.Fatal(err)
	}
	process, exited := j.process, make(chan struct{})
	j.exited = exited
	go func() {
		defer close(exited)
		process.Wait()
		notify.Close()
	}()
	buffer := make([]byte, 4096)
	for {
		n, err := notify.Read(buffer)
		if err != nil {
			<-exited
			why, _ := os.ReadFile(said.Name())
			missing(j.t, "no private journald: %v: %s", process.ProcessState, why)
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			return
		}
	}
}

func (j *journald) stop() {
	j.process.Process.Kill()
	<-j.exited
	os.Remove(filepath.Join(j.dir, "run/notify"))
}

func (j *journald) socket() string { return filepath.Join(j.dir, "run/systemd/journal/socket") }

// entries waits for n entries of flatd and returns their fields.
func (j *journald) entries(n int) (all []map[string]any) {
	j.t.Helper()
	follow := exec.Command("journalctl", "--directory", filepath.Join(j.dir, "run/log/journal"),
		"--follow", "--lines=all", "--all", "--output=json", "SYSLOG_IDENTIFIER=flatd")
	output, err := follow.StdoutPipe()
	if err != nil {
		j.t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		j.t.Fatal(err)
	}
	defer func() { follow.Process.Kill(); follow.Wait() }()
	for lines := bufio.NewReader(output); len(all) < n; {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			j.t.Fatalf("journalctl ended after %d of %d entries", len(all), n)
		}
		var entry map[string]any
		if err := json.Unmarshal(line, &entry); err != nil {
			j.t.Fatalf("%v in %.200s", err, line)
		}
		all = append(all, entry)
	}
	return all
}

func checkField(t *testing.T, entry map[string]any, name, want string) {
	t.Helper()
	if got := entry[name]; got != want {
		t.Errorf("%s is %.200v, want %.200q", name, got, want)
	}
}

func TestJournald(t *testing.T) {
	daemon := startJournald(t)
	out := newTestJournal(t, JournalOptions{Socket: daemon.socket(), Profile: ProfileAll})

	events := []*flows.Event{sample(107187), refused(2), slow(3), status("flatd has started")}
	if tally, err := out.Write(t.Context(), events); err != nil || tally.Delivered != 4 {
		t.Fatalf("%+v, %v", tally, err)
	}
	got := daemon.entries(4)
	for i, e := range events {
		checkField(t, got[i], "MESSAGE", string(flows.AppendText(nil, e)))
		checkField(t, got[i], "PRIORITY", fmt.Sprint(e.Priority()))
		checkField(t, got[i], "EVENT_DATASET", e.Dataset())
		checkField(t, got[i], "_TRANSPORT", "journal")
		checkField(t, got[i], "_PID", fmt.Sprint(os.Getpid()))
	}
	checkField(t, got[0], "EVENT_ID", "6f1c0d2e-107187")
	checkField(t, got[0], "EVENT_DURATION", "1234567")
	checkField(t, got[0], "SOURCE_IP", "192.0.2.10")
	checkField(t, got[0], "DESTINATION_PORT", "443")
	checkField(t, got[0], "FLATD_RESULT", "established")
}

// An entry larger than a datagram arrives as a sealed memory file.
func TestJournaldLargeEntry(t *testing.T) {
	daemon := startJournald(t)
	socket := journalSocket{path: daemon.socket(), fd: -1}
	defer socket.Close()
	large := strings.Repeat("x", 4<<20)
	entry := "SYSLOG_IDENTIFIER=flatd\nMESSAGE=" + large + "\n"
	if err := socket.Send(t.Context(), []byte(entry)); err != nil {
		t.Fatal(err)
	}
	checkField(t, daemon.entries(1)[0], "MESSAGE", large)
}

func TestJournaldRestarts(t *testing.T) {
	daemon := startJournald(t)
	out := newTestJournal(t, JournalOptions{Socket: daemon.socket()})
	if _, err := out.Write(t.Context(), samples(1, 3)); err != nil {
		t.Fatal(err)
	}
	daemon.entries(3)
	daemon.stop()
	if tally, err := out.Write(t.Context(), samples(4, 6)); err == nil || tally.Total() != 0 {
		t.Errorf("without journald: %+v, %v", tally, err)
	}
	daemon.start()
	if tally, err := out.Write(t.Context(), samples(4, 6)); err != nil || tally.Delivered != 3 {
		t.Errorf("with journald again: %+v, %v", tally, err)
	}
	for i, entry := range daemon.entries(6) {
		checkField(t, entry, "EVENT_SEQUENCE", fmt.Sprint(i+1))
	}
}
