package systemd

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
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
	p := newPackaged(t, deb)
	p.lead(t, []stage{
		{"installs and starts nothing", (*packaged).install},
		{"is enabled and started by one command", (*packaged).enable},
		{"measures on through an upgrade", (*packaged).upgrade},
		{"is removed with all of its own", (*packaged).remove},
		{"keeps the configuration when it comes back", (*packaged).comeBack},
		{"leaves nothing when purged", (*packaged).purge},
	})
}

// TestRPM leads the rpm through as much of a life as it can have on Debian, whose
// rpm knows nothing of what else is installed: its scripts are those that Fedora
// and its kin run.
func TestRPM(t *testing.T) {
	if testing.Short() {
		t.Skip("builds packages and boots systemd")
	}
	if inGuest() {
		t.Skip("the guests have no rpm")
	}
	testbed.Tool(t, "rpm")
	p := newPackaged(t, rpm)
	// What starts by default says the distribution; of these it is nothing.
	p.write(t, "/etc/systemd/system-preset/99-default.preset", "disable *\n")
	p.lead(t, []stage{
		{"installs and starts nothing", (*packaged).install},
		{"is enabled and started by one command", (*packaged).enable},
		{"measures on through an upgrade", (*packaged).upgrade},
		{"is removed with all of its own", (*packaged).remove},
	})
}

// packaged is a bed with two versions of the package at hand.
type packaged struct {
	*service
	packages
	before []string // what is called flatd without the package
}

func newPackaged(t *testing.T, format packageFormat) *packaged {
	t.Helper()
	p := &packaged{service: &service{bed: boot(t), t: t}}
	if _, err := p.try(t, "test", "!", "-e", "/usr/bin/flatd"); err != nil {
		testbed.Missing(t, "flatd is installed on this machine, and so in the bed")
	}
	p.before = p.traces(t)
	if !inGuest() {
		p.build(t, format, "v1.0.0")
		p.build(t, format, "v1.0.1")
	}
	p.packages = packages{format: format, older: format.file("1.0.0"), newer: format.file("1.0.1")}
	return p
}

// stage is one of a package's life.
type stage struct {
	name string
	test func(*packaged, *testing.T)
}

func (p *packaged) lead(t *testing.T, life []stage) {
	t.Helper()
	for _, s := range life {
		if !p.step(t, s.name, func(t *testing.T) { s.test(p, t) }) {
			t.Fatal("the other steps need this one")
		}
	}
}

// build builds the package of this machine's architecture, which the bed then has.
func (p *packaged) build(t *testing.T, format packageFormat, version string) {
	t.Helper()
	testbed.Run(t, "make", "-s", "-C", "..", "package", "DIST="+p.dir, "BIN="+filepath.Join(p.dir, "bin"),
		"ARCHES="+runtime.GOARCH, "FORMATS="+string(format), "VERSION="+version)
}

// packageFormat is what nfpm calls it.
type packageFormat string

const (
	deb packageFormat = "deb"
	rpm packageFormat = "rpm"
)

// packages are two versions of the package, by their paths in the bed.
type packages struct {
	format       packageFormat
	older, newer string
}

// file is the path of a package in the bed.
func (f packageFormat) file(version string) string {
	if f == deb {
		return fmt.Sprintf("/bed/flatd_%s-1_%s.deb", version, runtime.GOARCH)
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	return fmt.Sprintf("/bed/flatd-%s-1.%s.rpm", version, arch)
}

// put is the command that installs a package, or upgrades to it.
func (p packages) put(path string) []string {
	if p.format == deb {
		return append([]string{"env"}, aptGet("install", path)...)
	}
	return []string{"rpm", "--force-debian", "--nodeps", "-U", path}
}

// check is the command that says what of the package is not as it was installed.
func (p packages) check() []string {
	if p.format == deb {
		return []string{"dpkg", "--verify", "flatd"}
	}
	return []string{"rpm", "--nodeps", "-V", "flatd"}
}

// drop is the command that removes the package.
func (p packages) drop() []string {
	if p.format == deb {
		return append([]string{"env"}, aptGet("remove", "flatd")...)
	}
	return []string{"rpm", "--nodeps", "-e", "flatd"}
}

// command runs one in the bed that has its arguments in a list.
func (p *packaged) command(t *testing.T, args []string) string {
	t.Helper()
	return p.run(t, args[0], args[1:]...)
}

// apt runs apt-get, with the answers a script gives.
func (b *bed) apt(t *testing.T, args ...string) {
	t.Helper()
	b.run(t, "env", aptGet(args...)...)
}

func aptGet(args ...string) []string {
	return append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "APT::Sandbox::User=root"}, args...)
}

