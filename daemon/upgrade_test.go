package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/exact"
)

// mainCommit is the last one of layout 2: hosts come from it.
const (
	mainCommit = "a0f937e6c0744103f30a06672edf653b8f2c620a"
	mainLayout = 2
)

// nextRelease builds a flatd whose layout is not that of mainCommit: the tree's, or
// a variation while that has the same.
func nextRelease(t *testing.T) string {
	t.Helper()
	if bpf.ABI == mainLayout {
		return testbed.BuildVaried(t, "flatd", otherLayout...)
	}
	return testbed.Build(t, "flatd", "")
}

const (
	upgradeLimit = time.Second // after which requests time out
	// upgradePatience bounds each wait, on a machine that tests several upgrades
	// at once.
	upgradePatience = 30 * time.Second
)

// upgrading is a host under an exact load, on which one flatd follows another.
// Faults are collected, and reported in the end with those that the judge finds.
type upgrading struct {
	t     *testing.T
	setup *setup
	load  *exact.Load

	names   []string // of the runs
	outputs []*os.File
	killed  []bool
	marks   []exact.Mark
	faults  []string

	fromMain   bool // the first flatd is that of main
	backToMain bool // it comes back, at any stage
}

// inDoubt is how many exchanges may be reported twice or not when the flatd of main comes back.
const inDoubt = 15

