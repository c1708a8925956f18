package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flatd/flatd/packaging"
)

// In the reference, prose begins with "# ", a key with "#", and an example of
// one with "#     ".
var (
	commentedKey     = regexp.MustCompile(`^#([a-z_]+) = `)
	commentedTable   = regexp.MustCompile(`^#\[([a-z.]+)\]$`)
	commentedExample = regexp.MustCompile(`^#     ([a-z_]+ = .*)$`)
)

// uncomment makes the keys of the reference active.
func uncomment(reference string) string {
	lines := strings.Split(reference, "\n")
	for i, line := range lines {
		if commentedKey.MatchString(line) || commentedTable.MatchString(line) {
			lines[i] = line[1:]
		}
	}
	return strings.Join(lines, "\n")
}

func TestReferenceAsShippedSetsNothing(t *testing.T) {
	for i, line := range strings.Split(packaging.Config, "\n") {
		if line != "" && line[0] != '#' {
			t.Errorf("line %d is active: %s", i+1, line)
		}
	}
	if c := parseConfig(t, packaging.Config); !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("%+v", c)
	}
}

func TestReferenceShowsTheDefaults(t *testing.T) {
	if got := parseConfig(t, uncomment(packaging.Config)); !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("got  %+v\nwant %+v", got, Defaults())
	}
}

// Key by key, so that none is in the reference with another key's default
// beside it: the files above would be equal if a key were missing.
func TestReferenceHasEveryKey(t *testing.T) {
	var got, want []string
	table := ""
	for _, line := range strings.Split(packaging.Config, "\n") {
		if m := commentedTable.FindStringSubmatch(line); m != nil {
			table = m[1] + "."
		}
		if m := commentedKey.FindStringSubmatch(line); m != nil {
			got = append(got, table+m[1])
		}
	}
	for _, k := range newConfigReader().keys {
		want = append(want, k.name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestReferenceExamples(t *testing.T) {
	table, examples := "", 0
	for i, line := range strings.Split(packaging.Config, "\n") {
		if m := commentedTable.FindStringSubmatch(line); m != nil {
			table = m[1] + "."
		}
		if m := commentedExample.FindStringSubmatch(line); m != nil {
			examples++
			if _, err := Parse(File{"example", table + m[1]}); err != nil {
				t.Errorf("line %d: %v", i+1, err)
			}
		}
	}
	if examples < 5 {
		t.Errorf("found %d examples", examples)
	}
}

// The ranges in prose are those in the code: for each key whose messages name
// one, the reference has it above the key.
func TestReferenceStatesRanges(t *testing.T) {
	want := regexp.MustCompile(`want (?:one from )?(\w+ to \w+)`)
	var prose strings.Builder
	paragraphs := make(map[string]string)
	table := ""
	for _, line := range strings.Split(packaging.Config, "\n") {
		if line == "" {
			prose.Reset()
		}
		prose.WriteString(line)
		if m := commentedTable.FindStringSubmatch(line); m != nil {
			table = m[1] + "."
		}
		if m := commentedKey.FindStringSubmatch(line); m != nil {
			paragraphs[table+m[1]] = prose.String()
		}
	}
	ranges := 0
	for _, k := range newConfigReader().keys {
		for _, outside := range []any{int64(-1), "-1s"} {
			err := k.set(outside)
			if err == nil {
				continue
			}
			m := want.FindStringSubmatch(strings.ReplaceAll(err.Error(), "µ", "u"))
			if m == nil {
				continue
			}
			ranges++
			if !strings.Contains(paragraphs[k.name], m[1]) {
				t.Errorf("%s: the reference does not say %q", k.name, m[1])
			}
		}
	}
	if ranges < 10 {
		t.Errorf("found %d ranges", ranges)
	}
}

// The configurations that come with the source are valid.
func TestShippedFiles(t *testing.T) {
	files, err := filepath.Glob("../../packaging/[df]*.toml") // not rpmlint's
	if err != nil || len(files) == 0 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, file := range files {
		if _, err := Load(file); err != nil {
			t.Error(err)
		}
	}
}

// Configurations in the documentation are blocks of TOML.
func TestDocumentedExamples(t *testing.T) {
	block := regexp.MustCompile("(?ms)^```toml\n(.*?)^```$")
	for _, pattern := range []string{"../../*.md", "../../packaging/*.md"} {
		pages, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range block.FindAllStringSubmatch(string(text), -1) {
				if _, err := Parse(File{page, m[1]}); err != nil {
					t.Errorf("%s:\n%s\n%v", page, m[1], err)
				}
			}
		}
	}
}
