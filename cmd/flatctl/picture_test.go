package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf/testbed"
)

// TestPicture: what the README shows of top is what top shows. With -update it is
// shown anew: real exchanges, on a real screen.
func TestPicture(t *testing.T) {
	path := filepath.Join(testbed.Tree(t), "README.md")
	readme, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	between := regexp.MustCompile("(?s)(<!-- top: [^>]*-->\n```\n)(.*)(```\n<!-- /top -->)")
	at := between.FindSubmatchIndex(readme)
	if at == nil {
		t.Fatal("README.md has no <!-- top --> … <!-- /top -->")
	}
	shown := string(readme[at[4]:at[5]])
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
	for round := range rounds {
		s.scene(round)
	}
	screen := m.awaitText("web1", ":443", ":9 ", silent)
	if *update {
		readme = append(append(append([]byte(nil), readme[:at[4]]...), screen...), readme[at[5]:]...)
		if err := os.WriteFile(path, readme, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, text := range []string{"sorted by", "DESTINATION", "? help"} {
		if have, want := strings.Fields(lineWith(shown, text)), strings.Fields(lineWith(screen, text)); !slices.Equal(have, want) {
			t.Errorf("README.md has %q, the screen %q; `go test ./cmd/flatctl -run Picture -update` makes it anew", have, want)
		}
	}
}

// silent is an address that nobody answers for.
const silent = "10.99.0.77"

// scene is a moment of a host's life: some destinations are asked more often than
// others, one refuses, one is silent.
func (s *site) scene(round int) {
	s.t.Helper()
	if round == 0 {
		s.prepare()
	}
	for i, port := range []string{"443", "5432", "6379"} {
		for range (20 + (round*7)%25) / (1 + 3*i) {
			s.dial("tcp", net.JoinHostPort(s.server.V4, port))
			if i == 0 {
				s.dial("tcp", net.JoinHostPort(s.server.V6, port))
			}
		}
	}
	if round%5 == 0 {
		s.refuse()
		s.inVain()
	}
	time.Sleep(150 * time.Millisecond) // life, not a wait
}

// prepare has the server listen, and the silent address be on the link.
func (s *site) prepare() {
	s.t.Helper()
	for _, port := range []string{"443", "5432", "6379"} {
		var l net.Listener
		var err error
		s.server.Do(func() { l, err = net.Listen("tcp", ":"+port) })
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
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
