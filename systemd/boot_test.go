package systemd

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/flatd/flatd/packaging/testbed"
)

const (
	openPort   = 8080 // something listens
	closedPort = 9000 // and on the ports that follow: nothing does
	status     = "http://flatd/v1/status"
	pins       = "/sys/fs/bpf/flatd"

	curlCannotConnect = 7 // exit status
)

// TestService installs flatd in a bed, as a package would, and leads it through
// its life, one step after the other.
func TestService(t *testing.T) {
	if testing.Short() {
		t.Skip("boots systemd")
	}
	s := &service{bed: boot(t), t: t}
	for i, step := range []struct {
		name string
		test func(*service, *testing.T)
	}{
		{"is installed", (*service).install},
		{"units verify", (*service).verify},
		{"starts", (*service).start},
		{"finds a new interface", (*service).connectPeer},
		{"is hardened", (*service).harden},
		{"answers on its socket", (*service).answer},
		{"reports what was refused", (*service).refuse},
		{"explains its messages", (*service).explain},
		{"names the unit", (*service).nameUnit},
		{"names a user's unit", (*service).nameUserUnit},
		{"keeps out of the unit's journal", (*service).withoutObjectUnit},
		{"reloads", (*service).reload},
		{"refuses to reload a bad file", (*service).reloadBad},
		{"measures while stopped", (*service).stopAndStart},
		{"follows a handshake over a restart", (*service).restartWithin},
		{"comes back when killed", (*service).kill},
		{"comes back when it hangs", (*service).hang},
		{"is started by its socket", (*service).activate},
		{"attaches the older way", (*service).clsact},
		{"serves metrics on request", (*service).metrics},
		{"does not retry a bad file", (*service).startBad},
		{"leaves nothing when detached", (*service).detach},
	} {
		ok := s.step(t, step.name, func(t *testing.T) { step.test(s, t) })
		if !ok && i < 4 {
			t.Fatal("the other steps need this one")
		}
	}
}

// service is flatd installed in a bed, with a neighbour to talk to.
type service struct {
	*bed
	t          *testing.T // of the whole life
	self, peer host
	closed     int // ports used up from closedPort on
}

// install puts flatd into the bed, and a few settings.
func (s *service) install(t *testing.T) {
	if inGuest() {
		s.apt(t, "install", deb.file("1.0.1"))
	} else {
		s.installTree(t)
	}
	s.write(t, "/etc/flatd/flatd.toml.d/50-bed.toml", `interfaces = ["flat0"]`)
	// Quicker than in the unit, so that the test need not wait so long.
	s.write(t, "/etc/systemd/system/flatd.service.d/50-bed.conf",
		fmt.Sprintf("[Service]\nWatchdogSec=%d\nRestartSec=100ms\n", s.watchdog))
	s.run(t, "systemctl", "daemon-reload")
}

// installTree builds what a release has.
func (s *service) installTree(t *testing.T) {
	built := t.TempDir()
	testbed.Run(t, "make", "-C", "..", "install", "BIN="+built, "DESTDIR="+filepath.Join(s.dir, "root"))
	s.run(t, "cp", "-a", "/bed/root/.", "/")
	s.run(t, "systemd-sysusers")
	s.run(t, "journalctl", "--update-catalog")
}

