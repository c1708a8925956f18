package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/flatd/flatd/packaging/testbed"
)

// TestPictures: what the README shows of top and histogram is what they show. With
// -update it is shown anew: real exchanges, on a real screen.
func TestPictures(t *testing.T) {
	s := newSite(t)
	s.stopFlatd()
	s.startFlatd(named(t, "web1", testbed.Build(t, "flatd", "")))
	s.configure("[measure]\ntimeout = \"2s\"\n")
	window, rounds := "1h", 1
	if *update {
		window, rounds = "10s", 60
	}
	m := s.top("80", "14", "--window", window)
	m.awaitText("nothing yet", "web1")
	a := s.newAsking()
	for round := range rounds {
		a.scene(round)
	}
	m.awaitText("web1", ":443", ":9 ", silent)
	samePicture(t, "top.svg", "flatctl top", m.run("capture-pane", "-p", "-e", "-N"), "sorted by", "DESTINATION", "? help")

	m = newTmux(t, "80", "40", "env -u NO_COLOR LC_ALL=C.UTF-8 "+s.flatctl+" --socket "+s.socket+" histogram --kind tcp")
	m.awaitText("ended with 0")
	drawn, _, _ := strings.Cut(m.run("capture-pane", "-p", "-e", "-N"), "ended with")
	samePicture(t, "histogram.svg", "flatctl histogram --kind tcp", drawn, "kind=tcp", "mean", "from")
}

// samePicture draws a screen, and wants the picture that the README shows to have
// the same words, but for figures, in the lines with these texts.
func samePicture(t *testing.T, name, title, screen string, texts ...string) {
	t.Helper()
	path := filepath.Join(testbed.Tree(t), "packaging/pictures", name)
	drawn := draw(t, title, screen)
	if *update {
		if err := os.WriteFile(path, drawn, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shown, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	have, want := textOf(t, shown), textOf(t, drawn)
	if plain := ansi.Strip(screen); !slices.Equal(strings.Fields(want), strings.Fields(plain)) {
		t.Errorf("the drawing of %q has\n%s\nand not\n%s", title, want, plain)
	}
	for _, text := range texts {
		if have, want := wordsOf(lineWith(have, text)), wordsOf(lineWith(want, text)); !slices.Equal(have, want) || len(want) == 0 {
			t.Errorf("%s has %q, the screen %q; `go test ./cmd/flatctl -run Picture -update` makes it anew", name, have, want)
		}
	}
	const most = 100_000
	if len(shown) > most || bytes.Contains(shown, []byte("url(http")) {
		t.Errorf("%s: %d bytes, and all it needs is to be in it", name, len(shown))
	}
	readme, err := os.ReadFile(filepath.Join(testbed.Tree(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(readme, []byte("](packaging/pictures/"+name+")")) {
		t.Errorf("README.md does not show %s", name)
	}
}

// draw makes a picture of a screen with its colours.
func draw(t *testing.T, title, screen string) []byte {
	t.Helper()
	testbed.Tool(t, "/usr/bin/python3")
	command := exec.Command(filepath.Join(testbed.Tree(t), "packaging/pictures/draw.py"), title)
	command.Stdin = strings.NewReader(screen)
	var said bytes.Buffer
	command.Stderr = &said
	picture, err := command.Output()
	if err != nil {
		if strings.Contains(said.String(), "ModuleNotFoundError") {
			testbed.Missing(t, "needs Rich for Python (make setup-test installs it)")
		}
		t.Fatalf("draw.py: %v\n%s", err, said.String())
	}
	return picture
}

// textOf is what can be read on the screen in a picture.
func textOf(t *testing.T, picture []byte) string {
	t.Helper()
	var svg struct {
		Groups []struct {
			Groups []struct {
				Texts []struct {
					X    float64 `xml:"x,attr"`
					Y    float64 `xml:"y,attr"`
					Text string  `xml:",chardata"`
				} `xml:"text"`
			} `xml:"g"`
		} `xml:"g"`
	}
	if err := xml.Unmarshal(picture, &svg); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, outer := range svg.Groups {
		for _, inner := range outer.Groups {
			for _, one := range inner.Texts {
				text.WriteString(one.Text)
			}
		}
	}
	return strings.ReplaceAll(text.String(), "\u00a0", " ")
}

// wordsOf are those of a line that are neither figures nor units of them.
func wordsOf(line string) []string {
	return slices.DeleteFunc(strings.Fields(line), func(word string) bool {
		return word[0] >= '0' && word[0] <= '9' || slices.Contains([]string{"ns", "µs", "ms", "s"}, word)
	})
}

// silent is an address that nobody answers for.
const silent = "10.99.0.77"

// scene is a moment of a host's life: some destinations are asked more often than
// others, one refuses, one is silent.
func (a *asking) scene(round int) {
	a.t.Helper()
	if round == 0 {
		a.prepare()
	}
	for i, port := range []string{"443", "5432", "6379"} {
		for range (20 + (round*7)%25) / (1 + 3*i) {
			a.dial("tcp", net.JoinHostPort(a.server.V4, port))
			if i == 0 {
				a.dial("tcp", net.JoinHostPort(a.server.V6, port))
			}
		}
	}
	for range 2 + round%4 {
		a.ask(a.server.V4, dnsPort, a.question(), true)
	}
	if round%5 == 0 {
		a.refuse()
		a.inVain()
	}
	time.Sleep(100 * time.Millisecond) // life, not a wait
}

// prepare has the server listen, and the silent address be on the link.
func (s *site) prepare() {
	s.t.Helper()
	for _, port := range []string{"443", "5432", "6379"} {
		go testbed.CloseEach(s.server.Listen(s.t, ":"+port))
	}
	mac, err := s.server.Command("cat", "/sys/class/net/eth0/address").Output()
	if err != nil {
		s.t.Fatal(err)
	}
	testbed.Run(s.t, "ip", "-n", s.client.Name, "neighbour", "add", silent, "lladdr", strings.TrimSpace(string(mac)), "dev", "eth0")
}

func (s *site) dial(network, address string) {
	s.t.Helper()
	var err error
	s.client.Do(func() {
		var conn net.Conn
		if conn, err = net.Dial(network, address); err == nil {
			conn.Close()
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// inVain begins a connection that nobody answers.
func (s *site) inVain() {
	s.t.Helper()
	var err error
	s.client.Do(func() {
		var fd int
		if fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		s.t.Cleanup(func() { syscall.Close(fd) })
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: 443, Addr: [4]byte(net.ParseIP(silent).To4())})
	})
	if err != syscall.EINPROGRESS {
		s.t.Fatal(fmt.Errorf("connect to nobody: %w", err))
	}
}
