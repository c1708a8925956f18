package systemd

import (
	"slices"
	"strings"
	"testing"
)

// TestEachCapabilityIsNeeded starts the shipped unit with one capability less than
// it has, for each of them: there is none too many, and the error says which is
// missing.
func TestEachCapabilityIsNeeded(t *testing.T) {
	if testing.Short() {
		t.Skip("boots systemd")
	}
	all := strings.Fields(strings.Join(readUnit(t, "flatd.service")["Service.CapabilityBoundingSet"], " "))
	if want := []string{"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}; !slices.Equal(slices.Sorted(slices.Values(all)), want) {
		t.Fatalf("the unit has %v, and this is about %v", all, want)
	}
	s := &service{bed: boot(t), t: t}
	s.install(t)
	s.self, s.peer = s.addPeer(t)
	s.run(t, "systemctl", "stop", "flatd")
	for i, capability := range all {
		rest := strings.Join(slices.Delete(slices.Clone(all), i, i+1), " ")
		s.step(t, "without "+capability, func(t *testing.T) {
			s.run(t, "flatctl", "detach")
			s.startWithout(t, capability, rest)
			s.wantPrograms(t, 0)
		})
		s.step(t, "with all of them", func(t *testing.T) {
			s.run(t, "systemctl", "start", "flatd")
			s.wantPrograms(t, 1)
			s.stop(t)
		})
		if capability == "CAP_PERFMON" {
			continue // the verifier has let these programs pass, and is not asked again
		}
		s.step(t, "without "+capability+" over programs that are there", func(t *testing.T) {
			s.startWithout(t, capability, rest)
			s.wantPrograms(t, 1)
		})
	}
}

// startWithout wants the start to fail with an error that names what is missing.
func (s *service) startWithout(t *testing.T, capability, rest string) {
	t.Helper()
	const dropIn = "/etc/systemd/system/flatd.service.d/70-capabilities.conf"
	s.write(t, dropIn, "[Service]\nRestart=no\nCapabilityBoundingSet=\nCapabilityBoundingSet="+rest+"\n")
	s.run(t, "systemctl", "daemon-reload")
	defer func() {
		s.run(t, "rm", dropIn)
		s.run(t, "systemctl", "daemon-reload")
		s.try(t, "systemctl", "reset-failed", "flatd")
	}()
	said := s.cursor(t)
	if out, err := s.try(t, "systemctl", "start", "flatd"); err == nil {
		t.Errorf("flatd starts without %s: %s", capability, out)
		s.stop(t)
	}
	log := s.run(t, "journalctl", "--no-pager", "-o", "cat", "-u", "flatd", "--after-cursor="+said)
	if !strings.Contains(log, "without "+capability) {
		t.Errorf("the journal does not name %s:\n%s", capability, log)
	}
}

// cursor is where the journal ends now.
func (s *service) cursor(t *testing.T) string {
	t.Helper()
	s.run(t, "journalctl", "--sync")
	out := s.run(t, "journalctl", "--quiet", "-n", "0", "--show-cursor")
	_, cursor, found := strings.Cut(strings.TrimSpace(out), "-- cursor: ")
	if !found {
		t.Fatalf("no cursor in %q", out)
	}
	return cursor
}
