package daemon

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf/testbed"
)

// patience bounds every wait for something that has to happen. It is no
// measurement: a machine that is slow for so long has failed.
const patience = 60 * time.Second

// event is what the tests look at of flatd's JSON.
type event struct {
	Timestamp time.Time `json:"@timestamp"`
	Event     struct {
		ID       string `json:"id"`
		Dataset  string `json:"dataset"`
		Action   string `json:"action"`
		Outcome  string `json:"outcome"`
		Duration int64  `json:"duration"`
		Sequence uint64 `json:"sequence"`
	} `json:"event"`
	Source, Destination struct {
		IP   string `json:"ip"`
		Port int    `json:"port"`
	}
	Observer struct {
		Interface struct {
			Name string `json:"name"`
		} `json:"interface"`
	} `json:"observer"`
	DNS struct {
		ID       int `json:"id"`
		Question struct {
			Name, Type string
		} `json:"question"`
		Code string `json:"response_code"`
	} `json:"dns"`
	Flatd struct {
		Result      string `json:"result"`
		Side        string `json:"side"`
		Retransmits int    `json:"retransmits"`
		Replayed    bool   `json:"replayed"`
		Lost        uint64 `json:"lost"`
		Summary     summed `json:"summary"`
	} `json:"flatd"`
	Message string `json:"message"`
}

func (e event) String() string {
	return fmt.Sprintf("%s %s %s:%d > %s:%d %s %s in %d ns", e.Event.Dataset, e.Flatd.Side, e.Source.IP, e.Source.Port,
		e.Destination.IP, e.Destination.Port, e.Flatd.Result, e.Event.ID, e.Event.Duration)
}

// process is the real flatd in a namespace, its events read from its standard
// output.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	stderr bytes.Buffer
	socket string
	ended  chan struct{} // closed when standard output ends

	mu     sync.Mutex
	more   *sync.Cond
	events []event
}

// setup is where a flatd works; several may do so one after the other.
type setup struct {
	host   *testbed.Host
	binary string
	pins   string // on a BPF file system
	dir    string
	config string // beyond what every test wants

	interfaces string // of the configuration's list
	quiet      bool   // no output: events are counted, summed up and remembered
	args       []string
}

func newSetup(t testing.TB, host *testbed.Host, binary, config string) *setup {
	return &setup{host: host, binary: binary, pins: filepath.Join(testbed.BPFFS(t), "flatd"), dir: t.TempDir(), config: config, interfaces: `"eth0"`}
}

func (s *setup) socket() string { return filepath.Join(s.dir, "control.sock") }

func (s *setup) write(t testing.TB) string {
	t.Helper()
	path := filepath.Join(s.dir, "flatd.toml")
	text := fmt.Sprintf("interfaces = [%s]\npin_path = %q\nsocket = %q\n%s\n"+
		"[outputs.stdout]\nenabled = %t\n[outputs.journald]\nenabled = false\n", s.interfaces, s.pins, s.socket(), s.config, !s.quiet)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs flatd and waits until it measures.
func (s *setup) start(t testing.TB) *process {
	t.Helper()
	p := &process{t: t, socket: s.socket(), ended: make(chan struct{}), cmd: s.host.Command(s.binary, append(s.args, "--config", s.write(t))...)}
	p.more = sync.NewCond(&p.mu)
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.end(syscall.SIGKILL)
		}
		if t.Failed() {
			t.Logf("flatd said:\n%s", p.stderr.String())
		}
	})
	go p.collect(bufio.NewScanner(out))
	if s.quiet {
		for deadline := time.Now().Add(patience); ; {
			if response, err := p.get(http.MethodGet, "/healthz"); err == nil {
				response.Body.Close()
				if p.status().Measuring {
					return p
				}
			}
			if time.Now().After(deadline) {
				t.Fatal("flatd does not answer")
			}
		}
	}
	p.wait("its start", func(e event) bool { return e.Event.Action == "start" })
	return p
}

func (p *process) collect(lines *bufio.Scanner) {
	defer close(p.ended)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			p.t.Errorf("not JSON: %q: %v", lines.Text(), err)
			continue
		}
		p.mu.Lock()
		p.events = append(p.events, e)
		p.more.Broadcast()
		p.mu.Unlock()
	}
}

// wait returns the first event that is as wanted, once there is one.
func (p *process) wait(what string, wanted func(event) bool) event {
	p.t.Helper()
	return p.waitN(what, 1, wanted)[0]
}

// waitN waits until n events are as wanted and returns all that are.
func (p *process) waitN(what string, n int, wanted func(event) bool) []event {
	p.t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() { p.mu.Lock(); late = true; p.more.Broadcast(); p.mu.Unlock() })
	defer timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var found []event
		for _, e := range p.events {
			if wanted(e) {
				found = append(found, e)
			}
		}
		if len(found) >= n {
			return found
		}
		if late {
			p.t.Fatalf("waited in vain for %s: %d of %d among %v", what, len(found), n, p.events)
		}
		p.more.Wait()
	}
}

// end sends a signal and waits until flatd has gone; it returns all its events.
func (p *process) end(signal syscall.Signal) []event {
	p.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.t.Fatalf("end flatd: %v", err)
	}
	<-p.ended
	err := p.cmd.Wait()
	if signal != syscall.SIGKILL && err != nil {
		p.t.Errorf("flatd ended with %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events
}
