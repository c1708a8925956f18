package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
)

// site is a flatd at work in a namespace, and the flatctl that asks it.
type site struct {
	t              *testing.T
	flatctl        string
	config, socket string
	pins           string
	client, server *testbed.Host
	listener       net.Listener
	flatdProcess   *exec.Cmd
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, flatctl: testbed.Build(t, "flatctl", ""), pins: filepath.Join(testbed.BPFFS(t), "flatd")}
	s.client, s.server = testbed.Pair(t)
	s.config, s.socket = filepath.Join(t.TempDir(), "flatd.toml"), filepath.Join(t.TempDir(), "sock")
	text := fmt.Sprintf("interfaces = [\"eth0\"]\npin_path = %q\nsocket = %q\n[outputs.journald]\nenabled = false\n", s.pins, s.socket)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.listener = s.server.Listen(t, net.JoinHostPort(s.server.V4, "0"))
	s.startFlatd(testbed.Build(t, "flatd", ""))
	return s
}

func (s *site) startFlatd(binary string) {
	s.t.Helper()
	s.flatdProcess = s.client.Command(binary, "--config", s.config)
	stderr, err := s.flatdProcess.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.flatdProcess.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.stopFlatd)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "flatd is ready") {
			go func() {
				for lines.Scan() {
				}
			}()
			return
		}
	}
	s.t.Fatal("flatd ended before it was ready")
}

func (s *site) stopFlatd() {
	if s.flatdProcess.ProcessState == nil {
		_ = s.flatdProcess.Process.Signal(syscall.SIGTERM)
		_ = s.flatdProcess.Wait()
	}
}

// run runs flatctl and returns what it printed and its exit status.
func (s *site) run(args ...string) (out string, status int) {
	s.t.Helper()
	if !slices.Contains(args, "--config") { // which names the socket
		args = append([]string{"--socket", s.socket}, args...)
	}
	command := exec.Command(s.flatctl, args...)
	command.Env = append(os.Environ(), "LC_ALL=C")
	text, _ := command.CombinedOutput()
	return string(text), command.ProcessState.ExitCode()
}

func (s *site) connect() {
	s.t.Helper()
	var err error
	s.client.Do(func() {
		var conn net.Conn
		if conn, err = net.Dial("tcp", s.listener.Addr().String()); err == nil {
			conn.Close()
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func TestFlatctl(t *testing.T) {
	s := newSite(t)

	// Follow first, so that the event is there when it is asked for.
	follow := exec.Command(s.flatctl, "--socket", s.socket, "events", "-f", "-n", "0", "-o", "json", "--result", "established")
	stdout, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = follow.Process.Kill(); _ = follow.Wait() }()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	var line string
	for line == "" { // until the follower is there, connections go unseen by it
		s.connect()
		select {
		case line = <-lines:
		default:
		}
	}
	var e struct {
		Flatd struct{ Result string }
		Event struct{ Duration int64 }
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Flatd.Result != "established" || e.Event.Duration <= 0 {
		t.Errorf("followed %q: %v", line, err)
	}

	port := fmt.Sprint(s.listener.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		args   string
		status int
		want   []string
	}{
		{"status", 0, []string{"measuring", "interface:", "eth0", "by tcx", "requests:"}},
		{"status --counters", 0, []string{"counter finished:"}},
		{"status --json", 0, []string{`"measuring": true`}},
		{"events --result established --port " + port, 0, []string{"tcp", "established", s.server.V4 + ":" + port}},
		{"events -n 1 -o json --kind status", 0, []string{`"dataset":"flatd.status"`}},
		{"events --to " + s.server.V4 + " -o line", 0, []string{"tcp", "established", s.server.V4 + ":" + port}},
		{"events --from " + s.server.V4, 0, []string{"no event matches"}},
		{"events --columns duration,flatd.side --port " + port, 0, []string{"DURATION  FLATD.SIDE", "client"}},
		{"events -o yaml", 2, []string{"table, line or json"}},
		{"events --port http", 2, []string{"--port http", "not a port number"}},
		{"histogram --kind tcp", 0, []string{"kind=tcp: ", "p50 < ", "from |"}},
		{"histogram --kind tcp --compare kind=udp", 0, []string{"A: kind=tcp", "B: kind=udp"}},
		{"summary -o yaml", 2, []string{"text or json"}},
		{"interfaces", 0, []string{"eth0", "tcx"}},
		{"config show", 0, []string{`interfaces = ["eth0"]`, "[measure]", "[outputs.nats]"}},
		{"config check " + s.config, 0, []string{"good"}},
		{"config check /nonexistent.toml", 1, []string{"no such file"}},
		{"config default", 0, []string{"#interfaces", "[outputs.journald]"}},
		{"reload", 0, []string{"reloaded"}},
		{"version", 0, []string{"flatctl", "flatd"}},
		{"doctor --config " + s.config, 0, []string{"kernel", "bpffs", "measuring eth0"}},
		{"doctor --config " + s.config + " --socket /nonexistent", 1, []string{"no socket /nonexistent"}},
		{"detach --config " + s.config, 1, []string{"another flatd", "systemctl stop flatd"}},
		{"stauts", 2, []string{`did you mean "status"`}},
		{"status now", 2, []string{`"now"`}},
		{"status --jsno", 2, []string{"--jsno"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			out, status := s.run(strings.Fields(c.args)...)
			if status != c.status {
				t.Errorf("exit status %d, want %d: %s", status, c.status, out)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in:\n%s", want, out)
				}
			}
		})
	}

	s.summarize()
	s.stopFlatd()
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"status", 1, "systemctl start flatd"},
		{"detach --config " + s.config, 0, "removed"},
		{"detach --config " + s.config, 0, "nothing of flatd's"},
		{"doctor --config " + s.config, 1, "does not answer"},
	} {
		if out, status := s.run(strings.Fields(c.args)...); status != c.status || !strings.Contains(out, c.want) {
			t.Errorf("%s without flatd: status %d, %s", c.args, status, out)
		}
	}
}

// summarize has an interval end, by choosing another, and looks at its summary.
func (s *site) summarize() {
	s.t.Helper()
	f, err := os.OpenFile(s.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("[summary]\ninterval = \"1h\"\n"); err != nil {
		s.t.Fatal(err)
	}
	if out, status := s.run("reload"); status != 0 {
		s.t.Fatal(out)
	}
	var out string
	for status := 0; status == 0 && !strings.Contains(out, "tcp client: "); {
		out, status = s.run("summary") // the reload does not wait for the interval's end
	}
	for _, want := range []string{"tcp client: ", "tcp to " + s.listener.Addr().String() + ": ", " in ", "p99 "} {
		if !strings.Contains(out, want) {
			s.t.Errorf("%q is not in the summary:\n%s", want, out)
		}
	}
	out, _ = s.run("summary", "-o", "json")
	var events []struct {
		Flatd struct{ Summary struct{ Count int } }
	}
	if err := json.Unmarshal([]byte(out), &events); err != nil || len(events) == 0 || events[0].Flatd.Summary.Count == 0 {
		s.t.Errorf("%v: %+v in %s", err, events, out)
	}
}