func (s *service) verify(t *testing.T) {
	if out := s.run(t, "systemd-analyze", "verify", "--man=no",
		"flatd.service", "flatd.socket", "flatd-metrics.socket"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if out := s.run(t, "systemd-tmpfiles", "--create", "flatd.conf"); out != "" {
		t.Errorf("systemd-tmpfiles: %s", out)
	}
	if got := s.run(t, "stat", "-c", "%U %a", pins); got != "root 700\n" {
		t.Errorf("%s is of %s", pins, got)
	}
}

func (s *service) start(t *testing.T) {
	s.run(t, "systemctl", "enable", "--now", "flatd")
	for _, unit := range []string{"flatd.service", "flatd.socket"} {
		if got := s.property(t, unit, "ActiveState"); got != "active" {
			t.Errorf("%s is %s", unit, got)
		}
		if got := s.property(t, unit, "UnitFileState"); got != "enabled" {
			t.Errorf("%s is %s", unit, got)
		}
	}
	if got := s.property(t, "flatd-metrics.socket", "ActiveState"); got != "inactive" {
		t.Errorf("flatd-metrics.socket is %s without having been asked for", got)
	}
	if got := s.property(t, "flatd.service", "StatusText"); !strings.HasPrefix(got, "not measuring") {
		t.Errorf("the status is %q while there is no interface to measure", got)
	}
}

func (s *service) harden(t *testing.T) {
	out := s.run(t, "systemd-analyze", "security", "--no-pager", "flatd.service")
	match := regexp.MustCompile(`exposure level for flatd.service: ([0-9.]+)`).FindStringSubmatch(out)
	if match == nil {
		t.Fatalf("no exposure level in:\n%s", out)
	}
	level, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("systemd-analyze security: %.1f", level)
	if level > 2.0 {
		t.Errorf("exposure level is %.1f, want 2.0 at most:\n%s", level, out)
	}
}

// curl asks the daemon for something over its control socket.
func (s *service) curl(t *testing.T, url string) string {
	t.Helper()
	return s.run(t, "curl", "-fsS", "--unix-socket", "/run/flatd/control.sock", url)
}

func (s *service) answer(t *testing.T) {
	if got := s.curl(t, status); !strings.HasPrefix(got, "{") {
		t.Errorf("%s is not JSON: %s", status, got)
	}
	s.run(t, "flatctl", "status")
	if got := s.run(t, "stat", "-c", "%U:%G %a", "/run/flatd/control.sock"); got != "root:flatd 660\n" {
		t.Errorf("the control socket is %s", got)
	}
	reader := []string{"setpriv", "--reuid=65534", "--clear-groups", "--regid=65534", "flatctl", "status"}
	if out, err := s.try(t, reader[0], reader[1:]...); err == nil {
		t.Errorf("somebody outside the group may read: %s", out)
	}
	reader = slices.Replace(reader, 2, 3, "--groups=flatd")
	s.run(t, reader[0], reader[1:]...)
	reader[len(reader)-1] = "reload"
	if out, err := s.try(t, reader[0], reader[1:]...); err == nil {
		t.Errorf("a member of the group may reload: %s", out)
	}
}

func (s *service) connectPeer(t *testing.T) {
	attached := len(s.journal(t, "EVENT_ACTION=attach"))
	s.self, s.peer = s.addPeer(t)
	for _, h := range []host{s.self, s.peer} {
		listener, err := h.listen(openPort)
		if err != nil {
			t.Fatal(err)
		}
		s.t.Cleanup(func() { listener.Close() })
	}
	entries := s.await(t, attached+1, "EVENT_ACTION=attach")
	if got := entries[attached]["OBSERVER_INTERFACE_NAME"]; got != "flat0" {
		t.Errorf("attached to %v, want flat0", got)
	}
	s.wantPrograms(t, 1)
}

// wantPrograms counts the programs on each hook of flat0.
func (s *service) wantPrograms(t *testing.T, want int) {
	t.Helper()
	index, err := strconv.Atoi(strings.TrimSpace(s.run(t, "cat", "/sys/class/net/flat0/ifindex")))
	if err != nil {
		t.Fatal(err)
	}
	for name, hook := range map[string]ebpf.AttachType{"ingress": ebpf.AttachTCXIngress, "egress": ebpf.AttachTCXEgress} {
		got := strings.Count(s.run(t, "tc", "filter", "show", "dev", "flat0", name), "direct-action")
		err := in(s.self.namespace, func() error {
			result, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: hook})
			if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, syscall.EINVAL) {
				return nil // Linux before 6.6
			}
			if err == nil {
				got += len(result.Programs)
			}
			return err
		})
		if err != nil {
			t.Errorf("query %s of flat0: %v", name, err)
		}
		if got != want {
			t.Errorf("%d programs on %s of flat0, want %d", got, name, want)
		}
	}
}

