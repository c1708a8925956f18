package systemd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
)

// TestSocketAlone enables nothing but the socket: who asks first starts flatd and
// is answered, and who asks while it restarts waits and is answered too.
func TestSocketAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("boots systemd")
	}
	s := &service{bed: boot(t), t: t}
	s.install(t)
	s.self, s.peer = s.addPeer(t)
	s.step(t, "starts flatd", s.socketStarts)
	s.step(t, "keeps who asks during restarts", s.socketWaits)
}

func (s *service) socketStarts(t *testing.T) {
	s.run(t, "systemctl", "disable", "--now", "flatd.service") // which a package has enabled
	s.run(t, "systemctl", "enable", "--now", "flatd.socket")
	if got := s.property(t, "flatd.service", "UnitFileState"); got != "disabled" {
		t.Errorf("flatd.service is %s", got)
	}
	if got := s.property(t, "flatd.service", "ActiveState"); got != "inactive" {
		t.Fatalf("flatd.service is %s before anybody has asked", got)
	}
	s.wantStatus(t, s.curl(t, status))
	if got := s.property(t, "flatd.service", "ActiveState"); got != "active" && got != "activating" {
		t.Errorf("flatd.service is %s after somebody has asked", got)
	}
	s.run(t, "systemctl", "start", "flatd") // waits until it is ready
	s.wantPrograms(t, 1)
}

// wantStatus wants an answer to be whole.
func (s *service) wantStatus(t *testing.T, text string) {
	t.Helper()
	var answer struct {
		Host       string
		Interfaces []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || answer.Host == "" {
		t.Errorf("the answer is %s (%v)", text, err)
	}
}

// socketWaits has one client after another ask, each over a connection of its own,
// from before the first restart to after the last. None is turned away.
func (s *service) socketWaits(t *testing.T) {
	enough := make(chan struct{})
	answers := make(chan string)
	go func() {
		defer close(answers)
		for {
			select {
			case <-enough:
				return
			case answers <- s.ask(status):
			}
		}
	}()
	// Every answer is looked at while the restarts go on.
	daemons := make(map[string]int) // answers by the start of the daemon that gave them
	looked, first := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		for text := range answers {
			var answer struct{ Since string }
			if err := json.Unmarshal([]byte(text), &answer); err != nil || answer.Since == "" {
				t.Errorf("asked and got %s", text)
			}
			if daemons[answer.Since]++; len(daemons) == 1 && daemons[answer.Since] == 1 {
				close(first)
			}
		}
	}()
	<-first
	const restarts = 5
	for range restarts {
		s.run(t, "systemctl", "restart", "flatd")
	}
	close(enough)
	<-looked
	if len(daemons) < 2 || len(daemons) > restarts+1 {
		t.Errorf("the answers came from these daemons, for %d restarts: %v", restarts, daemons)
	}
}

// ask asks over the control socket, and returns the answer or what went wrong.
func (s *service) ask(url string) string {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join("/proc", s.pid, "root/run/flatd/control.sock"))
		},
	}}
	response, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Sprintf("%s, and then: %v", text, err)
	}
	return string(text)
}
