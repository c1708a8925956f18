package config

import "strings"

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
