package flows

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// schemaID is where the schema of this version is to be found.
const schemaID = "https://raw.githubusercontent.com/flatd/flatd/main/packaging/flatd-event.schema.json"

// Schema returns the JSON Schema (draft 2020-12) of events, made from the table
// of fields. It lets unknown fields pass: a version may add some.
func Schema() []byte {
	root := tree()
	schema := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", schemaID},
		{"title", fmt.Sprintf("flatd event, version %d", SchemaVersion)},
		{"description", "One finished exchange, a status of flatd itself, or what an interval came to. Absent means unknown."},
	}
	schema = append(schema, root.schema()...)
	schema = append(schema, member{"allOf", []object{
		{{"if", datasetIn("flatd.status", "flatd.summary")}, {"else", root.required(PresenceExchange)}},
		{{"if", datasetIn("flatd.summary")}, {"then", root.required(PresenceSummary)}},
	}})

	var out bytes.Buffer
	_ = json.Indent(&out, schema.appendTo(nil), "", "  ") // of our own making
	out.WriteByte('\n')
	return out.Bytes()
}

// MarkdownTable returns the fields as a table for the manual.
func MarkdownTable() []byte {
	var out bytes.Buffer
	out.WriteString("| field | journal | type | present | meaning |\n|---|---|---|---|---|\n")
	for _, f := range fields {
		fmt.Fprintf(&out, "| `%s` | `%s` | %s | %s | %s |\n", f.Path, f.journal, f.Type, f.Presence, f.Doc)
	}
	return out.Bytes()
}

// datasetIn holds for the events of some datasets.
func datasetIn(names ...string) object {
	return object{{"properties", object{{"event", object{{"properties",
		object{{"dataset", object{{"enum", names}}}}}}}}}}
}

// node is a field, or an object with fields in it.
type node struct {
	name     string
	field    *Field // nil for an object
	children []*node
}

// tree arranges the fields as JSON does.
func tree() *node {
	root := new(node)
	for i := range fields {
		f, at := &fields[i], root
		names := strings.Split(f.Path, ".")
		for _, name := range names {
			at = at.child(name)
		}
		at.field = f
	}
	return root
}

func (n *node) child(name string) *node {
	for _, c := range n.children {
		if c.name == name {
			return c
		}
	}
	c := &node{name: name}
	n.children = append(n.children, c)
	return c
}

// schema describes the node and all below.
func (n *node) schema() object {
	if n.field != nil {
		return n.field.schema()
	}
	properties := object{}
	for _, c := range n.children {
		properties = append(properties, member{c.name, c.schema()})
	}
	s := object{{"type", "object"}, {"properties", properties}}
	if names := n.requiredNames(PresenceAlways); len(names) > 0 {
		s = append(s, member{"required", names})
	}
	return s
}

// required demands the fields below that have the presence.
func (n *node) required(p Presence) object {
	properties := object{}
	for _, c := range n.children {
		if c.field == nil && c.has(p) {
			properties = append(properties, member{c.name, c.required(p)})
		}
	}
	s := object{}
	if names := n.requiredNames(p); len(names) > 0 {
		s = append(s, member{"required", names})
	}
	if len(properties) > 0 {
		s = append(s, member{"properties", properties})
	}
	return s
}

func (n *node) requiredNames(p Presence) []string {
	var names []string
	for _, c := range n.children {
		if c.has(p) {
			names = append(names, c.name)
		}
	}
	return names
}

// has reports whether a field of that presence is here or below.
func (n *node) has(p Presence) bool {
	if n.field != nil {
		return n.field.Presence == p
	}
	for _, c := range n.children {
		if c.has(p) {
			return true
		}
	}
	return false
}

// schema describes the values of a field.
func (f *Field) schema() object {
	s := object{{"description", f.Doc}}
	values := f.valueSchema()
	if f.Type == TypeList {
		return append(s, member{"type", "array"}, member{"items", values}, member{"minItems", 1})
	}
	return append(s, values...)
}

func (f *Field) valueSchema() object {
	s := object{}
	switch f.Type {
	case TypeLong:
		s = append(s, member{"type", "integer"}, member{"minimum", 0})
	case TypeBoolean:
		s = append(s, member{"type", "boolean"})
	default:
		s = append(s, member{"type", "string"})
	}
	switch {
	case f.Type == TypeDate:
		s = append(s, member{"format", "date-time"})
	case f.Type == TypeIP:
		s = append(s, member{"anyOf", []object{{{"format", "ipv4"}}, {{"format", "ipv6"}}}})
	case f.Pattern != "":
		s = append(s, member{"pattern", f.Pattern})
	case f.Values != nil:
		s = append(s, member{"enum", f.Values})
	case f.Type == TypeKeyword || f.Type == TypeText:
		s = append(s, member{"minLength", 1})
	}
	return s
}

// object is a JSON object that keeps the order of its members.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) { return o.appendTo(nil), nil }

func (o object) appendTo(dst []byte) []byte {
	dst = append(dst, '{')
	for i, m := range o {
		if i > 0 {
			dst = append(dst, ',')
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			value = []byte("null") // not for the strings, numbers and lists used here
		}
		dst = append(append(append(append(dst, '"'), m.name...), `":`...), value...)
	}
	return append(dst, '}')
}