func (p *packaged) install(t *testing.T) {
	p.command(t, p.put(p.older))
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
	if out := p.command(t, p.check()); out != "" {
		t.Errorf("the package is not as it was installed: %s", out)
	}
	if out := p.run(t, "journalctl", "--list-catalog"); !strings.Contains(out, "The network did not answer in time") {
		t.Error("the catalog is without flatd's messages")
	}
	verify := []string{"verify", "flatd.service", "flatd.socket", "flatd-metrics.socket"}
	if inGuest() {
		verify = append(verify, "--man=no") // for want of man
	}
	if out := p.run(t, "systemd-analyze", verify...); out != "" {
		t.Errorf("systemd-analyze verify, manual pages included: %s", out)
	}
}

func (p *packaged) enable(t *testing.T) {
	p.write(t, "/etc/flatd/flatd.toml.d/50-bed.toml", "interfaces = [\"flat0\"]\n[outputs.journald]\nprofile = \"all\"\n")
	if inGuest() {
		// When the machine below stands still, the guest's clock does not.
		p.write(t, "/etc/systemd/system/flatd.service.d/50-bed.conf",
			fmt.Sprintf("[Service]\nWatchdogSec=%d\n", int(patience.Seconds())))
		p.run(t, "systemctl", "daemon-reload")
	}
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
		put := p.put(p.newer)
		out, err := p.try(t, put[0], put[1:]...)
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s", strings.Join(put, " "), err, out)
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
			events := p.journal(t, fmt.Sprintf("DESTINATION_PORT=%d", port))
			t.Errorf("port %d, number %d of them, was refused once and is reported %d times: %v", port, port-first, got, events)
		}
	}
	p.wantNoGap(t)
}

// wantNoGap wants an event for each of the sequence numbers that the kernel gave.
func (p *packaged) wantNoGap(t *testing.T) {
	t.Helper()
	var numbers []int64
	for _, e := range p.journal(t, "EVENT_KIND=event") {
		if _, ok := e["EVENT_SEQUENCE"]; ok {
			numbers = append(numbers, e.number(t, "EVENT_SEQUENCE"))
		}
	}
	slices.Sort(numbers)
	for i, number := range numbers[1:] {
		if before := numbers[i]; number != before+1 {
			t.Errorf("after the event of number %d comes the one of number %d", before, number)
		}
	}
}

// refuseUntil dials one closed port after the other, 200 a second, in a guest 20,
// and says how many.
func (p *packaged) refuseUntil(t *testing.T, first int, done <-chan struct{}) (refused int) {
	t.Helper()
	pace := time.NewTicker(patience / 6000)
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
	p.command(t, p.drop())
	p.wantPrograms(t, 0)
	for _, path := range []string{pins, "/run/flatd", "/usr/bin/flatd"} {
		if out, err := p.try(t, "ls", "-A", path); err == nil {
			t.Errorf("%s is left: %s", path, out)
		}
	}
	p.run(t, "test", "-e", "/etc/flatd/flatd.toml.d/50-bed.toml")
	if inGuest() {
		wantNoPrograms(t)
	}
}

func (p *packaged) comeBack(t *testing.T) {
	if inGuest() {
		t.Skip("the same in all suites, and takes long")
	}
	p.command(t, p.put(p.newer))
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
	if inGuest() {
		wantNoPrograms(t)
	}
}

// traces are the files of whatever is called flatd or flatctl, but for what the
// bed, the journal and apt keep of anything.
func (p *packaged) traces(t *testing.T) []string {
	t.Helper()
	return strings.Fields(p.run(t, "find", "/etc", "/usr", "/run", "/var", "/sys/fs/bpf", "-name", "*flat[dc]*",
		"-not", "-path", "/run/systemd/*", "-not", "-path", "/var/tmp/systemd-private-*"))
}
