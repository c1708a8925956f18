package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
)

// refuse connects to a port that nobody listens on.
func (s *site) refuse() {
	s.t.Helper()
	s.client.Do(func() {
		if conn, err := net.Dial("tcp", s.refused()); err == nil {
			conn.Close()
			s.t.Error("a closed port accepted")
		}
	})
}

func (s *site) refused() string { return net.JoinHostPort(s.server.V4, "9") }

// top runs `flatctl top` in a terminal; variables of the environment come first.
func (s *site) top(width, height string, args ...string) *tmux {
	s.t.Helper()
	var words []string
	for len(args) > 0 && strings.Contains(args[0], "=") && !strings.HasPrefix(args[0], "-") {
		words, args = append(words, args[0]), args[1:]
	}
	line := append([]string{"env", "-u", "NATS_URL", "-u", "NO_COLOR", "LC_ALL=C.UTF-8"}, words...)
	line = append(append(line, s.flatctl, "--socket", s.socket, "top"), args...)
	return newTmux(s.t, width, height, strings.Join(line, " "))
}

// kernel is the histogram that the API has of a result.
func (s *site) kernel(result string) flows.Distribution {
	s.t.Helper()
	out, status := s.run("histogram", "--kind", "tcp", "--result", result, "-o", "json")
	if status != 0 {
		s.t.Fatal(out)
	}
	return decodeHistograms(s.t, []string{out})[0].Distribution
}

// shownRow is the row of a destination as the screen has to have it.
func shownRow(d flows.Distribution, count, failed int) string {
	duration := func(d time.Duration) string { return string(flows.AppendDuration(nil, d)) }
	return fmt.Sprintf("%d %s %s %d 0", count, duration(d.P50), duration(d.P99), failed)
}

// rowOfScreen has the columns COUNT to T/O of the row with a name, "" if there is
// none.
func rowOfScreen(screen, name string) string {
	row := regexp.MustCompile(`tcp +[0-9.k]+ +(\d+) +(\S+ \S+) +(\S+ \S+) +(\d+) +(\d+)`).FindStringSubmatch(lineWith(screen, name))
	if row == nil {
		return ""
	}
	return strings.Join(row[1:], " ")
}

// TestTop drives the screen as one does who sits before it. Its figures are those
// of the API, and of the connections made.
func TestTop(t *testing.T) {
	s := newSite(t)
	m := s.top("80", "24", "--window", "1h", "--interval", "200ms")
	m.awaitText("nothing yet", "DESTINATION")
	for range 7 {
		s.connect()
	}
	for range 3 {
		s.refuse()
	}
	m.awaitText(" 10 in ", "3 failed")
	screen := m.awaitText(s.listener.Addr().String(), s.refused())
	for name, want := range map[string]string{
		s.listener.Addr().String(): shownRow(s.kernel("established"), 7, 0),
		s.refused():                shownRow(s.kernel("refused"), 3, 3),
	} {
		if got := rowOfScreen(screen, name); got != want {
			t.Errorf("%s: %q, the API has %q:\n%s", name, got, want, screen)
		}
	}

	m.keys("s", "s", "s")
	m.await("the failures first", func(screen string) bool {
		return strings.Contains(screen, "sorted by failures") && strings.Contains(screen, ">"+s.refused())
	})
	m.keys("Down", "Enter")
	m.awaitText("tcp "+s.listener.Addr().String(), "7 exchanges:  7 established", "p50", "answers", "Esc back")
	m.keys("Enter", "g", "g")
	m.await("the interface", func(screen string) bool {
		return strings.Contains(screen, "by interface") && strings.HasPrefix(rowOfScreen(screen, ">eth0"), "10 ")
	})
	m.keys("?")
	m.awaitText("KEYS", "pause: the screen stays")
	m.keys("?")

	s.filterByKeys(m)
	s.pauseByKeys(m)
	m.keys("q")
	m.awaitText("ended with 0")
}

