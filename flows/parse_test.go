package flows

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// What ParseJSON reads AppendJSON writes again, byte for byte.
func TestParseJSONIsTheInverse(t *testing.T) {
	for _, s := range samples() {
		text := testHost.AppendJSON(nil, &s.event)
		e := Event{Kind: KindUDP, Facts: Facts{Slow: true}, Owner: OwnerOf("/left/over")}
		host, err := ParseJSON(text, &e)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if host != testHost {
			t.Errorf("%s: of host %+v", s.name, host)
		}
		if again := host.AppendJSON(nil, &e); !bytes.Equal(again, text) {
			t.Errorf("%s:\nread  %s\nwrote %s", s.name, text, again)
		}
		wantForms(t, s.name, &s.event, &e)
	}
}

// wantForms wants the forms for people to be those of the original.
func wantForms(t *testing.T, name string, original, parsed *Event) {
	t.Helper()
	want, got := testHost.AppendLine(nil, original, true), testHost.AppendLine(nil, parsed, true)
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the line is %q, was %q", name, got, want)
	}
}

// The files that others parse are as good a source.
func TestParseJSONOfTheGoldenFile(t *testing.T) {
	text, err := os.ReadFile("testdata/events.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var e Event
		if _, err := ParseJSON(line, &e); err != nil {
			t.Errorf("%v\n%s", err, line)
		}
	}
}

func TestParseJSONRefuses(t *testing.T) {
	event := tcpSample()
	text := string(testHost.AppendJSON(nil, &event))
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"nothing":             {"", ErrNotEvent},
		"not JSON":            {"established", ErrNotEvent},
		"half":                {text[:len(text)/2], ErrNotEvent},
		"an array":            {"[" + text + "]", ErrNotEvent},
		"another's":           {`{"event":{"dataset":"nginx.access"},"flatd":{"schema":1}}`, ErrNotEvent},
		"a later schema":      {strings.Replace(text, `"schema":1`, `"schema":2`, 1), ErrSchema},
		"no side":             {strings.Replace(text, `"side":"client",`, "", 1), ErrNotEvent},
		"an unknown result":   {strings.Replace(text, "established", "perhaps", 1), ErrNotEvent},
		"a port out of range": {strings.Replace(text, ":443}", ":70000}", 1), ErrNotEvent},
		"a hostile action":    {strings.Replace(text, "tcp-handshake", "\\u001b[2J", 1), ErrNotEvent},
		"no destination":      {strings.Replace(text, `"destination":{"ip":"198.51.100.20","port":443},`, "", 1), ErrNotEvent},
	} {
		e := event
		if _, err := ParseJSON([]byte(c.text), &e); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
		if e != (Event{}) {
			t.Errorf("%s: %+v is left", name, e)
		}
	}
}

// A field of a later version is no obstacle.
func TestParseJSONUnknownField(t *testing.T) {
	event := tcpSample()
	text := testHost.AppendJSON(nil, &event)
	more := bytes.Replace(text, []byte(`"flatd":{`), []byte(`"flatd":{"weather":{"sky":"blue"},`), 1)
	var e Event
	host, err := ParseJSON(more, &e)
	if again := host.AppendJSON(nil, &e); err != nil || !bytes.Equal(again, text) {
		t.Errorf("%v: %s", err, again)
	}
}

// The zone of an address is not shown: it can be any text.
func TestParseJSONZone(t *testing.T) {
	var e Event
	host, err := ParseJSON([]byte(hostileZone), &e)
	if err != nil {
		t.Fatal(err)
	}
	checkPrintable(t, AppendText(nil, &e))
	checkPrintable(t, host.AppendLine(nil, &e, false))
	for _, end := range []netip.AddrPort{e.Source, e.Destination, e.NATSource} {
		if end.Addr().Zone() != "" {
			t.Errorf("%q has a zone", end)
		}
	}
}

const hostileZone = `{"event":{"dataset":"flatd.icmp"},"source":{"ip":"fe80::1%\u001b[2J","nat":{"ip":"fe80::3%\u001b[2J"}},` +
	`"destination":{"ip":"fe80::2%\n"},"flatd":{"schema":1,"side":"client","result":"timeout"}}`

// FuzzParseJSON: whatever a server hands on, reading it is settled at once: what
// has been read and written is read again as the same, and may be shown.
func FuzzParseJSON(f *testing.F) {
	for _, s := range samples() {
		f.Add(testHost.AppendJSON(nil, &s.event))
	}
	f.Add([]byte(`{"event":{"dataset":"flatd.summary","id":"x-m"},"flatd":{"schema":1,"summary":{"max":-1}}}`))
	f.Add([]byte(`{"event":{"dataset":"flatd.status","action":"sto\u007f"},"flatd":{"schema":1}}`))
	f.Add([]byte(`{"event":{"dataset":"flatd.udp"},"source":{"ip":"::1"},"destination":{"ip":"::2"},"service":{"name":"\u009b.scope"},` +
		`"flatd":{"schema":1,"side":"client","result":"timeout"}}`))
	f.Add([]byte(hostileZone))
	f.Fuzz(func(t *testing.T, text []byte) {
		var e, again Event
		host, err := ParseJSON(text, &e)
		if err != nil {
			return
		}
		checkPrintable(t, AppendText(nil, &e))
		checkPrintable(t, host.AppendLine(nil, &e, false))
		once := host.AppendJSON(nil, &e)
		checkPrintable(t, once)
		if host, err = ParseJSON(once, &again); err != nil {
			t.Fatalf("%v\n%s", err, once)
		}
		if twice := host.AppendJSON(nil, &again); !bytes.Equal(once, twice) {
			t.Errorf("once  %s\ntwice %s", once, twice)
		}
	})
}
