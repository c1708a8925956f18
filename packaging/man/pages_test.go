package man

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging"
	"github.com/flatd/flatd/packaging/testbed"
)

var update = flag.Bool("update", false, "rewrite the parts that are made from the code")

// TestFields: flatd-events(7) has every field of an event.
func TestFields(t *testing.T) {
	var exchange, summary string
	for _, f := range flows.Fields() {
		tag := Bold(f.Path) + ", " + Bold(f.Journal()) + " (" + string(f.Type) + ", " + string(f.Presence) + ")"
		text := Prose(f.Doc)
		if f.Values != nil {
			text += Prose("One of `" + strings.Join(f.Values, "`, `") + "`.")
		}
		if strings.HasPrefix(f.Path, "flatd.summary.") {
			summary += Item(tag, text)
		} else {
			exchange += Item(tag, text)
		}
	}
	Keep(t, "flatd-events.7", "fields", exchange, *update)
	Keep(t, "flatd-events.7", "summary fields", summary, *update)
}

// TestKinds: flatd-events(7) has every kind of exchange with its packets, and every dataset.
func TestKinds(t *testing.T) {
	page := read(t, Path("flatd-events.7"))
	for _, kind := range flows.ExchangeKinds() {
		if !strings.Contains(page, "\n"+kind.String()+"|") {
			t.Errorf("no packets of kind %s", kind)
		}
	}
	for _, kind := range flows.KindNames() {
		if !regexp.MustCompile(`(?m)^\.BR? flatd\.` + kind + `( ,)?$`).MatchString(page) {
			t.Errorf("no dataset of kind %s", kind)
		}
	}
}

// TestMessages: flatd-events(7) has every MESSAGE_ID.
func TestMessages(t *testing.T) {
	var text string
	for _, m := range flows.Messages {
		text += Item(Bold(m.ID), Prose(m.Title+"."))
	}
	Keep(t, "flatd-events.7", "messages", text, *update)
}

// TestResults: flatd-events(7) explains every result, if DNS' own only in a row.
func TestResults(t *testing.T) {
	var codes []string
	for _, name := range flows.ResultNames()[5:] {
		codes = append(codes, "`"+name+"`")
	}
	Keep(t, "flatd-events.7", "response codes", Prose(strings.Join(codes, ", ")+"."), *update)
	page := read(t, Path("flatd-events.7"))
	for _, name := range flows.ResultNames()[:5] {
		if !strings.Contains(page, "\n.B "+name+"\n") {
			t.Errorf("flatd-events(7) does not explain the result %s", name)
		}
	}
}

// TestCounters: flatd(8) has every counter of the kernel half, as
// bpf/counters.h explains it.
func TestCounters(t *testing.T) {
	counter := regexp.MustCompile(`(?m)^\tCOUNT_(\w+),\s*/\* (.*) \*/$`)
	var text string
	for _, m := range counter.FindAllStringSubmatch(read(t, "../../bpf/counters.h"), -1) {
		text += Item(Bold(strings.ToLower(m[1])), Prose(strings.ToUpper(m[2][:1])+m[2][1:]+"."))
	}
	Keep(t, "flatd.8", "counters", text, *update)
}

// TestMetrics: flatd(8) has every metric that /metrics has.
func TestMetrics(t *testing.T) {
	metric := regexp.MustCompile(`prometheus\.NewDesc\(\s*"(\w+)",\s*"([^"]*)",\s*(?:nil|\[\]string\{([^}]*)\})`)
	var text string
	for _, m := range metric.FindAllStringSubmatch(read(t, "../../daemon/control/metrics.go"), -1) {
		tag := Bold(m[1])
		if m[3] != "" {
			tag += "{" + Escape(strings.ReplaceAll(m[3], `"`, "")) + "}"
		}
		text += Item(tag, Prose(m[2]))
	}
	Keep(t, "flatd.8", "metrics", text, *update)
}

// TestKeys: flatd.toml(5) is the reference configuration, set as a page.
func TestKeys(t *testing.T) {
	Keep(t, "flatd.toml.5", "keys", keys(packaging.Config), *update)
}

var (
	table   = regexp.MustCompile(`^#\[(.*)\]$`)
	setting = regexp.MustCompile(`^#(\w+) = (.*)$`)
	choice  = regexp.MustCompile(`^#   ("[^"]*") +(.*)$`)
)