// filterByKeys types a filter that is wrong, then one that is not.
func (s *site) filterByKeys(m *tmux) {
	s.t.Helper()
	m.keys("/")
	m.awaitText("filter: _")
	m.write("port=http")
	m.keys("Enter")
	m.awaitText(`"http" is not a port number`)
	m.keys("C-u")
	m.write("result=refused --to " + s.server.V4)
	m.keys("Enter")
	m.awaitText("only result=refused to="+s.server.V4, "nothing yet")
	s.connect()
	s.refuse()
	s.refuse()
	m.keys("G", "G")
	m.await("the two", func(screen string) bool {
		return strings.Contains(screen, " 2 in ") && strings.HasPrefix(rowOfScreen(screen, s.refused()), "2 ")
	})
	m.keys("Enter")
	m.awaitText("2 exchanges:  2 refused", "latest failures:", "-> "+s.refused())
	m.keys("Enter")
}

func (s *site) pauseByKeys(m *tmux) {
	s.t.Helper()
	m.keys("p")
	m.awaitText("PAUSED")
	s.refuse()
	s.awaitEvents(14)
	if screen := m.screen(); !strings.Contains(screen, " 2 in ") {
		s.t.Errorf("paused, it goes on:\n%s", screen)
	}
	m.keys("Space")
	m.awaitText(" 3 in ")
}

// TestTopSizes: what does not fit is left out, and never wraps.
func TestTopSizes(t *testing.T) {
	s := newSite(t)
	m := s.top("80", "24", "--window", "1h", "--interval", "200ms")
	m.awaitText("nothing yet")
	s.connect()
	s.refuse()
	m.awaitText(" 2 in ")
	for _, c := range []struct {
		width, height string
		has, lacks    []string
	}{
		{"120", "40", []string{"DESTINATION", "KIND", "COUNT", "P50", "P99", "FAIL", "T/O", "sorted by rate", "Enter look into"}, nil},
		{"80", "24", []string{"DESTINATION", "KIND", "COUNT", "P50", "P99", "FAIL", "T/O", "Enter look into"}, nil},
		{"40", "12", []string{"RATE", "P99", "FAIL", s.refused()}, []string{"T/O", "sorted by"}},
		{"24", "6", []string{"RATE", s.refused()}, []string{"P99"}},
		{"7", "2", nil, nil},
		{"120", "40", []string{"T/O"}, nil},
	} {
		m.resize(c.width, c.height)
		m.await("a screen of "+c.width+" x "+c.height, func(screen string) bool {
			for _, text := range c.has {
				if !strings.Contains(screen, text) {
					return false
				}
			}
			for _, text := range c.lacks {
				if strings.Contains(screen, text) {
					return false
				}
			}
			return strings.HasPrefix(screen, hostname(t)[:1])
		})
	}
	m.keys("C-c")
	m.awaitText("ended with 0")
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil || name == "" {
		t.Fatalf("host name %q: %v", name, err)
	}
	return name
}

// TestTopForms: in a locale without UTF-8 all is ASCII, without colour there is
// none, and where there is nothing to draw on it says what to do.
func TestTopForms(t *testing.T) {
	s := newSite(t)
	color := regexp.MustCompile("\x1b\\[[0-9;]*(7|3[0-7])m")
	for _, c := range []struct {
		env          []string
		ascii, color bool
	}{
		{[]string{"LC_ALL=C"}, true, true},
		{[]string{"NO_COLOR=1"}, false, false},
		{[]string{"LC_ALL=C", "NO_COLOR=1", "TERM=vt100"}, true, false},
	} {
		m := s.top("80", "24", append(c.env, "--window", "1h", "--interval", "200ms")...)
		m.awaitText("nothing yet")
		s.connect()
		s.refuse()
		m.awaitText(" 2 in ")
		screen := m.run("capture-pane", "-p", "-e")
		if ascii := utf8.RuneCountInString(screen) == len(screen); ascii != c.ascii {
			t.Errorf("%v: ASCII: %t:\n%s", c.env, ascii, screen)
		}
		if colored := color.MatchString(screen); colored != c.color {
			t.Errorf("%v: coloured: %t:\n%q", c.env, colored, screen)
		}
		m.keys("Enter")
		detail := m.awaitText("1 exchanges:")
		if ascii := utf8.RuneCountInString(detail) == len(detail); ascii != c.ascii {
			t.Errorf("%v: ASCII: %t:\n%s", c.env, ascii, detail)
		}
	}
	s.top("80", "24", "TERM=dumb").awaitText("cannot be drawn on", "--once", "ended with 1")
	if out, status := s.run("top"); status != 1 || !strings.Contains(out, "--once") {
		t.Errorf("without a terminal: %d, %s", status, out)
	}
	for args, want := range map[string]string{
		"top --sort size": "p99", "top --group colour": "destination", "top --window 1s": "10s", "top --once -o yaml": "json",
		"top -o json": "--once", "top --port http": "not a port", "top now": "now",
	} {
		if out, status := s.run(strings.Fields(args)...); status != exitUsage || !strings.Contains(out, want) {
			t.Errorf("%s: %d, %s", args, status, out)
		}
	}
}

