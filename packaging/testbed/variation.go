package testbed

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Edit changes a source file of the project for one build.
type Edit struct{ File, Old, New string }

// BuildVaried builds a command as another release would have it, with some of
// the sources edited, and returns the binary's path. The tree stays as it is.
func BuildVaried(t testing.TB, name string, edits ...Edit) string {
	t.Helper()
	dir := t.TempDir()
	texts := make(map[string]string)
	for _, e := range edits {
		path := filepath.Join(Tree(t), e.File)
		if texts[path] == "" {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = string(text)
		}
		if strings.Count(texts[path], e.Old) != 1 {
			t.Fatalf("%s has %q %d times, want once", e.File, e.Old, strings.Count(texts[path], e.Old))
		}
		texts[path] = strings.Replace(texts[path], e.Old, e.New, 1)
	}
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for path, text := range texts {
		varied := filepath.Join(dir, strings.ReplaceAll(path, "/", "-"))
		if err := os.WriteFile(varied, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[path] = varied
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	listFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(listFile, list, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, name)
	flags, cgo := raced()
	if out, err := compile(Tree(t), binary, name, cgo, append(flags, "-overlay", listFile)...); err != nil {
		t.Fatalf("build %s with %+v: %v\n%s", name, edits, err, out)
	}
	return binary
}