// wantRefused dials a port nobody has dialled before and nobody listens on.
func (s *service) wantRefused(t *testing.T, from, to host) (port int) {
	t.Helper()
	port = closedPort + s.closed
	s.closed++
	if _, err := from.dial(to, port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial a closed port: %v", err)
	}
	return port
}

// wantEstablished dials the port that is open and returns the one it dialled from.
func (s *service) wantEstablished(t *testing.T, from, to host) (port int) {
	t.Helper()
	port, err := from.dial(to, openPort)
	if err != nil {
		t.Fatalf("dial an open port: %v", err)
	}
	return port
}

func (s *service) refuse(t *testing.T) {
	want := make(map[string]string) // side by port
	for range 3 {
		s.wantEstablished(t, s.self, s.peer)
		want[strconv.Itoa(s.wantRefused(t, s.self, s.peer))] = "client"
		s.wantEstablished(t, s.peer, s.self)
		want[strconv.Itoa(s.wantRefused(t, s.peer, s.self))] = "server"
	}
	last := s.wantEstablished(t, s.self, s.peer)

	// Events come in order, so with this one all are there.
	s.await(t, 1, "FLATD_RESULT=established", fmt.Sprintf("SOURCE_PORT=%d", last))
	got := make(map[string]string)
	for _, e := range s.journal(t, "FLATD_RESULT=refused") {
		port, _ := e["DESTINATION_PORT"].(string)
		if _, twice := got[port]; twice {
			t.Errorf("port %s was refused twice: %v", port, e)
		}
		got[port], _ = e["FLATD_SIDE"].(string)
		s.checkFields(t, e)
	}
	if !maps.Equal(got, want) {
		t.Errorf("refused ports in the journal are %v, want %v", got, want)
	}
	if got := len(s.journal(t, "FLATD_RESULT=established")); got != 7 {
		t.Errorf("%d established connections in the journal, want 7", got)
	}
}

// checkFields looks at what an entry of a refused connection says.
func (s *service) checkFields(t *testing.T, e entry) {
	t.Helper()
	from, to := s.self.address, s.peer.address
	if e["FLATD_SIDE"] == "server" {
		from, to = to, from
	}
	for name, value := range map[string]string{
		"SYSLOG_IDENTIFIER":       "flatd",
		"PRIORITY":                "5",
		"SOURCE_IP":               from,
		"DESTINATION_IP":          to,
		"EVENT_DATASET":           "flatd.tcp",
		"EVENT_OUTCOME":           "failure",
		"NETWORK_TRANSPORT":       "tcp",
		"OBSERVER_INTERFACE_NAME": "flat0",
		"_SYSTEMD_UNIT":           "flatd.service",
		"_TRANSPORT":              "journal",
	} {
		if e[name] != value {
			t.Errorf("%s is %v, want %s", name, e[name], value)
		}
	}
	text, _ := e["EVENT_DURATION"].(string)
	if duration, err := strconv.ParseInt(text, 10, 64); err != nil || duration <= 0 {
		t.Errorf("EVENT_DURATION is %q, want nanoseconds", text)
	}
	if message, _ := e["MESSAGE"].(string); !strings.Contains(message, "refused") {
		t.Errorf("MESSAGE is %q", message)
	}
}

func (s *service) explain(t *testing.T) {
	for _, result := range []string{"refused", "established"} {
		e := s.journal(t, "FLATD_RESULT="+result)[0]
		id, _ := e["MESSAGE_ID"].(string)
		subject := readCatalog(t)[id].subject
		out := s.run(t, "journalctl", "--no-pager", "-x", "-n", "1", "-u", "flatd", "FLATD_RESULT="+result)
		if subject == "" || !strings.Contains(out, "Subject: "+subject) {
			t.Errorf("journalctl -x does not explain message %s with %q:\n%s", id, subject, out)
		}
	}
}