// newUpgrading has the first flatd at work when the load begins.
func newUpgrading(t *testing.T, binary, attach string, pace exact.Pace) (u *upgrading, first *process) {
	t.Helper()
	measured, far := testbed.Pair(t)
	config := fmt.Sprintf("attach = %q\nmeasure.timeout = %q\nsummary.interval = \"0s\"\n", attach, upgradeLimit)
	u = &upgrading{t: t, setup: newSetup(t, measured, binary, config)}
	// A full queue is not the subject.
	queue := filepath.Join(u.setup.dir, "flatd.toml.d", "queue.toml")
	if err := errors.Join(os.Mkdir(filepath.Dir(queue), 0o700), os.WriteFile(queue, []byte("outputs.stdout.queue = 262144\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	first = u.start("first", binary)
	u.load = exact.Start(t, measured, far, pace)
	return u, first
}

func (u *upgrading) mark(name string) {
	u.marks = append(u.marks, exact.Mark{Name: name, At: time.Now()})
}

func (u *upgrading) fault(format string, args ...any) {
	u.faults = append(u.faults, fmt.Sprintf(format, args...))
}

// launch runs a flatd that prints to a file, which takes everything at once.
func (u *upgrading) launch(name, binary string, stage *testbed.Stage) *process {
	u.t.Helper()
	output, err := os.Create(filepath.Join(u.setup.dir, fmt.Sprint("output-", len(u.outputs))))
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { output.Close() })
	u.names, u.outputs, u.killed = append(u.names, name), append(u.outputs, output), append(u.killed, false)
	s := *u.setup
	s.binary, s.stdout, s.stage = binary, output, stage
	u.mark(name + " launched")
	return s.launch(u.t)
}

// start runs a flatd and waits until it measures.
func (u *upgrading) start(name, binary string) *process {
	u.t.Helper()
	p := u.launch(name, binary, nil)
	u.await(p, name+" measures", func(s state) bool { return s.Measuring })
	u.mark(name + " measures")
	return p
}

// alone waits until a flatd has taken over, and a little longer.
func (u *upgrading) alone(name string, p *process) {
	u.t.Helper()
	u.await(p, name+" is alone", func(s state) bool { return s.Measuring && !s.TakingOver })
	u.mark(name + " is alone")
	time.Sleep(100 * time.Millisecond) // what the load makes meanwhile is the subject
}

// await looks at the status until it is as wanted.
func (u *upgrading) await(p *process, what string, wanted func(state) bool) {
	u.t.Helper()
	for deadline := time.Now().Add(upgradePatience); ; time.Sleep(50 * time.Millisecond) {
		s, err := p.tryStatus()
		if err == nil && wanted(s) {
			return
		}
		if time.Now().After(deadline) || p.isDead() {
			u.fault("waited in vain until %s: %+v %v %s", what, s, err, p.stderr.String())
			return
		}
	}
}

// awaitOutput waits until the flatd that was launched last has printed something.
func (u *upgrading) awaitOutput(p *process, text string) {
	u.t.Helper()
	for deadline := time.Now().Add(upgradePatience); ; time.Sleep(10 * time.Millisecond) {
		printed, err := os.ReadFile(u.outputs[len(u.outputs)-1].Name())
		if err == nil && bytes.Contains(printed, []byte(text)) {
			return
		}
		if time.Now().After(deadline) || p.isDead() {
			u.fault("waited in vain for %s (%v)", text, err)
			return
		}
	}
}

// tryStatus is status of a flatd that may not answer yet.
func (p *process) tryStatus() (s state, err error) {
	response, err := p.get(http.MethodGet, "/v1/status")
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}

// isDead reports whether a flatd has ended by itself.
func (p *process) isDead() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

// end ends the flatd that was launched last.
func (u *upgrading) end(p *process, signal syscall.Signal) {
	u.t.Helper()
	u.killed[len(u.killed)-1] = signal == syscall.SIGKILL
	if signal == syscall.SIGKILL {
		u.mark(u.names[len(u.names)-1] + " killed")
	} else {
		u.mark(u.names[len(u.names)-1] + " stopped")
	}
	p.end(signal)
}

// endedAt waits until a flatd has been killed at its stage, or kills it.
func (u *upgrading) endedAt(p *process) (stage string) {
	u.t.Helper()
	late := time.AfterFunc(upgradePatience/3, func() { _ = p.cmd.Process.Kill() })
	stage = p.trace.Wait()
	late.Stop()
	u.mark(u.names[len(u.names)-1] + " killed")
	u.killed[len(u.killed)-1] = true
	_ = p.cmd.Wait() // says that it was killed
	return stage
}

// finish ends the load, waits until the last flatd has reported everything, ends
// it and judges what all printed. heading says what was tested.
func (u *upgrading) finish(last *process, heading string) exact.Verdict {
	u.t.Helper()
	made := u.load.Stop()
	u.balance(last)
	if n := programsOn(u.t, u.setup.host, 2); n > 2 {
		u.fault("%d programs on eth0 in the end, want 2", n)
	}
	u.end(last, syscall.SIGTERM)
	var runs []exact.Run
	for i, output := range u.outputs {
		if _, err := output.Seek(0, 0); err != nil {
			u.t.Fatal(err)
		}
		runs = append(runs, exact.Run{Name: u.names[i], Output: output, Killed: u.killed[i]})
	}
	v, err := exact.Judge(made, upgradeLimit, runs, u.marks)
	if err != nil {
		u.fault("%v", err)
	}
	// What a flatd that was killed left out of its numbers it may not have said.
	if slices.Contains(u.killed, true) && v.Farthest <= 2 {
		v.Skipped = 0
	}
	// That of main takes the programs of any other layout for somebody else's. Where it comes
	// back while these are handed over, or when they are alone, some milliseconds are in doubt.
	if u.fromMain {
		v.Preceded = 0
	}
	if u.backToMain {
		v.Skipped = 0 // it may begin another sequence
	}
	if u.backToMain && v.Missing <= inDoubt && v.Doubled <= inDoubt && v.Wrong <= inDoubt {
		v.Missing, v.Doubled, v.Wrong = 0, 0, 0
	}
	u.faults = append(v.Faults(), u.faults...)
	u.t.Logf("%s: %s", heading, v)
	if len(u.faults) > 0 {
		u.t.Errorf("%s:\n  %s\nwhere:\n  %s\nfor example:\n  %s\nmoments:\n  %s", heading, strings.Join(u.faults, "\n  "),
			strings.Join(v.Places, "\n  "), strings.Join(v.Examples, "\n  "), u.moments())
	}
	return v
}

// balance waits until the books do.
func (u *upgrading) balance(p *process) {
	u.t.Helper()
	for deadline := time.Now().Add(upgradePatience / 3); ; time.Sleep(50 * time.Millisecond) {
		s, err := p.tryStatus()
		wrong := s.imbalance()
		if err == nil && wrong == "" {
			for _, o := range s.Outputs {
				if o.Dropped+o.Failed > 0 {
					u.fault("%s dropped %d events, %d failed", o.Name, o.Dropped, o.Failed)
				}
			}
			return
		}
		if time.Now().After(deadline) {
			u.fault("the books do not balance: %s (%v)\n    %+v\n    %+v\n    %+v", wrong, err, s.Books, s.Ring, s.Outputs)
			return
		}
	}
}

func (u *upgrading) moments() string {
	var all []string
	for _, m := range u.marks {
		all = append(all, m.At.Format("05.000000")+" "+m.Name)
	}
	return strings.Join(all, "\n  ")
}

// openAtOnce are the numbers of requests that are open when an upgrade begins.
var openAtOnce = []int{0, 40000}

// TestRestartsUnderAnExactLoad is the control of the tests below: where no layout
// changes, the judge has no fault to find.
func TestRestartsUnderAnExactLoad(t *testing.T) {
	binary := testbed.Build(t, "flatd", "")
	var cases []upgradeCase
	for _, open := range openAtOnce {
		cases = append(cases, upgradeCase{fmt.Sprint(open), func(t *testing.T) {
			u, p := newUpgrading(t, binary, "auto", exact.Pace{Out: 600, In: 200})
			for n, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
				time.Sleep(300 * time.Millisecond)
				u.end(p, signal)
				u.load.Open(open * (1 - n))
				p = u.start(fmt.Sprint("restart ", n), binary)
			}
			u.finish(p, fmt.Sprintf("two restarts, with %d open", open))
		}})
	}
	atOnce(t, 2, cases)
}

// TestUpgradeFromMain upgrades a host from main's flatd, under load.
func TestUpgradeFromMain(t *testing.T) {
	before, after := testbed.BuildAt(t, mainCommit, "flatd"), nextRelease(t)
	var cases []upgradeCase
	for _, open := range openAtOnce {
		cases = append(cases, upgradeCase{fmt.Sprint(open), func(t *testing.T) {
			u, p := newUpgrading(t, before, "auto", exact.Pace{Out: 600, In: 200})
			time.Sleep(500 * time.Millisecond)
			u.end(p, syscall.SIGTERM)
			u.load.Open(open)
			p = u.start("next", after)
			u.alone("next", p)
			u.end(p, syscall.SIGTERM)
			p = u.start("next again", after)
			u.finish(p, fmt.Sprintf("from main, with %d open", open))
		}})
	}
	atOnce(t, 2, cases)
}

// TestBackToMain goes back to the flatd of main, which starts anew, and upgrades again.
func TestBackToMain(t *testing.T) {
	before, after := testbed.BuildAt(t, mainCommit, "flatd"), nextRelease(t)
	u, p := newUpgrading(t, before, "tcx", killPace)
	u.fromMain, u.backToMain = true, true
	for _, next := range []string{after, before, after} {
		time.Sleep(300 * time.Millisecond)
		u.end(p, syscall.SIGTERM)
		name := map[string]string{before: "main", after: "next"}[next]
		p = u.start(name, next)
		u.alone(name, p)
	}
	u.finish(p, "from main, back to it, and again")
}

// TestUpgradeAndRollBack goes to another layout and back, again and again: by a
// stop and by a kill, when the one before has taken over and while it does.
func TestUpgradeAndRollBack(t *testing.T) {
	binaries := []string{testbed.Build(t, "flatd", ""), testbed.BuildVaried(t, "flatd", otherLayout...)}
	var cases []upgradeCase
	for _, open := range openAtOnce {
		cases = append(cases, upgradeCase{fmt.Sprint(open), func(t *testing.T) {
			u, p := newUpgrading(t, binaries[0], "auto", exact.Pace{Out: 400, In: 150})
			time.Sleep(300 * time.Millisecond)
			n := 0
			for ; n < rounds(t, 5); n++ {
				u.end(p, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[n/2%2])
				if n%3 == 0 {
					u.load.Open(open)
				}
				name := fmt.Sprint([]string{"other ", "one "}[n%2], n)
				p = u.start(name, binaries[(n+1)%2])
				if n%3 == 1 {
					time.Sleep(rand.N(time.Second)) // while it takes over, this one is ended
				} else {
					u.alone(name, p)
				}
			}
			u.alone("the last", p)
			u.finish(p, fmt.Sprintf("%d upgrades and roll-backs, with %d open", n, open))
		}})
	}
	atOnce(t, 2, cases)
}

// killVariable names the one call at which TestKilledAtEveryStage kills flatd.
const killVariable = "FLATD_KILL"

// stagesOf are the calls that make stages: of bpf(2), and those that unpin.
var stagesOf = []int{unix.SYS_BPF, unix.SYS_UNLINKAT}

// TestKilledAtEveryStage kills the flatd that an upgrade started at a call that it
// makes: as it enters the kernel, and as it comes back. Then it is started again,
// or the one before is, and in the end the new one.
func TestKilledAtEveryStage(t *testing.T) {
	from := map[string]string{"layout": testbed.Build(t, "flatd", ""), "main": testbed.BuildAt(t, mainCommit, "flatd")}
	to := map[string]string{"layout": testbed.BuildVaried(t, "flatd", otherLayout...), "main": nextRelease(t)}
	start, whole := 0, 0
	if os.Getenv(killVariable) == "" {
		t.Run("counted", func(t *testing.T) { start, whole = countStages(t, from["layout"], to["layout"]) })
		if start == 0 {
			t.FailNow()
		}
	}
	var total killTotal
	var cases []upgradeCase
	for _, c := range killCases(stages(t, start, whole)) {
		cases = append(cases, upgradeCase{c.String(), func(t *testing.T) {
			total.add(killed(t, from[c.from], to[c.from], c))
		}})
	}
	began := time.Now()
	atOnce(t, 6, cases)
	t.Logf("an upgrade makes %d calls until it is at work, and %d until it has taken over; %s, in %s",
		start, whole, &total, time.Since(began).Round(time.Second))
}

// killCase is an upgrade that is killed.
type killCase struct {
	stage  testbed.Stage
	back   bool   // the flatd before is started again
	from   string // "layout" or "main": which flatd is that
	attach string
	open   int  // requests, when the upgrade begins
	brief  bool // the flatd after that is ended before it has taken over
}

// String is short: it becomes a part of the path of a socket.
func (c killCase) String() string {
	moment, way := "entry", "on"
	if c.stage.Exit {
		moment = "exit"
	}
	if c.back {
		way = "back"
	}
	if c.brief {
		way += "_brief"
	}
	return fmt.Sprintf("%d_%s_%s_%s_%s_%d", c.stage.K, moment, way, c.from, c.attach, c.open)
}

// killCases are all of these stages; or, every day, half. A stage that is named
// is tried from each flatd and in each way.
func killCases(stages []int) (cases []killCase) {
	for i, k := range stages {
		c := killCase{from: "layout", attach: "tcx", open: []int{0, 0, 500}[i%3]}
		switch i % 12 {
		case 1, 5, 9:
			c.attach = "clsact"
		case 3, 7, 10: // the last of an everyday run is when it has taken over, not when it removes
			c.from, c.open = "main", 0
		}
		if i%12 == 5 {
			c.open = openAtOnce[1]
		}
		for n := range 4 {
			exit, back := n/2 == 1, n%2 == 1
			if everyDay() && (i%2 == 0) != (exit == back) {
				continue
			}
			c.stage, c.back, c.brief = testbed.Stage{K: k, Exit: exit, Of: stagesOf}, back, (i/2+n)%2 == 0
			cases = append(cases, c)
		}
	}
	return cases
}

func everyDay() bool { return os.Getenv(soakVariable) == "" && os.Getenv(killVariable) == "" }

// killTotal sums up the verdicts of all stages.
type killTotal struct {
	mu                              sync.Mutex
	cases, bad                      int
	made, missing, doubled, skipped uint64
	wrong, preceded                 int
}

func (k *killTotal) add(v exact.Verdict) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cases++
	if len(v.Faults()) > 0 {
		k.bad++
	}
	k.made += uint64(v.Made)
	k.missing += uint64(v.Missing)
	k.doubled += uint64(v.Doubled)
	k.skipped += v.Skipped
	k.wrong += v.Wrong
	k.preceded += v.Preceded
}

