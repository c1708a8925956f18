package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Table is the configuration as tables and keys, each value in the form it has
// in the file. Secrets are not in it: their keys hold paths.
func (c Config) Table() map[string]any {
	all := make(map[string]any)
	for _, k := range keysOf(&c) {
		table, path := all, strings.Split(k.name, ".")
		for _, name := range path[:len(path)-1] {
			below, ok := table[name].(map[string]any)
			if !ok {
				below = make(map[string]any)
				table[name] = below
			}
			table = below
		}
		table[path[len(path)-1]] = k.get()
	}
	return all
}

// String is the range as the file has it: "443" or "8000-8999".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
