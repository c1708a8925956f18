package flows

import (
	"encoding/json"
	"testing"
	"unicode"
	"unicode/utf8"
)

// The example of the event's description, but for the parts that an event has
// not yet got.
func TestJSONShape(t *testing.T) {
	const want = `{"@timestamp":"2026-11-22T13:00:00.123456789Z","ecs":{"version":"8.17"},` +
		`"event":{"id":"6f1c0d2e-107187","kind":"event","category":["network"],"type":["connection","start"],"dataset":"flatd.tcp",` +
		`"action":"tcp-handshake","outcome":"success","duration":1234567,"sequence":107187},` +
		`"network":{"transport":"tcp","type":"ipv4","direction":"egress","community_id":"1:DEWBuasXCvudQRwPRd/nZA0xMsA="},` +
		`"source":{"ip":"192.0.2.10","port":43210},"destination":{"ip":"198.51.100.20","port":443},` +
		`"observer":{"hostname":"web1","interface":{"name":"eth0","id":2},"vlan":{"id":7}},` +
		`"flatd":{"schema":1,"result":"established","side":"client","rtt":1234567,"retransmits":0,"ambiguous":false,"ttl":57,` +
		`"flow_hash":"b34d2359f30fd5e0","replayed":false}}`
	e := tcpSample()
	if got := string(testHost.AppendJSON(nil, &e)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// The time is UTC and has all nine digits, whatever the event's own zone.
func TestJSONTime(t *testing.T) {
	e := tcpSample()
	e.Time = e.Time.Truncate(1e9).Local()
	doc := parseJSON(t, testHost.AppendJSON(nil, &e))
	if got := doc["@timestamp"]; got != "2026-11-22T13:00:00.000000000Z" {
		t.Errorf("@timestamp = %v", got)
	}
}

func TestEscapeJSON(t *testing.T) {
	for _, s := range []string{"", "plain", `"`, `\`, "a\"b\\c", "\x00\x1f\x7f", "é世", "\u009b", "\u202e", "\U0001f600", "\U000e0001", "\xff", "ab\xc3", "\u2028"} {
		escaped := escapeJSON([]byte("before"+s), len("before"))[len("before"):]
		var got string
		if err := json.Unmarshal([]byte(`"`+string(escaped)+`"`), &got); err != nil {
			t.Errorf("%q: %v in %s", s, err, escaped)
		}
		if want := string([]rune(s)); got != want {
			t.Errorf("%q came back as %q", s, got)
		}
		checkPrintable(t, escaped)
	}
}

// checkPrintable fails for anything that a terminal would act on.
func checkPrintable(t testing.TB, text []byte) {
	t.Helper()
	if !utf8.Valid(text) {
		t.Errorf("not UTF-8: %q", text)
	}
	for _, r := range string(text) {
		if !unicode.IsPrint(r) {
			t.Errorf("unprintable %U in %q", r, text)
		}
	}
}

func TestOutputPrintable(t *testing.T) {
	for _, s := range samples() {
		checkPrintable(t, testHost.AppendJSON(nil, &s.event))
		checkPrintable(t, AppendText(nil, &s.event))
		checkPrintable(t, testHost.AppendLine(nil, &s.event, false))
	}
}
