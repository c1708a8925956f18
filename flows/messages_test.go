package flows

import (
	"regexp"
	"testing"
)

func TestMessages(t *testing.T) {
	id := regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`) // RFC 9562, 5.4
	taken := map[string]bool{}
	for _, m := range Messages {
		if !id.MatchString(m.ID) {
			t.Errorf("%s: %s is not a version 4 UUID", m.Name, m.ID)
		}
		if m.Name == "" || m.Title == "" || taken[m.ID] || taken[m.Name] {
			t.Errorf("%+v is incomplete or not unique", m)
		}
		taken[m.ID], taken[m.Name] = true, true
	}
}

func TestMessageID(t *testing.T) {
	slow := func(e *Event) { e.Slow = true }
	tests := []struct {
		name  string
		event Event
	}{
		{"success", tcpSample()},
		{"success", icmpSample()},
		{"success", dnsSample()},
		{"slow", with(tcpSample(), slow)},
		{"timeout", timeoutSample()},
		{"refused", with(tcpSample(), func(e *Event) { e.Result = ResultRefused })},
		{"refused", with(tcpSample(), func(e *Event) { e.Result, e.Slow = ResultRefused, true })},
		{"summary", summarySample()},
		{"dns-failure", with(dnsSample(), func(e *Event) { e.DNS.RCode = 3 })},
	}
	for _, action := range []Action{ActionStart, ActionStop, ActionAttach, ActionDetach, ActionLoss, ActionConfig, ActionPreceded} {
		tests = append(tests, struct {
			name  string
			event Event
		}{string(action), statusSample(action, "", 0)})
	}
	names := map[string]string{}
	for _, m := range Messages {
		names[m.ID] = m.Name
	}
	for _, test := range tests {
		if got := names[test.event.MessageID()]; got != test.name {
			t.Errorf("got %q, want %q", got, test.name)
		}
	}
}