// wantUnitFails runs a transient unit that dials a closed port of the peer, and
// ends at once. systemdRun is a command that makes one.
func (s *service) wantUnitFails(t *testing.T, unit string, systemdRun ...string) (port int) {
	t.Helper()
	port = closedPort + s.closed
	s.closed++
	command := append(systemdRun, "--wait", "--unit="+unit, "curl", "-s", "http://"+s.peer.endpoint(port))
	out, err := s.try(t, command[0], command[1:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != curlCannotConnect {
		t.Fatalf("curl in a unit, to a closed port: %v\n%s", err, out)
	}
	return port
}

// wantInJournal wants one entry of flatd's about a port in what journalctl
// shows with some arguments.
func (s *service) wantInJournal(t *testing.T, port, want int, args ...string) {
	t.Helper()
	s.run(t, "journalctl", "--sync")
	out := s.run(t, "journalctl", append([]string{"--no-pager", "-o", "cat"}, args...)...)
	if got := strings.Count(out, fmt.Sprintf("-> %s refused in ", s.peer.endpoint(port))); got != want {
		t.Errorf("journalctl %s has %d entries of flatd's about port %d, want %d:\n%s", strings.Join(args, " "), got, port, want, out)
	}
}

func (s *service) nameUnit(t *testing.T) {
	port := s.wantUnitFails(t, "probe", "systemd-run")
	e := s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", port))[0]
	for name, want := range map[string]string{
		"SERVICE_NAME": "probe.service", "OBJECT_SYSTEMD_UNIT": "probe.service", "USER_ID": "0",
		"FLATD_CGROUP": "/system.slice/probe.service", "_SYSTEMD_UNIT": "flatd.service",
	} {
		if e[name] != want {
			t.Errorf("%s is %v, want %s", name, e[name], want)
		}
	}
	if message, _ := e["MESSAGE"].(string); !strings.HasSuffix(message, " (probe.service)") {
		t.Errorf("MESSAGE is %q", message)
	}
	s.wantInJournal(t, port, 1, "-u", "probe")
	s.wantInJournal(t, port, 1, "-u", "flatd", "SERVICE_NAME=probe.service")
	s.wantInJournal(t, port, 0, "-u", "flatd.socket")
	s.run(t, "systemctl", "reset-failed", "probe")
}

// nameUserUnit has a user with a manager of their own.
func (s *service) nameUserUnit(t *testing.T) {
	const user, uid = "prober", "4711"
	s.run(t, "useradd", "--uid="+uid, "--no-create-home", "--home-dir=/tmp", user)
	s.run(t, "systemctl", "start", "user@"+uid)
	as := []string{"setpriv", "--reuid=" + uid, "--regid=" + uid, "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/" + uid}
	port := s.wantUnitFails(t, "probe", append(as, "systemd-run", "--user")...)
	e := s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", port))[0]
	manager := "user@" + uid + ".service"
	for name, want := range map[string]string{
		"SERVICE_NAME": "probe.service", "USER_ID": uid,
		"OBJECT_SYSTEMD_UNIT": manager, "OBJECT_SYSTEMD_USER_UNIT": "probe.service", "OBJECT_SYSTEMD_OWNER_UID": uid,
		"FLATD_CGROUP": "/user.slice/user-" + uid + ".slice/" + manager + "/app.slice/probe.service",
	} {
		if e[name] != want {
			t.Errorf("%s is %v, want %s", name, e[name], want)
		}
	}
	s.wantInJournal(t, port, 1, "--user-unit=probe")
	s.wantInJournal(t, port, 1, "-u", manager)
	s.wantInJournal(t, port, 0, "-u", "probe") // the system has one of that name, too
	s.run(t, "systemctl", "stop", "user@"+uid)
}

func (s *service) withoutObjectUnit(t *testing.T) {
	const dropIn = "/etc/flatd/flatd.toml.d/60-object.toml"
	s.write(t, dropIn, "[outputs.journald]\nobject_unit = false\n")
	s.run(t, "systemctl", "reload", "flatd")
	port := s.wantUnitFails(t, "quiet", "systemd-run")
	s.await(t, 1, "SERVICE_NAME=quiet.service", fmt.Sprintf("DESTINATION_PORT=%d", port))
	s.wantInJournal(t, port, 0, "-u", "quiet")
	s.run(t, "systemctl", "reset-failed", "quiet")
	s.run(t, "rm", dropIn)
	s.run(t, "systemctl", "reload", "flatd")
}

func (s *service) reload(t *testing.T) {
	const dropIn = "/etc/flatd/flatd.toml.d/60-filter.toml"
	left := s.closed + closedPort
	s.write(t, dropIn, fmt.Sprintf("[filter]\nports = [%d, %d]\n", openPort, left+1))
	s.run(t, "systemctl", "reload", "flatd")
	s.wantRefused(t, s.self, s.peer) // the port that is left out
	s.wantRefused(t, s.self, s.peer)
	s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", left+1))
	if got := s.journal(t, fmt.Sprintf("DESTINATION_PORT=%d", left)); len(got) != 0 {
		t.Errorf("the new filter is not in force: %v", got)
	}
	s.run(t, "rm", dropIn)
	s.run(t, "flatctl", "reload")
	s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", s.wantRefused(t, s.self, s.peer)))
}

func (s *service) reloadBad(t *testing.T) {
	const dropIn = "/etc/flatd/flatd.toml.d/60-bad.toml"
	pid := s.property(t, "flatd", "MainPID")
	s.write(t, dropIn, "[measure]\ntimout = \"1s\"\n")
	if out, err := s.try(t, "systemctl", "reload", "flatd"); err == nil {
		t.Errorf("systemctl reload accepts a bad file: %s", out)
	}
	out, err := s.try(t, "flatctl", "reload")
	if err == nil || !strings.Contains(out, "timout") || !strings.Contains(out, "60-bad.toml") {
		t.Errorf("flatctl reload says %q (%v), want the file and the key", out, err)
	}
	if log := s.run(t, "journalctl", "--no-pager", "-u", "flatd"); !strings.Contains(log, "timout") {
		t.Error("the journal does not say why systemctl reload failed")
	}
	s.run(t, "rm", dropIn)
	if got := s.property(t, "flatd", "MainPID"); got != pid {
		t.Errorf("the daemon was process %s and is %s", pid, got)
	}
	s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", s.wantRefused(t, s.self, s.peer)))
}

// listPins is what is pinned: maps, programs, links.
func (s *service) listPins(t *testing.T) string {
	t.Helper()
	list := s.run(t, "find", pins, "-type", "f", "-printf", "%P %i\n")
	if list == "" {
		t.Error("nothing is pinned")
	}
	return list
}

func (s *service) stop(t *testing.T) {
	t.Helper()
	s.run(t, "systemctl", "stop", "flatd.service")
	if got := s.property(t, "flatd.service", "Result"); got != "success" {
		t.Errorf("the stop ended in %s", got)
	}
}

func (s *service) stopAndStart(t *testing.T) {
	pinned := s.listPins(t)
	s.stop(t)
	if got := s.listPins(t); got != pinned {
		t.Errorf("pins after the stop:\n%s\nbefore:\n%s", got, pinned)
	}
	port := s.wantRefused(t, s.self, s.peer)
	s.run(t, "systemctl", "start", "flatd")
	e := s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", port))[0]
	if e["FLATD_REPLAYED"] != "true" {
		t.Errorf("what ended before the start is not marked as replayed: %v", map[string]any(e))
	}
	if got := s.listPins(t); got != pinned {
		t.Errorf("pins after the start:\n%s\nbefore:\n%s", got, pinned)
	}
	s.wantPrograms(t, 1)
}

// restartWithin sends a SYN before the restart and has it answered during it.
func (s *service) restartWithin(t *testing.T) {
	// Without a route back the peer stays silent, and the SYN is sent again
	// a second later.
	s.run(t, "ip", "-n", "peer", "route", "add", "blackhole", s.self.address)
	dialled := make(chan int)
	go func() {
		port, _ := s.self.dial(s.peer, openPort)
		dialled <- port
	}()
	s.awaitSyn(t)
	s.stop(t)
	s.run(t, "ip", "-n", "peer", "route", "delete", "blackhole", s.self.address)
	port := <-dialled
	if port == 0 {
		t.Fatal("the connection was not established")
	}
	s.run(t, "systemctl", "start", "flatd")
	e := s.await(t, 1, fmt.Sprintf("SOURCE_PORT=%d", port))[0]
	text, _ := e["EVENT_DURATION"].(string)
	if duration, _ := strconv.ParseInt(text, 10, 64); duration < 1e9 {
		t.Errorf("EVENT_DURATION is %q, want at least the second until the SYN was sent again", text)
	}
	if e["FLATD_RETRANSMITS"] == "0" || e["FLATD_REPLAYED"] != "true" {
		t.Errorf("want retransmits and replayed: %v", map[string]any(e))
	}
}

// awaitSyn waits until a connection has sent its SYN.
func (s *service) awaitSyn(t *testing.T) {
	t.Helper()
	script := `until [ -n "$(ss -Htn state syn-sent)" ]; do sleep 0.01; done`
	s.run(t, "sh", "-c", script)
}

func (s *service) kill(t *testing.T) {
	pid := s.property(t, "flatd", "MainPID")
	pinned := s.listPins(t)
	s.run(t, "kill", "-9", pid)
	// systemd holds the socket, so this waits for the new daemon.
	s.curl(t, status)
	if got := s.property(t, "flatd", "NRestarts"); got != "1" {
		t.Errorf("systemd has restarted the service %s times, want 1", got)
	}
	if got := s.property(t, "flatd", "MainPID"); got == pid || got == "0" {
		t.Errorf("the daemon is process %s", got)
	}
	if got := s.listPins(t); got != pinned {
		t.Errorf("pins after the kill:\n%s\nbefore:\n%s", got, pinned)
	}
	s.wantPrograms(t, 1)
	port := s.wantRefused(t, s.self, s.peer)
	s.wantRefused(t, s.self, s.peer)
	s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", port+1))
	if got := s.journal(t, fmt.Sprintf("DESTINATION_PORT=%d", port)); len(got) != 1 {
		t.Errorf("one connection gives %d events", len(got))
	}
}

func (s *service) hang(t *testing.T) {
	if got := s.property(t, "flatd", "NRestarts"); got != "1" {
		t.Errorf("systemd has restarted the service %s times, want 1: by the kill and not by the watchdog", got)
	}
	s.run(t, "kill", "-STOP", s.property(t, "flatd", "MainPID"))
	s.curl(t, status) // waits for the watchdog, and then for the new daemon
	if got := s.property(t, "flatd", "NRestarts"); got != "2" {
		t.Errorf("systemd has restarted the service %s times, want 2", got)
	}
}

func (s *service) activate(t *testing.T) {
	s.stop(t)
	if got := s.property(t, "flatd.socket", "ActiveState"); got != "active" {
		t.Fatalf("flatd.socket is %s after the service's stop", got)
	}
	s.curl(t, status)
	// Who asks may have an answer before systemd has heard that flatd is ready.
	if got := s.property(t, "flatd.service", "ActiveState"); got != "active" && got != "activating" {
		t.Errorf("flatd.service is %s after its socket was used", got)
	}
	s.run(t, "systemctl", "start", "flatd.service") // ends when it is
}

// clsact is what kernels before 6.6 have. The sandbox must let it through too.
func (s *service) clsact(t *testing.T) {
	const dropIn = "/etc/flatd/flatd.toml.d/60-clsact.toml"
	s.write(t, dropIn, "attach = \"clsact\"\n")
	s.run(t, "systemctl", "restart", "flatd")
	if got := s.run(t, "tc", "filter", "show", "dev", "flat0", "egress"); !strings.Contains(got, "flatd_egress") {
		t.Errorf("no filter of flatd's on flat0:\n%s", got)
	}
	s.wantPrograms(t, 1)
	s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", s.wantRefused(t, s.self, s.peer)))
	s.run(t, "rm", dropIn)
	s.run(t, "systemctl", "restart", "flatd")
	s.wantPrograms(t, 1)
}

func (s *service) metrics(t *testing.T) {
	address := readUnit(t, "flatd-metrics.socket")["Socket.ListenStream"][0]
	s.run(t, "systemctl", "enable", "flatd-metrics.socket")
	s.run(t, "systemctl", "restart", "flatd.service")
	if got := s.run(t, "curl", "-fsS", "http://"+address+"/metrics"); !strings.Contains(got, "# TYPE flatd_") {
		t.Errorf("http://%s/metrics has no metrics of flatd:\n%s", address, got)
	}
	if out, err := s.try(t, "curl", "-fsS", "http://"+address+"/v1/events"); err == nil {
		t.Errorf("events can be read over TCP:\n%s", out)
	}
}

func (s *service) startBad(t *testing.T) {
	const dropIn = "/etc/flatd/flatd.toml.d/60-bad.toml"
	s.write(t, dropIn, "interfaces = 7\n")
	if out, err := s.try(t, "systemctl", "restart", "flatd"); err == nil {
		t.Errorf("flatd starts with a bad file: %s", out)
	}
	if got := s.property(t, "flatd", "ExecMainStatus"); got != "78" {
		t.Errorf("flatd exits with %s, want 78", got)
	}
	if got := s.property(t, "flatd", "SubState"); got != "failed" {
		t.Errorf("flatd.service is %s, want failed", got)
	}
	s.run(t, "rm", dropIn)
	s.run(t, "systemctl", "reset-failed", "flatd")
	s.run(t, "systemctl", "start", "flatd.socket", "flatd")
}

func (s *service) detach(t *testing.T) {
	if out, err := s.try(t, "flatctl", "detach"); err == nil {
		t.Errorf("flatctl detach takes the programs away from a running daemon: %s", out)
	}
	s.run(t, "systemctl", "disable", "--now", "flatd.service", "flatd.socket", "flatd-metrics.socket")
	s.wantPrograms(t, 1)
	s.run(t, "flatctl", "detach")
	s.wantPrograms(t, 0)
	if left := s.run(t, "find", pins, "-mindepth", "1"); left != "" {
		t.Errorf("left after the detach:\n%s", left)
	}
	if out, err := s.try(t, "ls", "/run/flatd/control.sock"); err == nil {
		t.Errorf("the control socket is still there: %s", out)
	}
	s.run(t, "systemctl", "enable", "--now", "flatd")
	s.wantPrograms(t, 1)
}

// TestInstallIsUndone: what make install puts there make uninstall removes,
// but the configuration.
func TestInstallIsUndone(t *testing.T) {
	built, root := t.TempDir(), t.TempDir()
	for _, name := range []string{"flatd", "flatctl"} {
		if err := os.WriteFile(filepath.Join(built, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	testbed.Run(t, "make", "-C", "..", "install", "BIN="+built, "DESTDIR="+root, "PREFIX=/opt/flatd")
	unit, err := os.ReadFile(filepath.Join(root, "opt/flatd/lib/systemd/system/flatd.service"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "\nExecStart=/opt/flatd/bin/flatd\n") {
		t.Errorf("the unit does not start what was installed:\n%s", unit)
	}
	testbed.Run(t, "make", "-C", "..", "uninstall", "DESTDIR="+root, "PREFIX=/opt/flatd")
	var left []string
	err = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			left = append(left, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/etc/flatd/flatd.toml"}; !slices.Equal(left, want) {
		t.Errorf("left after make uninstall: %v, want %v", left, want)
	}
}
