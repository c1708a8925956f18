package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// File is a configuration file as it was written.
type File struct {
	Name string // for messages
	Text string // TOML
}

// Parse checks files and puts them together on top of the defaults; a key in a
// later file overrides an earlier one. Unlike Load it opens no file, so it does
// not know whether credentials can be read.
func Parse(files ...File) (Config, error) { return parse(files).result() }

func parse(files []File) *configReader {
	r := newConfigReader()
	for _, f := range files {
		r.read(f)
	}
	r.check()
	return r
}

// place is where a key stands.
type place struct {
	file string
	line int
}

// configProblem is one thing that is wrong with a file.
type configProblem struct {
	place
	key  string // "" if the file as a whole is wrong
	text string
}

func (p configProblem) Error() string {
	if p.key == "" {
		return printable(fmt.Sprintf("%s:%d: %s", p.file, p.line, p.text))
	}
	return printable(fmt.Sprintf("%s:%d: %s: %s", p.file, p.line, p.key, p.text))
}

// printable escapes what must not reach a terminal. Keys and the messages of
// package toml have pieces of the file in them.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// configReader puts a Config together and remembers where each key was set.
//
// The files are not decoded into a struct: that ends at the first value of
// another type, takes Timeout for timeout, and gives no lines. The keys of a
// file are instead looked up one by one in the list that keysOf makes.
type configReader struct {
	config   Config
	keys     []configKey
	places   map[string]place // of keys that are set, and not to ""
	problems []error
}

func newConfigReader() *configReader {
	r := &configReader{config: Defaults(), places: make(map[string]place)}
	r.keys = keysOf(&r.config)
	return r
}

func (r *configReader) result() (Config, error) {
	if len(r.problems) > 0 {
		return Config{}, errors.Join(r.problems...)
	}
	return r.config, nil
}

// read takes over what one file says, and notes everything wrong with it.
func (r *configReader) read(f File) {
	doc := document{File: f}
	var top map[string]toml.Primitive
	var err error
	if doc.meta, err = toml.Decode(f.Text, &top); err != nil {
		r.problems = append(r.problems, syntaxProblem(f.Name, err))
		return
	}
	found := r.table(&doc, nil, top)
	slices.SortStableFunc(found, func(a, b configProblem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.key, b.key))
	})
	for _, p := range found {
		r.problems = append(r.problems, p)
	}
}

func syntaxProblem(file string, err error) error {
	var parse toml.ParseError
	if !errors.As(err, &parse) {
		return fmt.Errorf("%s: not valid TOML: %w", file, err)
	}
	return configProblem{place: place{file, parse.Position.Line}, text: "not valid TOML: " + parse.Message}
}

// table goes through the keys of one table, given with its path.
func (r *configReader) table(doc *document, path toml.Key, entries map[string]toml.Primitive) []configProblem {
	var found []configProblem
	for name, entry := range entries {
		found = append(found, r.entry(doc, append(slices.Clone(path), name), entry)...)
	}
	return found
}

// entry takes over one key, or the table that has its name.
func (r *configReader) entry(doc *document, path toml.Key, entry toml.Primitive) []configProblem {
	name, value := path.String(), doc.value(entry)
	at := place{doc.Name, doc.line(entry)}

	if i := slices.IndexFunc(r.keys, func(k configKey) bool { return k.name == name }); i >= 0 {
		r.places[name] = at
		if value == "" {
			delete(r.places, name)
		}
		return problemsAt(at, name, r.keys[i].set(value))
	}
	if !isTable(r.keys, name) {
		return []configProblem{{at, name, unknownKey(r.keys, path, value)}}
	}
	if _, ok := value.(map[string]any); !ok {
		return []configProblem{{at, name, fmt.Sprintf("%s is not a table: want [%s], its keys below it",
			show(value), name)}}
	}
	return r.table(doc, path, doc.table(entry))
}

// problemsAt gives each error that is joined in err its place.
func problemsAt(at place, key string, err error) []configProblem {
	if err == nil {
		return nil
	}
	errs := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		errs = joined.Unwrap()
	}
	var found []configProblem
	for _, e := range errs {
		found = append(found, configProblem{at, key, e.Error()})
	}
	return found
}

// document is a file that was found to be TOML.
type document struct {
	File
	meta toml.MetaData
}

// value is an entry in the types of package toml: string, int64, float64, bool,
// time.Time, []any, map[string]any and []map[string]any.
func (d *document) value(entry toml.Primitive) any {
	var v any
	_ = d.meta.PrimitiveDecode(entry, &v) // everything fits into an any
	return v
}

func (d *document) table(entry toml.Primitive) map[string]toml.Primitive {
	var t map[string]toml.Primitive
	_ = d.meta.PrimitiveDecode(entry, &t) // the caller has seen that it is a table
	return t
}

// line is where an entry stands. A table that is only implied, as `a` is by
// [a.b], stands at its first key.
func (d *document) line(entry toml.Primitive) int {
	var refused toml.ParseError
	if errors.As(d.meta.PrimitiveDecode(entry, new(refusal)), &refused) && refused.Position.Line > 0 {
		// Position.Line is the last line of a string that has several.
		return 1 + strings.Count(d.Text[:refused.Position.Start], "\n")
	}
	first := 0
	for _, e := range d.table(entry) {
		if line := d.line(e); first == 0 || line < first {
			first = line
		}
	}
	return first
}

// refusal takes no value. Package toml gives the position of an entry only in
// the error about a value that was refused.
type refusal struct{}

func (*refusal) UnmarshalTOML(any) error { return errors.New("refused") }