// TestTopOverARestart: a flatd that is killed is waited for, and what the kernel
// saw meanwhile is counted.
func TestTopOverARestart(t *testing.T) {
	s := newSite(t)
	m := s.top("80", "24", "--window", "1h", "--interval", "200ms")
	m.awaitText("nothing yet")
	s.connect()
	m.awaitText(" 1 in ")
	s.killFlatd()
	m.awaitText("flatd has gone away; waiting for it")
	s.connect()
	s.startFlatd(testbed.Build(t, "flatd", ""))
	m.awaitText("back, and going on", " 2 in ")
	s.connect()
	m.awaitText(" 3 in ")

	// To begin anew takes a flatd; that is waited for, too.
	s.killFlatd()
	m.awaitText(" 3 in ", "waiting for it")
	m.keys("c")
	m.awaitText("nobody listens on", "nothing yet")
	s.startFlatd(testbed.Build(t, "flatd", ""))
	m.await("its end", func(screen string) bool { return !strings.Contains(screen, "nobody listens on") })
	s.connect()
	m.awaitText(" 1 in ")
	m.keys("q")
	m.awaitText("ended with 0")
	s.stopFlatd()
	s.top("80", "24").awaitText("no socket", "ended with 1")
}

// killFlatd leaves it no time to end.
func (s *site) killFlatd() {
	s.t.Helper()
	if err := s.flatdProcess.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	_ = s.flatdProcess.Wait()
}

// TestTopLeftOut: what flatd is told to leave out is not silently missing.
func TestTopLeftOut(t *testing.T) {
	s := newSite(t)
	s.configure("[filter]\nsample = 4\n")
	m := s.top("80", "24", "--window", "1h", "--interval", "200ms")
	m.awaitText("nothing yet", hostname(t)) // it has asked flatd
	const n = 64
	for range n {
		s.connect()
	}
	shown := regexp.MustCompile(`(?s) (\d+) in .*not in here: (\d+) exchanges that the`)
	m.await("all of them in the one or the other figure", func(screen string) bool {
		var in, out int
		if figures := shown.FindStringSubmatch(screen); figures == nil {
			return false
		} else if _, err := fmt.Sscan(figures[1]+" "+figures[2], &in, &out); err != nil {
			t.Fatal(err)
		}
		return in+out == n && in > 0 && out > 0
	})
}

// configure adds to the configuration, and has it take effect.
func (s *site) configure(text string) {
	s.t.Helper()
	f, err := os.OpenFile(s.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, text); err != nil {
		s.t.Fatal(err)
	}
	if out, status := s.run("reload"); status != 0 {
		s.t.Fatal(out)
	}
}

func TestTopCompletion(t *testing.T) {
	for words, want := range map[string]string{"top --group ": "interface", "top --sort p": "p99", "top -o ": "json", "top --kind ": "icmp", "to": "top"} {
		if offers, _ := complete(t, strings.Split(words, " ")...); !slices.Contains(offers, want) {
			t.Errorf("flatctl %s: offers %q, want %q among them", words, offers, want)
		}
	}
}
