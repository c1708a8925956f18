package flows

import (
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
)

// FuzzForms writes events with hostile strings in every place that has one, in
// every form: those that people read hold no control character, JSON follows
// the schema, and in the journal no value passes for a field.
func FuzzForms(f *testing.F) {
	schema := compileSchema(f)
	f.Add("eth0", "web1", "flatd started", "/system.slice/nginx.service", []byte("\x07example\x03com\x00\x00\x01"), uint8(0))
	f.Add("\x1b[2J", "\xff\x00", "a\nMESSAGE=b\x1b]0;title\x07", "/a\n_UID=0\n.service/b", []byte("\x04\n\x1b\x9b\x00\x00\xff\xff"), uint8(0x47))
	f.Add("\u202e\u200b\u2028", "\ud7ff\U0010ffff", "\r\n\n", "/\x85.slice/user@0.service/\x1b.service", []byte{0, 0, 1}, uint8(0x13))
	f.Fuzz(func(t *testing.T, iface, hostname, message, cgroup string, section []byte, choice uint8) {
		if hostname == "" {
			return // a host has a name
		}
		host := &Host{Name: hostname, BootID: testHost.BootID}
		for _, e := range hostile(iface, message, cgroup, section, choice) {
			text := host.AppendJSON(nil, e)
			checkPrintable(t, text)
			if err := schema.Validate(parseJSON(t, text)); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
			checkJournal(t, host.AppendJournal(nil, e))
			checkOwnerFields(t, AppendObjectUnit(nil, e))
			checkPrintable(t, AppendText(nil, e))
			checkPrintable(t, host.AppendLine(nil, e, false))
			checkColored(t, host.AppendLine(nil, e, true))
		}
	})
}

// hostile is an exchange and a status with these strings.
func hostile(iface, message, cgroup string, section []byte, choice uint8) []*Event {
	kinds := ExchangeKinds()
	exchange := &Event{
		Kind: kinds[int(choice)%len(kinds)], Side: SideClient + Side(choice>>2&1), Result: ResultEstablished + Result(choice>>4%5),
		Time: testTime, Duration: time.Duration(choice) * time.Millisecond, Facts: Facts{Slow: choice&8 != 0},
		Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("192.0.2.2:2"),
		Interface: Interface{Index: 1, Name: iface}, Owner: OwnerOf(cgroup),
	}
	exchange.Late, exchange.DNS.HashNames = choice&8 != 0, choice&0x80 != 0
	if exchange.Late {
		exchange.NATSource = netip.MustParseAddrPort("[2001:db8::1]:3")
	}
	if exchange.Kind == KindDNS {
		exchange.DNS.SetQuestion(section)
	}
	actions := []Action{ActionStart, ActionStop, ActionAttach, ActionDetach, ActionLoss, ActionConfig, ActionPreceded}
	status := &Event{
		Kind: KindStatus, Time: testTime, Interface: exchange.Interface,
		Status: &Status{Action: actions[int(choice)%len(actions)], Message: message},
	}
	return []*Event{exchange, status}
}

// checkOwnerFields wants whole lines of the three fields and nothing else.
func checkOwnerFields(t *testing.T, payload []byte) {
	t.Helper()
	fields, err := parseJournal(payload)
	if err != nil {
		t.Fatalf("%v in %q", err, payload)
	}
	seen := make(map[string]bool)
	for _, f := range fields {
		switch f.name {
		case "OBJECT_SYSTEMD_UNIT", "OBJECT_SYSTEMD_USER_UNIT", "OBJECT_SYSTEMD_OWNER_UID":
		default:
			t.Errorf("unexpected field %q in %q", f.name, payload)
		}
		if seen[f.name] || strings.ContainsFunc(f.value, unicode.IsControl) {
			t.Errorf("field %q=%q", f.name, f.value)
		}
		seen[f.name] = true
	}
}

// checkColored wants the one color that was asked for and no other sequence.
func checkColored(t *testing.T, line []byte) {
	t.Helper()
	text := string(line)
	for _, sequence := range []string{colorRed, colorYellow, colorGreen, colorReset} {
		text = strings.Replace(text, sequence, "", 1)
	}
	checkPrintable(t, []byte(text))
}