func (k *killTotal) String() string {
	return fmt.Sprintf("killed %d times, of which %d showed faults: of %d exchanges %d are missing, %d are doubled, %d are wrong; %d sequence numbers are skipped; %d warnings",
		k.cases, k.bad, k.made, k.missing, k.doubled, k.wrong, k.skipped, k.preceded)
}

// upgradeCase is one of many that run at once.
type upgradeCase struct {
	name string
	run  func(*testing.T)
}

// atOnce runs so many cases at any time: they wait for most of theirs.
func atOnce(t *testing.T, many int, cases []upgradeCase) {
	t.Helper()
	next := make(chan upgradeCase)
	var workers sync.WaitGroup
	for range many {
		workers.Go(func() {
			for c := range next {
				t.Run(c.name, c.run)
			}
		})
	}
	for _, c := range cases {
		next <- c
	}
	close(next)
	workers.Wait()
}

// killPace is the load while flatd is killed, on several hosts at once.
var killPace = exact.Pace{Out: 150, In: 50}

// countStages upgrades once, and returns how many stages there are until the new
// flatd is at work, and until it has taken over.
func countStages(t *testing.T, from, to string) (start, whole int) {
	u, p := newUpgrading(t, from, "auto", killPace)
	time.Sleep(200 * time.Millisecond)
	u.end(p, syscall.SIGTERM)
	p = u.launch("traced", to, &testbed.Stage{Of: stagesOf})
	u.awaitOutput(p, `"action":"start"`) // a look at its status makes calls, too
	time.Sleep(200 * time.Millisecond)
	start = p.trace.Calls()
	t.Logf("until it is at work: %d calls of bpf(2), and %d of unlinkat(2)", p.trace.BPFCalls(), start-p.trace.BPFCalls())
	looks := 0
	for over := false; !over && !p.isDead(); {
		time.Sleep(250 * time.Millisecond)
		before := p.trace.Calls()
		s, err := p.tryStatus()
		over = err == nil && !s.TakingOver
		looks += p.trace.Calls() - before
	}
	whole = p.trace.Calls() - looks
	t.Logf("until it has taken over: %d calls", whole)
	u.finish(p, "an upgrade that is traced")
	return start, whole
}

