package main

import (
	"net"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/flows"
)

// completions are what a shell offers as the value of a flag, wherever a command
// has one of that name.
var completions = map[string]cobra.CompletionFunc{
	"interface": completeInterface,
	"kind":      fixed("tcp", "dns", "udp", "icmp", "status", "summary"),
	"limit":     cobra.NoFileCompletions,
	"output":    fixed("text", "json"),
	"peer":      cobra.NoFileCompletions,
	"port":      cobra.NoFileCompletions,
	"result":    fixed(flows.ResultNames()...),
	"side":      fixed(flows.SideClient.String(), flows.SideServer.String()),
	"slower":    cobra.NoFileCompletions,
	"unit":      cobra.NoFileCompletions,
}

// completeAll tells the shell what may follow, in a command and all below it.
// Only `config check` takes an argument, and that is a file.
func completeAll(c *cobra.Command) {
	if c.Name() != "check" {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	for name, complete := range completions {
		if c.LocalFlags().Lookup(name) != nil {
			// Fails only for a flag that is not there, or is registered twice.
			_ = c.RegisterFlagCompletionFunc(name, complete)
		}
	}
	for _, sub := range c.Commands() {
		completeAll(sub)
	}
}

func fixed(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

func completeInterface(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
