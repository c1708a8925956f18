package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// tmux is a real terminal with a program in it.
type tmux struct {
	t      *testing.T
	binary string
	dir    string
}

// newTmux runs a command line of the shell in a terminal of so many columns and
// lines. When it ends the terminal says "ended with" and its exit status.
func newTmux(t *testing.T, width, height, line string) *tmux {
	t.Helper()
	m := &tmux{t: t, binary: testbed.Tool(t, "tmux"), dir: t.TempDir()}
	m.run("-f", "/dev/null", "new-session", "-d", "-x", width, "-y", height, line+"; echo ended with $?; read -r _")
	t.Cleanup(func() { m.run("kill-server") })
	return m
}

// run is a command of tmux, whose server is the terminal's own.
func (m *tmux) run(args ...string) string {
	m.t.Helper()
	out, err := exec.Command(m.binary, append([]string{"-u", "-S", m.dir + "/s"}, args...)...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// keys presses them, as tmux names them.
func (m *tmux) keys(names ...string) { m.t.Helper(); m.run(append([]string{"send-keys"}, names...)...) }

// write types text.
func (m *tmux) write(text string) { m.t.Helper(); m.run("send-keys", "-l", text) }

func (m *tmux) resize(width, height string) {
	m.t.Helper()
	m.run("resize-window", "-x", width, "-y", height)
}

// screen is what is to be seen.
func (m *tmux) screen() string { m.t.Helper(); return m.run("capture-pane", "-p") }

// await waits until the screen is as wanted, and returns it.
func (m *tmux) await(what string, wanted func(screen string) bool) string {
	m.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		screen := m.screen()
		if wanted(screen) {
			return screen
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("waited in vain for %s; on the screen:\n%s", what, screen)
		}
	}
}

// awaitText waits until all texts are on the screen.
func (m *tmux) awaitText(texts ...string) string {
	m.t.Helper()
	return m.await(strings.Join(texts, ", "), func(screen string) bool {
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return false
			}
		}
		return true
	})
}

// lineWith is the first line of a screen that has a text, "" if none has.
func lineWith(screen, text string) string {
	for line := range strings.Lines(screen) {
		if strings.Contains(line, text) {
			return strings.TrimRight(line, "\n")
		}
	}
	return ""
}
