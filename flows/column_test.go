package flows

import (
	"fmt"
	"strings"
	"testing"
)

// TestColumns: what each column says of each kind of event, side by side with
// the fields', may be shown.
func TestColumns(t *testing.T) {
	var got strings.Builder
	for _, s := range samples() {
		fmt.Fprintf(&got, "%s\n", s.name)
		for _, c := range Columns() {
			text := c.Append(nil, &testHost, &s.event)
			checkPrintable(t, text)
			fmt.Fprintf(&got, "  %s: %s\n", c.Name, text)
		}
		for _, f := range fields {
			c, ok := ColumnOf(f.Path)
			if !ok {
				t.Fatalf("no column %s", f.Path)
			}
			checkPrintable(t, c.Append(nil, &testHost, &s.event))
		}
	}
	checkGolden(t, "testdata/columns.golden", []byte(got.String()))
}

func TestColumnOf(t *testing.T) {
	e := dnsSample()
	for name, want := range map[string]string{
		"destination": "198.51.100.53:53", "destination.ip": "198.51.100.53", "event.duration": "12345678",
		"event.type": "connection,protocol", "dns.question.name": "example.com", "flatd.limit": "",
	} {
		c, ok := ColumnOf(name)
		if got := string(c.Append(nil, &testHost, &e)); !ok || got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, ok := ColumnOf("colour"); ok {
		t.Error("there is a column of colour")
	}
	for _, name := range DefaultColumns() {
		if _, ok := ColumnOf(name); !ok {
			t.Errorf("no column %s", name)
		}
	}
}
