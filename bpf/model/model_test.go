// Package model_test has spin check the models of the kernel half, which
// safeguards.pml describes.
package model_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flatd/flatd/packaging/testbed"
)

// codeNamesSafeguards: the code has to name each safeguard where it is.
const codeNamesSafeguards = true

// safeguard is a line of the list in safeguards.pml.
type safeguard struct {
	name, model, code string
}

var (
	listed   = regexp.MustCompile(`(?m)^ \*   ([A-Z_0-9]+) +(table|ring|takeover) +(C|Go) +\S.*; else: \S.*$`)
	switched = regexp.MustCompile(`\bNO_([A-Z_0-9]+)\b`)
	named    = regexp.MustCompile(`\bmodel: ([A-Z_0-9]+(?:, [A-Z_0-9]+)*)`)
)

func safeguards(t *testing.T) (list []safeguard) {
	t.Helper()
	for _, m := range listed.FindAllStringSubmatch(read(t, "safeguards.pml"), -1) {
		list = append(list, safeguard{name: m[1], model: m[2], code: m[3]})
	}
	if len(list) == 0 {
		t.Fatal("safeguards.pml lists none")
	}
	return list
}

func TestModelsHoldWithAllSafeguards(t *testing.T) {
	for name, run := range map[string]struct {
		model   string
		defined []string
	}{
		"table":          {model: "table"},
		"table, flat510": {model: "table", defined: []string{"FLAT510"}},
		"ring":           {model: "ring"},
		"takeover":       {model: "takeover"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := build(t, run.model, []string{"-O1"}, run.defined...)
			out := v.run(t, "./pan", "-m100000")
			if !strings.Contains(out, "errors: 0\n") || strings.Contains(out, "Search not completed") {
				t.Fatalf("%s\n%s", out, v.trail(t))
			}
			t.Log(line(out, "states, stored"))
		})
	}
}

func TestEachSafeguardIsNeeded(t *testing.T) {
	for _, s := range safeguards(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			// Backwards, which meets the errors of these models sooner.
			v := build(t, s.model, []string{"-O0", "-DREVERSE", "-DT_REVERSE"}, "NO_"+s.name)
			out := v.run(t, "./pan", "-m100000", "-w20")
			if !strings.Contains(out, "errors: 1\n") {
				t.Fatalf("no error without it:\n%s", out)
			}
			t.Log(line(out, "pan:1:"))
		})
	}
}

func TestEachSwitchIsListed(t *testing.T) {
	var list, switches []string
	for _, s := range safeguards(t) {
		list = append(list, s.model+" "+s.name)
	}
	for _, model := range []string{"table", "ring", "takeover"} {
		for _, m := range switched.FindAllStringSubmatch(read(t, model+".pml"), -1) {
			switches = append(switches, model+" "+m[1])
		}
	}
	slices.Sort(list)
	slices.Sort(switches)
	if switches = slices.Compact(switches); !slices.Equal(list, switches) {
		t.Errorf("listed are\n%v\nbut the models can do without\n%v", list, switches)
	}
}

func TestTheCodeNamesItsSafeguards(t *testing.T) {
	names := map[string]map[string]bool{"C": inCode(t, ".c", ".h"), "Go": inCode(t, ".go")}
	known := map[string]bool{}
	for _, s := range safeguards(t) {
		known[s.name] = true
		if codeNamesSafeguards && !names[s.code][s.name] {
			t.Errorf("no %s file has \"model: %s\"", s.code, s.name)
		}
	}
	for language := range names {
		for name := range names[language] {
			if !known[name] {
				t.Errorf("a %s file has \"model: %s\", which safeguards.pml does not list", language, name)
			}
		}
	}
}

// inCode is which safeguards the tree's files of a language name.
func inCode(t *testing.T, extensions ...string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(testbed.Tree(t), func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case entry.IsDir() || !slices.Contains(extensions, filepath.Ext(path)) || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		for _, m := range named.FindAllStringSubmatch(read(t, path), -1) {
			for name := range strings.SplitSeq(m[1], ", ") {
				found[name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// verifier is what spin and gcc make of a model: ./pan, which looks at all that can
// happen, up to the first error.
type verifier struct {
	dir     string
	model   string
	defines []string
}

func build(t *testing.T, model string, flags []string, defined ...string) verifier {
	t.Helper()
	testbed.Tool(t, "spin")
	testbed.Tool(t, "gcc")
	v := verifier{dir: t.TempDir(), model: model + ".pml"}
	for _, name := range []string{v.model, "safeguards.pml"} {
		if err := os.WriteFile(filepath.Join(v.dir, name), []byte(read(t, name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range defined {
		v.defines = append(v.defines, "-D"+name)
	}
	v.run(t, "spin", append(slices.Clone(v.defines), "-a", v.model)...)
	v.run(t, "gcc", append(flags, "-w", "-DSAFETY", "-o", "pan", "pan.c")...)
	return v
}

// trail is what led to the error.
func (v verifier) trail(t *testing.T) string {
	t.Helper()
	return v.run(t, "spin", append(slices.Clone(v.defines), "-t", "-p", "-g", v.model)...)
}

func (v verifier) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	command := exec.Command(name, args...)
	command.Dir = v.dir
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// line is the first line of a text that has this in it.
func line(text, with string) string {
	for l := range strings.Lines(text) {
		if strings.Contains(l, with) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
