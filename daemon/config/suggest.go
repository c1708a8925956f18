package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// unknownKey says that there is no such key, and which may have been meant: one
// like it in the same table, or one of that name elsewhere.
func unknownKey(keys []configKey, path toml.Key, value any) string {
	if path.String() == "outputs.nats.enabled" {
		return "unknown key: this output is on when url is set"
	}
	what := "unknown key"
	switch value.(type) {
	case map[string]any, []map[string]any:
		what = "unknown table"
	}
	table, last := path[:len(path)-1].String(), path[len(path)-1]

	siblings := childrenOf(keys, table)
	if meant, ok := closest(last, siblings); ok {
		return fmt.Sprintf("%s; did you mean %q?", what, meant)
	}
	if tables := tablesWith(keys, last); len(tables) > 0 {
		return fmt.Sprintf("%s; it belongs to %s", what, strings.Join(tables, " or "))
	}
	if table == "" {
		return fmt.Sprintf("%s: want one of %s", what, strings.Join(siblings, ", "))
	}
	return fmt.Sprintf("%s: [%s] has %s", what, table, strings.Join(siblings, ", "))
}

// childrenOf lists the keys and tables that stand in a table, "" being the top.
func childrenOf(keys []configKey, table string) []string {
	var children []string
	for _, k := range keys {
		name := k.name
		if table != "" {
			var ok bool
			if name, ok = strings.CutPrefix(name, table+"."); !ok {
				continue
			}
		}
		child, _, _ := strings.Cut(name, ".")
		if !slices.Contains(children, child) {
			children = append(children, child)
		}
	}
	return children
}

// tablesWith says in which tables a key or table of this name stands.
func tablesWith(keys []configKey, last string) []string {
	var tables []string
	for _, k := range keys {
		for name := k.name; name != ""; {
			table, child := "", name
			if i := strings.LastIndexByte(name, '.'); i >= 0 {
				table, child = name[:i], name[i+1:]
			}
			where := "[" + table + "]"
			if table == "" {
				where = "the top, above the first [table]"
			}
			if child == last && !slices.Contains(tables, where) {
				tables = append(tables, where)
			}
			name = table
		}
	}
	return tables
}

// closest is the word that differs least from s, if one is near enough to be
// what was meant: about one slip in four characters.
func closest(s string, words []string) (string, bool) {
	best, least := "", 1+len(s)/4
	for _, w := range words {
		if d := slips(strings.ToLower(s), w); d < least || d == least && best == "" {
			best, least = w, d
		}
	}
	return best, best != ""
}

// slips counts the slips of the pen between a and b: a character too many, too
// few or wrong, or two that changed places (optimal string alignment).
func slips(a, b string) int {
	if len(a) > 64 || len(b) > 64 { // no key is so long; do not pay for it
		return max(len(a), len(b))
	}
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			wrong := last[j-1]
			if a[i-1] != b[j-1] {
				wrong++
			}
			row[j] = min(wrong, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
