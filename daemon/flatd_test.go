package daemon

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/packaging/testbed"
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
		Hostname  string `json:"hostname"`
		Interface struct {
			Name string `json:"name"`
		} `json:"interface"`
	} `json:"observer"`
	Network struct {
		Protocol string `json:"protocol"`
	} `json:"network"`
	Service struct {
		Name string `json:"name"`
	} `json:"service"`
	User struct {
		ID *int `json:"id"`
	} `json:"user"`
	Container struct {
		ID string `json:"id"`
	} `json:"container"`
	Process struct {
		PID  int    `json:"pid"`
		Name string `json:"name"`
	} `json:"process"`
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
		RTT         int64  `json:"rtt"`
		ClientRTT   int64  `json:"client_rtt"`
		Ambiguous   bool   `json:"ambiguous"`
		Replayed    bool   `json:"replayed"`
		Lost        uint64 `json:"lost"`
		Cgroup      string `json:"cgroup"`
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
	stderr testbed.Transcript
	socket string
	trace  *testbed.Trace // nil: it is not traced
	ended  chan struct{}  // closed when standard output ends
	torn   bool           // it ended within a line; known once it has

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

	interfaces string   // of the configuration's list
	quiet      bool     // no output: events are counted, summed up and remembered
	stdout     *os.File // in place of what the process collects
	stderr     *os.File // in place of the transcript
	args       []string
	env        []string       // beyond this process's
	stage      *testbed.Stage // at which it is killed; nil: it is not traced
}

func newSetup(t testing.TB, host *testbed.Host, binary, config string) *setup {
	return &setup{host: host, binary: binary, pins: filepath.Join(testbed.BPFFS(t), "flatd"), dir: t.TempDir(), config: config, interfaces: `"eth0"`}
}

// pinned is the path of what is pinned by a name.
func (s *setup) pinned(name string) string {
	return filepath.Join(s.pins, fmt.Sprintf("v%d-flat", bpf.ABI), name)
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

// launch runs flatd, which goes on to start by itself.
func (s *setup) launch(t testing.TB) *process {
	t.Helper()
	p := &process{t: t, socket: s.socket(), ended: make(chan struct{}), cmd: s.host.Command(s.binary, append(s.args, "--config", s.write(t))...)}
	p.more = sync.NewCond(&p.mu)
	p.cmd.Env = append(os.Environ(), s.env...)
	p.cmd.Stderr = &p.stderr
	if s.stderr != nil {
		p.cmd.Stderr = s.stderr
	}
	var out io.Reader = strings.NewReader("")
	if s.stdout != nil {
		p.cmd.Stdout = s.stdout
	} else {
		pipe, err := p.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		out = pipe
	}
	if err := s.begin(p); err != nil {
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
	go p.collect(bufio.NewReader(out))
	return p
}

func (s *setup) begin(p *process) (err error) {
	if s.stage == nil {
		return p.cmd.Start()
	}
	p.trace, err = testbed.StartTraced(p.cmd, *s.stage)
	return err
}

// start runs flatd and waits until it measures.
func (s *setup) start(t testing.TB) *process {
	t.Helper()
	p := s.launch(t)
	if s.quiet {
		p.awaitStatus("measuring", func(s state) bool { return s.Measuring })
		return p
	}
	p.wait("its start", func(e event) bool { return e.Event.Action == "start" })
	return p
}

// collect takes whole lines: one that flatd was killed over has not been
// delivered, and comes again.
func (p *process) collect(lines *bufio.Reader) {
	defer close(p.ended)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			p.torn = len(line) > 0
			return
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			p.t.Errorf("not JSON: %q: %v", line, err)
			continue
		}
		p.mu.Lock()
		p.events = append(p.events, e)
		p.more.Broadcast()
		p.mu.Unlock()
	}
}

// awaitStatus waits until flatd answers and its status is as wanted.
func (p *process) awaitStatus(what string, wanted func(state) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if response, err := p.get(http.MethodGet, "/healthz"); err == nil {
			response.Body.Close()
			if wanted(p.status()) {
				return
			}
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain for %s", what)
		}
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
	var found []event
	for seen := 0; ; {
		for ; seen < len(p.events); seen++ {
			if e := p.events[seen]; wanted(e) {
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
	if p.trace != nil {
		p.trace.Wait()
	}
	err := p.cmd.Wait()
	if signal != syscall.SIGKILL && (err != nil || p.torn) {
		p.t.Errorf("flatd ended with %v; within a line: %t", err, p.torn)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events
}
