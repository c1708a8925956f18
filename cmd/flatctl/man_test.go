package main

import (
	"flag"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/packaging/man"
)

var update = flag.Bool("update", false, "rewrite what flatctl(1) says of the commands")

// TestManual: flatctl(1) has the commands and options there are.
func TestManual(t *testing.T) {
	root := command()
	root.InitDefaultCompletionCmd()
	var text strings.Builder
	for _, c := range root.Commands() {
		describe(&text, c)
	}
	man.Keep(t, "flatctl.1", "commands", text.String(), *update)
	man.Keep(t, "flatctl.1", "options", options(root.PersistentFlags()), *update)
}

// describe writes the section of a command, then those below it. How to load
// each shell's completions is for flatctl itself to say.
func describe(to *strings.Builder, c *cobra.Command) {
	to.WriteString(`.SS "` + man.Escape(strings.TrimSuffix(c.UseLine(), " [flags]")) + flagsLine(c) + "\"\n")
	switch {
	case c.Name() == "completion":
		to.WriteString(man.Prose("Print a script that completes the command line in a shell: `bash`, `fish`, `powershell` or `zsh`. Packages install those of bash, fish and zsh."))
		return
	case c.Long == "":
		to.WriteString(man.Prose(c.Short + "."))
	default:
		for i, paragraph := range strings.Split(c.Long, "\n\n") {
			if i > 0 {
				to.WriteString(".PP\n")
			}
			to.WriteString(man.Prose(paragraph))
		}
	}
	to.WriteString(options(c.LocalNonPersistentFlags()))
	if c.Example != "" {
		to.WriteString(".PP\nExamples:\n")
		var lines []string
		for _, line := range strings.Split(c.Example, "\n") {
			lines = append(lines, strings.TrimPrefix(line, "  "))
		}
		to.WriteString(man.Literal(lines...))
	}
	for _, sub := range c.Commands() {
		describe(to, sub)
	}
}

func flagsLine(c *cobra.Command) string {
	if c.LocalNonPersistentFlags().HasAvailableFlags() {
		return ` [\fIoption\fR]...`
	}
	return ""
}

// options lists flags with what they take and their defaults.
func options(flags *pflag.FlagSet) string {
	var text string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		tag := man.Bold("--" + f.Name)
		if f.Shorthand != "" {
			tag = man.Bold("-"+f.Shorthand) + ", " + tag
		}
		if value != "" {
			tag += " " + man.Italic(value)
		}
		if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "false" {
			usage += "; " + f.DefValue + " if not given"
		}
		text += man.Item(tag, man.Prose(usage+"."))
	})
	return text
}
