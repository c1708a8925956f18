package packaging_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flatd/flatd/flows"
)

var update = flag.Bool("update", false, "rewrite the table of fields in README.md")

const readmePath = "../README.md"

func readReadme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReadmeFields: the table between the two comments is the one in flows.
func TestReadmeFields(t *testing.T) {
	readme := readReadme(t)
	between := regexp.MustCompile(`(?s)(<!-- fields[^>]*-->\n)(.*)(<!-- /fields -->)`)
	at := between.FindStringSubmatchIndex(readme)
	if at == nil {
		t.Fatal("README.md has no <!-- fields --> … <!-- /fields -->")
	}
	want := string(flows.MarkdownTable())
	if readme[at[4]:at[5]] == want {
		return
	}
	if !*update {
		t.Fatalf("the table of fields differs from flows.MarkdownTable(); `go test ./packaging -update` writes it anew")
	}
	if err := os.WriteFile(readmePath, []byte(readme[:at[4]]+want+readme[at[5]:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestReadmeKinds: the table of kinds has every kind of exchange.
func TestReadmeKinds(t *testing.T) {
	for _, kind := range flows.ExchangeKindNames() {
		if !strings.Contains(readReadme(t), "\n| "+kind+" | ") {
			t.Errorf("no row for %s", kind)
		}
	}
}

// TestReadmeEvents: what is shown as an event has only fields that there are.
func TestReadmeEvents(t *testing.T) {
	known := make(map[string]bool)
	for _, f := range flows.Fields() {
		known[f.Path] = true
	}
	blocks := regexp.MustCompile("(?ms)^```json\n(.*?)^```$").FindAllStringSubmatch(readReadme(t), -1)
	if len(blocks) == 0 {
		t.Fatal("README.md shows no event")
	}
	for _, block := range blocks {
		var event map[string]any
		if err := json.Unmarshal([]byte(block[1]), &event); err != nil {
			t.Fatalf("%v in\n%s", err, block[1])
		}
		for _, path := range paths("", event) {
			if !known[path] {
				t.Errorf("an event has no field %s", path)
			}
		}
	}
}

// paths lists the fields of a JSON object, such as "source.ip".
func paths(prefix string, object map[string]any) (all []string) {
	for name, value := range object {
		if inner, ok := value.(map[string]any); ok {
			all = append(all, paths(prefix+name+".", inner)...)
		} else {
			all = append(all, prefix+name)
		}
	}
	return all
}

// TestReadmeTargets: what it says to make can be made.
func TestReadmeTargets(t *testing.T) {
	var rules []byte
	for _, name := range []string{"../Makefile", "guests.mk", "install.mk", "package.mk"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, text...)
	}
	mentioned := regexp.MustCompile("(?m)(?:^    |`|&& )make ([a-z-]+)").FindAllStringSubmatch(readReadme(t), -1)
	if len(mentioned) < 4 {
		t.Fatalf("found %d", len(mentioned))
	}
	for _, m := range mentioned {
		if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(rules) {
			t.Errorf("there is no `make %s`", m[1])
		}
	}
}

// TestReadmeFiles: the files of the source that it names are there.
func TestReadmeFiles(t *testing.T) {
	name := regexp.MustCompile("[\\s`(]((?:bpf|flows|outputs|daemon|cmd|systemd|packaging)/[\\w./*-]*)")
	mentioned := name.FindAllStringSubmatch(readReadme(t), -1)
	if len(mentioned) < 10 {
		t.Fatalf("found %d", len(mentioned))
	}
	for _, m := range mentioned {
		if found, err := filepath.Glob(filepath.Join("..", m[1])); err != nil || len(found) == 0 {
			t.Errorf("there is no %s", m[1])
		}
	}
}

// TestReadmeCommands: flatctl has the subcommands and flags that it is shown with.
func TestReadmeCommands(t *testing.T) {
	flatctl := filepath.Join(t.TempDir(), "flatctl")
	if out, err := exec.Command("go", "build", "-o", flatctl, "../cmd/flatctl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	mentioned := regexp.MustCompile("(?m)(?:^    |^# |`|&& )flatctl ([a-z][^`|\n]*)").FindAllStringSubmatch(readReadme(t), -1)
	if len(mentioned) < 8 {
		t.Fatalf("found %d", len(mentioned))
	}
	for _, m := range mentioned {
		checkCommand(t, flatctl, strings.Fields(m[1]))
	}
}

// checkCommand walks down the subcommands, then looks for the flags that follow.
func checkCommand(t *testing.T, flatctl string, words []string) {
	t.Helper()
	var path []string
	help := helpOf(t, flatctl, path)
	for _, word := range words {
		option := strings.HasPrefix(word, "-")
		listed := regexp.MustCompile(`(?m)^  (?:-\w, |    )?` + regexp.QuoteMeta(word) + `[ ,]`)
		if !option && !bytes.Contains(help, []byte("Available Commands:")) {
			continue // the value of a flag
		}
		if !listed.Match(help) {
			t.Errorf("`flatctl %s`: no %s there", strings.Join(words, " "), word)
			return
		}
		if !option {
			path = append(path, word)
			help = helpOf(t, flatctl, path)
		}
	}
}

func helpOf(t *testing.T, flatctl string, path []string) []byte {
	t.Helper()
	out, err := exec.Command(flatctl, append(slices.Clone(path), "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("flatctl %s --help: %v\n%s", strings.Join(path, " "), err, out)
	}
	return out
}
