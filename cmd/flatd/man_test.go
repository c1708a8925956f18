package main

import (
	"flag"
	"testing"

	"github.com/spf13/pflag"

	"github.com/flatd/flatd/packaging/man"
)

var update = flag.Bool("update", false, "rewrite what flatd(8) says of the options")

// TestManual: flatd(8) has the options there are.
func TestManual(t *testing.T) {
	var text string
	command().Flags().VisitAll(func(f *pflag.Flag) {
		value, usage := pflag.UnquoteUsage(f)
		tag := man.Bold("--" + f.Name)
		if value != "" {
			tag += " " + man.Italic(value)
		}
		if f.DefValue != "" && f.DefValue != "false" {
			usage += "; " + f.DefValue + " if not given"
		}
		text += man.Item(tag, man.Prose(usage+"."))
	})
	man.Keep(t, "flatd.8", "options", text, *update)
}
