package systemd

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf/testbed"
)

// TestPackage leads the Debian package through its life: installed by apt,
// enabled, upgraded under load, removed, installed anew, purged.
func TestPackage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds packages and boots systemd")
	}
	for _, tool := range []string{"apt-get", "dpkg", "deb-systemd-helper"} {
		testbed.Tool(t, tool)
	}
	p := &packaged{service: &service{bed: boot(t), t: t}}
	if _, err := p.try(t, "test", "!", "-e", "/usr/bin/flatd"); err != nil {
		testbed.Missing(t, "flatd is installed on this machine, and so in the bed")
	}
	p.before = p.traces(t)
	p.older, p.newer = p.build(t, "v1.0.0"), p.build(t, "v1.0.1")
	for _, step := range []struct {
		name string
		test func(*packaged, *testing.T)
	}{
		{"installs and starts nothing", (*packaged).install},
		{"is enabled and started by one command", (*packaged).enable},
		{"measures on through an upgrade", (*packaged).upgrade},
		{"is removed with all of its own", (*packaged).remove},
		{"keeps the configuration when it comes back", (*packaged).comeBack},
		{"leaves nothing when purged", (*packaged).purge},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(p, t) }) {
			t.Fatal("the other steps need this one")
		}
	}
}

// packaged is a bed with two versions of the package at hand.
type packaged struct {
	*service
	older, newer string   // in the bed
	before       []string // what is called flatd without the package
}

// build builds the package of this machine's architecture.
func (p *packaged) build(t *testing.T, version string) (deb string) {
	t.Helper()
	arch := strings.TrimSpace(testbed.Run(t, "dpkg", "--print-architecture"))
	testbed.Run(t, "make", "-s", "-C", "..", "package", "DIST="+p.dir, "BIN="+filepath.Join(p.dir, "bin"),
		"ARCHES="+arch, "FORMATS=deb", "VERSION="+version)
	return fmt.Sprintf("/bed/flatd_%s-1_%s.deb", strings.TrimPrefix(version, "v"), arch)
}

// apt runs apt-get, with the answers a script gives.
func (p *packaged) apt(t *testing.T, args ...string) {
	t.Helper()
	p.run(t, "env", aptGet(args...)...)
}

func aptGet(args ...string) []string {
	return append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "APT::Sandbox::User=root"}, args...)
}

func (p *packaged) install(t *testing.T) {
	p.apt(t, "install", p.older)
	for _, unit := range []string{"flatd.service", "flatd.socket", "flatd-metrics.socket"} {
		if got := p.property(t, unit, "ActiveState"); got != "inactive" {
			t.Errorf("%s is %s without having been asked for", unit, got)
		}
		if got := p.property(t, unit, "UnitFileState"); got != "disabled" {
			t.Errorf("%s is %s", unit, got)
		}
	}
	p.run(t, "getent", "group", "flatd")
	if got := p.run(t, "stat", "-c", "%U %a", pins); got != "root 700\n" {
		t.Errorf("%s is of %s", pins, got)
	}
	if out := p.run(t, "dpkg", "--verify", "flatd"); out != "" {
		t.Errorf("dpkg --verify: %s", out)
	}
	if out := p.run(t, "journalctl", "--list-catalog"); !strings.Contains(out, "The network did not answer in time") {
		t.Error("the catalog is without flatd's messages")
	}
	if out := p.run(t, "systemd-analyze", "verify", "flatd.service", "flatd.socket", "flatd-metrics.socket"); out != "" {
		t.Errorf("systemd-analyze verify, manual pages included: %s", out)
	}
}

func (p *packaged) enable(t *testing.T) {
	p.write(t, "/etc/flatd/flatd.toml.d/50-bed.toml", "interfaces = [\"flat0\"]\n[outputs.journald]\nprofile = \"all\"\n")
	p.self, p.peer = p.addPeer(t)
	p.run(t, "systemctl", "enable", "--now", "flatd")
	p.run(t, "systemctl", "enable", "flatd-metrics.socket")
	p.run(t, "systemctl", "restart", "flatd")
	p.wantPrograms(t, 1)
	p.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", p.wantRefused(t, p.self, p.peer)))
	if got := p.run(t, "flatctl", "version"); strings.Count(got, "v1.0.0\n") != 2 {
		t.Errorf("flatctl version says:\n%s", got)
	}
}

