package flows

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files and the JSON Schema")

// checkGolden compares with a file that users parse the like of: to change it
// is to change the interface.
func checkGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; see -update. Now it is:\n%s", path, got)
	}
}

func TestGolden(t *testing.T) {
	forms := []struct {
		path   string
		append func(dst []byte, e *Event) []byte
	}{
		{"testdata/events.jsonl", testHost.AppendJSON},
		{"testdata/journal.golden", testHost.AppendJournal},
		{"testdata/text.golden", AppendText},
		{"testdata/lines.golden", func(dst []byte, e *Event) []byte { return testHost.AppendLine(dst, e, false) }},
		{"testdata/lines-color.golden", func(dst []byte, e *Event) []byte { return testHost.AppendLine(dst, e, true) }},
	}
	for _, form := range forms {
		t.Run(form.path, func(t *testing.T) {
			var got []byte
			for _, s := range samples() {
				got = append(form.append(got, &s.event), '\n')
			}
			checkGolden(t, form.path, got)
		})
	}
}