// stages chooses the calls at which flatd is killed: each until it measures, and
// some of those after that; or, every day, one of each twelfth.
func stages(t *testing.T, start, whole int) (chosen []int) {
	t.Helper()
	if text := os.Getenv(killVariable); text != "" {
		k, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s=%q: want the number of a call", killVariable, text)
		}
		return []int{k, k, k, k} // as killCases has them
	}
	const early, late = 9, 3
	if os.Getenv(soakVariable) != "" {
		for k := 1; k <= start; k++ {
			chosen = append(chosen, k)
		}
		for k := start + 1; k <= whole; k += max(1, (whole-start)/100) {
			chosen = append(chosen, k)
		}
		return chosen
	}
	for n := range early {
		chosen = append(chosen, 1+start*n/early+rand.IntN(max(1, start/early)))
	}
	for n := range late {
		chosen = append(chosen, 1+start+(whole-start)*n/late+rand.IntN(max(1, (whole-start)/late)))
	}
	return slices.Compact(chosen)
}

// killed upgrades under load, and kills the new flatd at a stage.
func killed(t *testing.T, from, to string, c killCase) exact.Verdict {
	u, p := newUpgrading(t, from, c.attach, killPace)
	u.fromMain = c.from == "main"
	u.backToMain = u.fromMain && c.back
	time.Sleep(200 * time.Millisecond)
	u.end(p, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[c.stage.K%2])
	u.load.Open(c.open)
	stage := u.endedAt(u.launch("next", to, &c.stage))
	name, binary := "next again", to
	if c.back {
		name, binary = "first again", from
	}
	p = u.start(name, binary)
	if c.brief {
		time.Sleep(300 * time.Millisecond)
	} else {
		u.alone(name, p)
	}
	u.end(p, syscall.SIGTERM)
	p = u.start("the last", to)
	u.alone("the last", p)
	if stage == "" {
		stage = fmt.Sprintf("end of the patience with call %d", c.stage.K)
	}
	return u.finish(p, fmt.Sprintf("killed at the %s, then %s; %d open, attached by %s, from %s", stage, name, c.open, c.attach, c.from))
}