// upgrade has connections refused all the time, on ports of their own, and wants
// each of them reported once.
func (p *packaged) upgrade(t *testing.T) {
	first, done := closedPort+p.closed, make(chan struct{})
	upgraded := make(chan error)
	go func() {
		out, err := p.try(t, "env", aptGet("install", p.newer)...)
		if err != nil {
			err = fmt.Errorf("apt-get install: %w\n%s", err, out)
		}
		close(done)
		upgraded <- err
	}()
	refused := p.refuseUntil(t, first, done)
	if err := <-upgraded; err != nil {
		t.Fatal(err)
	}
	p.closed += refused
	last := p.wantRefused(t, p.self, p.peer)
	p.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", last))

	if got := p.run(t, "flatctl", "version"); strings.Count(got, "v1.0.1\n") != 2 {
		t.Errorf("after the upgrade flatctl version says:\n%s", got)
	}
	for _, unit := range []string{"flatd.service", "flatd.socket", "flatd-metrics.socket"} {
		if got := p.property(t, unit, "UnitFileState"); got != "enabled" {
			t.Errorf("after the upgrade %s is %s", unit, got)
		}
	}
	times := make(map[string]int) // port was reported
	for _, e := range p.journal(t, "FLATD_RESULT=refused") {
		port, _ := e["DESTINATION_PORT"].(string)
		times[port]++
	}
	t.Logf("%d connections were refused during the upgrade", refused)
	for port := first; port <= last; port++ {
		if got := times[strconv.Itoa(port)]; got != 1 {
			t.Errorf("port %d was refused once and is reported %d times", port, got)
		}
	}
}

// refuseUntil dials one closed port after the other, some hundred a second, and
// says how many.
func (p *packaged) refuseUntil(t *testing.T, first int, done <-chan struct{}) (refused int) {
	t.Helper()
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	err := in(p.self.namespace, func() error {
		for {
			select {
			case <-done:
				return nil
			case <-pace.C:
			}
			port := first + refused
			if _, err := net.Dial("tcp", p.peer.endpoint(port)); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("dial the closed port %d: %w", port, err)
			}
			refused++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return refused
}

func (p *packaged) remove(t *testing.T) {
	p.apt(t, "remove", "flatd")
	p.wantPrograms(t, 0)
	for _, path := range []string{pins, "/run/flatd", "/usr/bin/flatd"} {
		if out, err := p.try(t, "ls", "-A", path); err == nil {
			t.Errorf("%s is left: %s", path, out)
		}
	}
	p.run(t, "test", "-e", "/etc/flatd/flatd.toml.d/50-bed.toml")
}

func (p *packaged) comeBack(t *testing.T) {
	p.apt(t, "install", p.newer)
	// What was enabled stays so over a removal: deb-systemd-helper remembers.
	p.run(t, "systemctl", "enable", "--now", "flatd")
	p.wantPrograms(t, 1)
	p.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", p.wantRefused(t, p.self, p.peer)))
}

func (p *packaged) purge(t *testing.T) {
	p.write(t, "/etc/systemd/system/flatd.service.d/50-mine.conf", "[Service]\nNice=1\n")
	p.apt(t, "purge", "flatd")
	p.wantPrograms(t, 0)
	was := make(map[string]bool)
	for _, path := range p.before {
		was[path] = true
	}
	for _, path := range p.traces(t) {
		if !was[path] {
			t.Errorf("left: %s", path)
		}
	}
	if out := p.run(t, "journalctl", "--list-catalog"); strings.Contains(out, "flatd") {
		t.Error("the catalog still has flatd's messages")
	}
}

// traces are the files of whatever is called flatd or flatctl, but for what the
// bed, the journal and apt keep of anything.
func (p *packaged) traces(t *testing.T) []string {
	t.Helper()
	return strings.Fields(p.run(t, "find", "/etc", "/usr", "/run", "/var", "/sys/fs/bpf", "-name", "*flat[dc]*",
		"-not", "-path", "/run/systemd/*", "-not", "-path", "/var/tmp/systemd-private-*"))
}
