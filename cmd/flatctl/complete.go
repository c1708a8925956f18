package main

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

// completions are what a shell offers as the value of a flag, wherever a command
// has one of that name; "command flag" prevails. For others it offers nothing, but
// files where the value is the path of one.
var completions = map[string]cobra.CompletionFunc{
	"columns":          several(fixed(append(columnNames(), fieldNames()...)...)),
	"compare":          completeComparison,
	"events output":    fixed("table", "line", "json"),
	"family":           several(fixed(api.Families()...)),
	"group":            fixed(board.Groups()...),
	"histogram kind":   several(fixed(flows.ExchangeKindNames()...)),
	"histogram result": several(fixed(answeredNames()...)),
	"interface":        several(interfaceNames),
	"kind":             several(fixed(flows.KindNames()...)),
	"output":           fixed("text", "json"),
	"result":           several(fixed(flows.ResultNames()...)),
	"side":             several(fixed(api.Sides()...)),
	"sort":             fixed(board.Orders()...),
	"top output":       fixed("table", "json"),
	"unit":             several(unitNames),
}

// completeAll registers what may follow, in a command and all below it.
// Only `config check` takes an argument, and that is a file.
func completeAll(c *cobra.Command) {
	if c.Name() != "check" {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		complete := completions[c.Name()+" "+f.Name]
		if complete == nil {
			complete = completions[f.Name]
		}
		if value, _ := pflag.UnquoteUsage(f); complete == nil && f.NoOptDefVal == "" && value != "file" && value != "path" {
			complete = cobra.NoFileCompletions
		}
		if complete != nil {
			_ = c.RegisterFlagCompletionFunc(f.Name, complete) // fails only if done twice
		}
	})
	for _, sub := range c.Commands() {
		completeAll(sub)
	}
}

func fixed(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

// several completes the last of several values, with commas between them, by one
// that is not among the others.
func several(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		before, last := "", typed
		if comma := strings.LastIndexByte(typed, ','); comma >= 0 {
			before, last = typed[:comma+1], typed[comma+1:]
		}
		values, directive := complete(c, args, last)
		var offers []string
		for _, v := range values {
			if !slices.Contains(strings.Split(before, ","), v) {
				offers = append(offers, before+v)
			}
		}
		return offers, directive
	}
}

func fieldNames() (names []string) {
	for _, f := range flows.Fields() {
		names = append(names, f.Path)
	}
	return names
}

// answeredNames are the results that have a duration.
func answeredNames() []string {
	return slices.DeleteFunc(flows.ResultNames(), func(name string) bool { return name == "timeout" })
}

// completionTime is what flatd has to answer somebody who waits for the shell.
const completionTime = 2 * time.Second

// clientOf asks the flatd that the command line names.
func clientOf(c *cobra.Command) (*source.Client, context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	return &source.Client{Socket: c.Flag("socket").Value.String()}, ctx, cancel
}

// interfaceNames are those that flatd measures or, if it does not answer, those
// there are.
func interfaceNames(c *cobra.Command, _ []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	client, ctx, cancel := clientOf(c)
	defer cancel()
	var measured []api.InterfaceStatus
	if client.Get(ctx, "/v1/interfaces", &measured) == nil && len(measured) > 0 {
		for _, i := range measured {
			names = append(names, i.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// unitNames are those of the events that flatd remembers.
func unitNames(c *cobra.Command, _ []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	client, ctx, cancel := clientOf(c)
	defer cancel()
	// If that fails, what there is will do.
	_ = source.NewSocket(client, nil).Events(ctx, source.Request{Limit: api.RecentMax}, func(r *source.Report) error {
		if name := r.Event.Owner.Service(); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeComparison offers the names of conditions, then the values of one.
func completeComparison(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	name, value, named := strings.Cut(typed, "=")
	if !named {
		offers := []string{compareNext, compareStart}
		for _, name := range selectionNames() {
			offers = append(offers, name+"=")
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	complete, known := c.GetFlagCompletionFunc(name)
	if !known {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	values, directive := complete(c, args, value)
	for i := range values {
		values[i] = name + "=" + values[i]
	}
	return values, directive
}