// keys sets the reference: a section for each table, in it an item for each
// group of keys that one comment explains. What stands before the first key is
// about the file, and the page says that in its own words.
func keys(reference string) string {
	_, reference, _ = strings.Cut(reference, "\n\n")
	var out string
	var comment, group []string
	for _, line := range strings.Split(reference, "\n") {
		switch {
		case table.MatchString(line):
			out += ".SS [" + Escape(table.FindStringSubmatch(line)[1]) + "]\n" + explain(comment)
			comment = nil
		case setting.MatchString(line):
			m := setting.FindStringSubmatch(line)
			group = append(group, Bold(m[1])+" = "+Escape(m[2]))
		case strings.HasPrefix(line, "#"):
			comment = append(comment, line)
		case len(group) > 0:
			out += ".TP\n" + strings.Join(group, "\n.TQ\n") + "\n" + explain(comment)
			comment, group = nil, nil
		}
	}
	return out
}

// explain sets a comment: prose, lists of values, and examples by their indent.
func explain(comment []string) string {
	var out string
	var prose []string
	end := func() {
		if len(prose) > 0 {
			out += Prose(strings.Join(prose, " "))
		}
		prose = nil
	}
	inList := false
	for _, line := range comment {
		m := choice.FindStringSubmatch(line)
		if inList && m == nil {
			out += ".RE\n"
		}
		if !inList && m != nil {
			end()
			out += ".RS\n"
		}
		inList = m != nil
		switch {
		case inList:
			out += Item(Bold(m[1]), Prose(m[2]))
		case strings.HasPrefix(line, "#     "):
			end()
			out += ".RS\n" + Literal(strings.TrimPrefix(line, "#     ")) + ".RE\n"
		default:
			prose = append(prose, strings.TrimPrefix(line, "#"))
		}
	}
	end()
	if inList {
		out += ".RE\n"
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("*.[1-8]")
	if err != nil || len(found) < 4 {
		t.Fatalf("pages: %v, %v", found, err)
	}
	return found
}

// TestPagesRender: neither groff nor mandoc finds anything wrong.
func TestPagesRender(t *testing.T) {
	for _, page := range pages(t) {
		for _, command := range [][]string{
			{"groff", "-t", "-man", "-ww", "-Tutf8", "-Kutf8", "-z", page},
			{"mandoc", "-Tlint", "-Wstyle", page},
		} {
			testbed.Tool(t, command[0])
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v\n%s", strings.Join(command, " "), err, out)
			}
		}
	}
}

// TestPagesReferToOneAnother: a page of flatd's that is referred to, by a page, a
// unit or the catalog, is there under that section.
func TestPagesReferToOneAnother(t *testing.T) {
	have := make(map[string]bool)
	for _, page := range pages(t) {
		have[strings.Replace(page, filepath.Ext(page), "("+filepath.Ext(page)[1:]+")", 1)] = true
	}
	sources, err := filepath.Glob("../../systemd/*.*")
	if err != nil {
		t.Fatal(err)
	}
	reference := regexp.MustCompile(`flat(?:d|ctl)[a-z.-]* ?\([1-8]\)`)
	found := 0
	for _, source := range append(pages(t), sources...) {
		for _, name := range reference.FindAllString(strings.ReplaceAll(read(t, source), `\-`, "-"), -1) {
			found++
			if name = strings.ReplaceAll(name, " ", ""); !have[name] {
				t.Errorf("%s refers to %s, and there is no such page", source, name)
			}
		}
	}
	if found < 20 {
		t.Errorf("found %d references", found)
	}
	for name := range have {
		t.Run(name, func(t *testing.T) { wantHeader(t, name) })
	}
}

// wantHeader wants the page to begin with its own name and section.
func wantHeader(t *testing.T, page string) {
	var name string
	var section int
	if _, err := fmt.Sscanf(strings.Replace(page, "(", " ", 1), "%s %d)", &name, &section); err != nil {
		t.Fatal(err)
	}
	text := read(t, fmt.Sprintf("%s.%d", name, section))
	if want := fmt.Sprintf("\n.TH %s %d ", strings.ToUpper(strings.ReplaceAll(name, "-", `\-`)), section); !strings.Contains(text, want) {
		t.Errorf("no %q", want)
	}
	if want := "\n.SH NAME\n" + strings.ReplaceAll(name, "-", `\-`) + ` \- `; !strings.Contains(text, want) {
		t.Errorf("no %q", want)
	}
}
