package flows

import (
	"strconv"
	"strings"
)

// form is what JSON and journal need of a field for each event, in little more
// than a cache line.
type form struct {
	value   func(dst []byte, h *Host, e *Event) []byte
	number  func(e *Event) (n uint64, known bool)
	list    func(e *Event) []string
	journal string // its name there, with the "="
	names   string // in JSON: those of the objects around it with their braces, and its own up to the value

	starts  [objectsMax + 1]uint8 // where to begin in names inside so many of the objects
	depth   uint8                 // how many objects are around it
	shared  uint8                 // those of them that the field before in the table is in, too
	bare    bool                  // in JSON without quotes
	plain   bool                  // needs no escape in either, even if it was read from hostile JSON
	message bool                  // what every journal entry has by another rule
	fixed   bool                  // these two as in Field
	kind    Kind
}

const objectsMax = 3

// forms are those of fields, in its order.
var forms = func() []form {
	table := make([]form, len(fields))
	var before []string
	for i := range fields {
		f := &fields[i]
		names := strings.Split(f.Path, ".")
		objects := names[:len(names)-1]
		table[i] = newForm(f, objects, names[len(objects)])
		table[i].shared = uint8(commonPrefix(before, objects))
		before = objects
	}
	return table
}()

func newForm(f *Field, objects []string, name string) form {
	made := form{
		value:   f.value,
		number:  f.number,
		list:    f.list,
		journal: f.journal + "=",
		depth:   uint8(len(objects)),
		bare:    f.Type == TypeLong || f.Type == TypeBoolean,
		plain:   f.Type == TypeLong || f.Type == TypeBoolean || f.Type == TypeDate,
		message: f.Path == messagePath,
		fixed:   f.fixed,
		kind:    f.kind,
	}
	for i, object := range objects {
		made.starts[i] = uint8(len(made.names))
		made.names += strconv.Quote(object) + ":{"
	}
	made.starts[len(objects)] = uint8(len(made.names))
	made.names += strconv.Quote(name) + ":"
	if !made.bare && made.list == nil {
		made.names += `"`
	}
	return made
}

func commonPrefix(a, b []string) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// formsOf returns those that an event can have: those of summaries come last.
func formsOf(e *Event) []form {
	if e.Kind == KindSummary {
		return forms
	}
	return forms[:len(forms)-len(summaryFields)]
}
