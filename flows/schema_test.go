package flows

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const schemaFile = "../packaging/flatd-event.schema.json"

func TestSchemaFile(t *testing.T) { checkGolden(t, schemaFile, Schema()) }

func compileSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource(schemaID, doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile(schemaID)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func parseJSON(t testing.TB, text []byte) map[string]any {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return doc.(map[string]any)
}

func TestEventsValid(t *testing.T) {
	schema := compileSchema(t)
	for _, s := range samples() {
		text := testHost.AppendJSON(nil, &s.event)
		if err := schema.Validate(parseJSON(t, text)); err != nil {
			t.Errorf("%s: %v\n%s", s.name, err, text)
		}
	}
}

// A schema that lets anything pass proves nothing.
func TestSchemaRefuses(t *testing.T) {
	schema := compileSchema(t)
	e := tcpSample()
	summary := summarySample()
	exchange, sum := string(testHost.AppendJSON(nil, &e)), string(testHost.AppendJSON(nil, &summary))
	for _, change := range [][2]string{
		{`"@timestamp":"2026-11-22T13`, `"@timestamp":"2026-11-22 13`},
		{`"duration":1234567`, `"duration":-1`},
		{`"duration":1234567`, `"duration":1.5`},
		{`"outcome":"success"`, `"outcome":"fine"`},
		{`"type":["connection","start"]`, `"type":[]`},
		{`"ip":"192.0.2.10"`, `"ip":"192.0.2.1000"`},
		{`"port":443`, `"port":"443"`},
		{`"b34d2359f30fd5e0"`, `"B34D2359F30FD5E0"`},
		{`"result":"established",`, ``},
		{`"id":"6f1c0d2e-107187"`, `"id":"107187"`},
		{`"hostname":"web1",`, ``},
		{`"interval":60000000000,`, ``},
		{`"dataset":"flatd.summary"`, `"dataset":"flatd.tcp"`},
		{`"p90":2130000`, `"p90":2.13`},
	} {
		good := exchange
		if !strings.Contains(good, change[0]) {
			good = sum
		}
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("no %s in %s", change[0], good)
		}
		if schema.Validate(parseJSON(t, []byte(bad))) == nil {
			t.Errorf("the schema accepts %s", change[1])
		}
	}
}

// What is emitted is in the table, and what is in the table is emitted, by the
// events that it says.
func TestFieldsAndEventsAgree(t *testing.T) {
	table, seen := map[string]Field{}, map[string]bool{}
	for _, f := range Fields() {
		table[f.Path] = f
	}
	for _, s := range samples() {
		paths := leaves("", parseJSON(t, testHost.AppendJSON(nil, &s.event)))
		for _, path := range paths {
			seen[path] = true
			f, ok := table[path]
			if !ok {
				t.Errorf("%s: %s is not in the table", s.name, path)
			}
			if s.event.Kind == KindStatus && f.Presence == PresenceExchange || s.event.Kind != KindSummary && f.Presence == PresenceSummary {
				t.Errorf("%s: has %s", s.name, path)
			}
		}
		for _, f := range table {
			must := f.Presence == PresenceAlways || f.Presence == PresenceExchange && s.event.Exchange() ||
				f.Presence == PresenceSummary && s.event.Kind == KindSummary
			if must && !slices.Contains(paths, f.Path) {
				t.Errorf("%s: lacks %s", s.name, f.Path)
			}
		}
	}
	for path := range table {
		if !seen[path] {
			t.Errorf("no sample has %s", path)
		}
	}
	for _, kind := range kindTable {
		if !slices.ContainsFunc(samples(), func(s sample) bool { return s.event.Kind == kind.kind }) {
			t.Errorf("no sample is of kind %s", kind.name)
		}
	}
}

func leaves(prefix string, object map[string]any) []string {
	var paths []string
	for name, value := range object {
		if inner, ok := value.(map[string]any); ok {
			paths = append(paths, leaves(prefix+name+".", inner)...)
		} else {
			paths = append(paths, prefix+name)
		}
	}
	return paths
}

// Fields of one object stand together, or JSON would have it twice.
func TestFieldsGrouped(t *testing.T) {
	for _, s := range samples() {
		text := testHost.AppendJSON(nil, &s.event)
		d := json.NewDecoder(bytes.NewReader(text))
		if err := uniqueNames(d); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

type repeatedName string

func (e repeatedName) Error() string { return "name twice in an object: " + string(e) }

// uniqueNames reads one value and fails if an object in it repeats a name.
func uniqueNames(d *json.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	delim, _ := token.(json.Delim)
	names := map[string]bool{}
	for (delim == '{' || delim == '[') && d.More() {
		if delim == '{' {
			token, err := d.Token()
			if err != nil {
				return err
			}
			name := token.(string)
			if names[name] {
				return repeatedName(name)
			}
			names[name] = true
		}
		if err := uniqueNames(d); err != nil {
			return err
		}
	}
	if delim == '{' || delim == '[' {
		_, err = d.Token()
	}
	return err
}

func TestMarkdownTable(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(string(MarkdownTable())), "\n")
	if len(rows) != len(Fields())+2 {
		t.Errorf("%d rows for %d fields", len(rows), len(Fields()))
	}
	for _, row := range rows {
		if strings.Count(row, "|") != 6 {
			t.Errorf("row is broken: %s", row)
		}
	}
}
