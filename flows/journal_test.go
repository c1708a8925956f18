package flows

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

type journalField struct{ name, value string }

// parseJournal reads a payload of systemd's native protocol, as its
// documentation (JOURNAL_NATIVE_PROTOCOL) describes it.
func parseJournal(payload []byte) ([]journalField, error) {
	var fields []journalField
	for len(payload) > 0 {
		end := bytes.IndexByte(payload, '\n')
		if end < 0 {
			return nil, fmt.Errorf("no newline after %q", payload)
		}
		name, value, text := bytes.Cut(payload[:end], []byte("="))
		payload = payload[end+1:]
		if !text {
			if len(payload) < 8 {
				return nil, fmt.Errorf("%s: no length", name)
			}
			size := binary.LittleEndian.Uint64(payload)
			payload = payload[8:]
			if uint64(len(payload)) < size+1 || payload[size] != '\n' {
				return nil, fmt.Errorf("%s: wrong length %d", name, size)
			}
			value, payload = payload[:size], payload[size+1:]
		}
		fields = append(fields, journalField{string(name), string(value)})
	}
	return fields, nil
}

// checkJournal parses a payload and fails if a field is none of ours.
func checkJournal(t testing.TB, payload []byte) []journalField {
	t.Helper()
	got, err := parseJournal(payload)
	if err != nil {
		t.Fatalf("%v in %q", err, payload)
	}
	known := map[string]bool{"MESSAGE": true, "PRIORITY": true, "SYSLOG_IDENTIFIER": true, "MESSAGE_ID": true}
	lists := map[string]bool{}
	for _, f := range Fields() {
		known[f.Journal()] = true
		lists[f.Journal()] = f.Type == TypeList
	}
	count := map[string]int{}
	for _, f := range got {
		count[f.name]++
		if !known[f.name] || count[f.name] > 1 && !lists[f.name] {
			t.Errorf("unexpected field %q=%q", f.name, f.value)
		}
	}
	return got
}

// The journal says what JSON says, field by field.
func TestJournalEqualsJSON(t *testing.T) {
	for _, s := range samples() {
		var got, want []journalField
		for _, f := range checkJournal(t, testHost.AppendJournal(nil, &s.event))[1:] {
			switch f.name {
			case "PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE_ID":
			default:
				got = append(got, f)
			}
		}
		doc := parseJSON(t, testHost.AppendJSON(nil, &s.event))
		for _, f := range Fields() {
			if f.Path == "message" {
				continue
			}
			for _, value := range lookup(doc, f.Path) {
				want = append(want, journalField{f.Journal(), fmt.Sprint(value)})
			}
		}
		for i := range got {
			// JSON has no invalid UTF-8.
			got[i].value = string([]rune(got[i].value))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s:\njournal %q\njson    %q", s.name, got, want)
		}
	}
}

// lookup returns the values at a path: none, one, or those of an array.
func lookup(doc map[string]any, path string) []any {
	var at any = doc
	for name := range strings.SplitSeq(path, ".") {
		object, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = object[name]
	}
	switch v := at.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{at}
}

func TestJournalHead(t *testing.T) {
	for _, s := range samples() {
		got := checkJournal(t, testHost.AppendJournal(nil, &s.event))
		want := []journalField{
			{"MESSAGE", string(AppendText(nil, &s.event))},
			{"PRIORITY", fmt.Sprint(s.event.Priority())},
			{"SYSLOG_IDENTIFIER", "flatd"},
			{"MESSAGE_ID", s.event.MessageID()},
		}
		if fmt.Sprint(got[:4]) != fmt.Sprint(want) {
			t.Errorf("%s: got %q, want %q", s.name, got[:4], want)
		}
	}
}

func TestJournalNewlineInValue(t *testing.T) {
	e := tcpSample()
	e.Interface.Name = "a\nPRIORITY=0\n"
	for _, f := range checkJournal(t, testHost.AppendJournal(nil, &e)) {
		if f.name == "OBSERVER_INTERFACE_NAME" && f.value == e.Interface.Name {
			return
		}
	}
	t.Error("the interface name did not come through")
}

// systemd drops fields whose names break its rules.
func TestJournalNames(t *testing.T) {
	valid := regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
	seen := map[string]bool{}
	for _, f := range Fields() {
		if name := f.Journal(); !valid.MatchString(name) || seen[name] {
			t.Errorf("%s: journal field %q is invalid or taken", f.Path, name)
		}
		seen[f.Journal()] = true
	}
	for path, want := range map[string]string{
		"@timestamp": "TIMESTAMP", "source.ip": "SOURCE_IP", "event.duration": "EVENT_DURATION", "flatd.result": "FLATD_RESULT",
	} {
		for _, f := range Fields() {
			if f.Path == path && f.Journal() != want {
				t.Errorf("%s is %s in the journal", path, f.Journal())
			}
		}
	}
}
