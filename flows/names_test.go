package flows

import (
	"slices"
	"testing"
)

func TestNames(t *testing.T) {
	type names struct{ kind, dataset, action, transport, application string }
	tests := map[Kind]names{
		KindTCP:    {"tcp", "flatd.tcp", "tcp-handshake", "tcp", ""},
		KindDNS:    {"dns", "flatd.dns", "dns-query", "udp", "dns"},
		KindUDP:    {"udp", "flatd.udp", "udp-exchange", "udp", ""},
		KindICMP:   {"icmp", "flatd.icmp", "icmp-echo", "icmp", ""},
		KindStatus: {"status", "flatd.status", "loss", "", ""},
	}
	sum := summarySample()
	if got := []string{sum.Kind.String(), sum.Dataset(), sum.action()}; !slices.Equal(got, []string{"summary", "flatd.summary", "exchanges"}) {
		t.Errorf("a summary: got %q", got)
	}
	for kind, want := range tests {
		e := icmpSample()
		e.Kind, e.Status = kind, &Status{Action: ActionLoss}
		if got := (names{kind.String(), e.Dataset(), e.action(), e.transport(), e.application()}); got != want {
			t.Errorf("%d: got %q, want %q", kind, got, want)
		}
	}
	if SideClient.String() != "client" || SideServer.String() != "server" {
		t.Errorf("sides are %s and %s", SideClient, SideServer)
	}
}

func TestResultNameAndOutcome(t *testing.T) {
	tests := []struct {
		kind          Kind
		result        Result
		rcode         uint16
		name, outcome string
		priority      int
	}{
		{KindTCP, ResultEstablished, 0, "established", "success", PriorityInfo},
		{KindTCP, ResultRefused, 0, "refused", "failure", PriorityNotice},
		{KindTCP, ResultTimeout, 0, "timeout", "failure", PriorityWarning},
		{KindUDP, ResultAnswered, 0, "answered", "success", PriorityInfo},
		{KindICMP, ResultAnswered, 3, "answered", "success", PriorityInfo},
		{KindDNS, ResultTimeout, 0, "timeout", "failure", PriorityWarning},
		{KindDNS, ResultAnswered, 0, "noerror", "success", PriorityInfo},
		{KindDNS, ResultAnswered, 1, "formerr", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 2, "servfail", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 3, "nxdomain", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 4, "notimp", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 5, "refused", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 11, "rcode11", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 16, "badvers", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 23, "badcookie", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 24, "rcode24", "failure", PriorityNotice},
		{KindDNS, ResultAnswered, 4095, "rcode4095", "failure", PriorityNotice},
	}
	for _, test := range tests {
		e := Event{Kind: test.kind, Result: test.result, DNS: DNS{RCode: test.rcode}}
		if e.ResultName() != test.name || e.outcome() != test.outcome || e.Priority() != test.priority {
			t.Errorf("%+v: got %s, %s, %d", test, e.ResultName(), e.outcome(), e.Priority())
		}
		e.Slow = true
		if e.Priority() != PriorityWarning {
			t.Errorf("%+v, slow: priority %d", test, e.Priority())
		}
	}
}

func TestStatusPriority(t *testing.T) {
	for _, action := range []Action{ActionStart, ActionStop, ActionAttach, ActionDetach, ActionConfig} {
		if e := statusSample(action, "", 0); e.Priority() != PriorityInfo {
			t.Errorf("%s: %d", action, e.Priority())
		}
	}
	if e := statusSample(ActionLoss, "", 1); e.Priority() != PriorityWarning {
		t.Errorf("loss: %d", e.Priority())
	}
}

// ECS 8.17 says which types go with which category.
func TestTypesFitCategory(t *testing.T) {
	allowed := map[string][]string{
		"network":       {"access", "allowed", "connection", "denied", "end", "info", "protocol", "start"},
		"process":       {"access", "change", "end", "info", "start"},
		"configuration": {"access", "change", "creation", "deletion", "info"},
	}
	for _, s := range samples() {
		for _, category := range s.event.categories() {
			for _, of := range s.event.types() {
				if !slices.Contains(allowed[category], of) {
					t.Errorf("%s: type %s in category %s", s.name, of, category)
				}
			}
		}
	}
}
