package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// complete returns what a shell offers after some words, and whether it offers
// files as well.
func complete(t *testing.T, words ...string) (offers []string, files bool) {
	t.Helper()
	root := command()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd}, words...))
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	list, rest, found := strings.Cut("\n"+out.String(), "\n:")
	var directive cobra.ShellCompDirective
	if _, err := fmt.Sscan(rest, &directive); err != nil || !found {
		t.Fatalf("completions of %q: %v\n%s", words, err, out.Bytes())
	}
	return strings.Split(strings.TrimPrefix(list, "\n"), "\n"), directive&cobra.ShellCompDirectiveNoFileComp == 0
}

func TestCompletion(t *testing.T) {
	for _, c := range []struct {
		words, want string
		files       bool
	}{
		{"do", "doctor", false},
		{"status ", "", false},
		{"events --kind ", "icmp", false},
		{"events --result nx", "nxdomain", false},
		{"events --side ", "server", false},
		{"events --interface ", "lo", false},
		{"events -o ", "json", false},
		{"summary --output ", "json", false},
		{"config ", "check", false},
		{"config check ", "", true},
		{"detach --config ", "", true},
	} {
		offers, files := complete(t, strings.Split(c.words, " ")...)
		if !slices.Contains(offers, c.want) || files != c.files {
			t.Errorf("flatctl %s: offers %q and files: %t; want %q among them and files: %t", c.words, offers, files, c.want, c.files)
		}
	}
}

// TestCompletionScripts: each shell that is here accepts what it is given.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		root := command()
		var script bytes.Buffer
		root.SetOut(&script)
		root.SetArgs([]string{"completion", shell})
		if err := root.Execute(); err != nil || !strings.Contains(script.String(), "flatctl") {
			t.Fatalf("completion %s: %v\n%s", shell, err, script.Bytes())
		}
		if _, err := exec.LookPath(shell); err != nil {
			continue
		}
		cmd := exec.Command(shell, "-n")
		cmd.Stdin = &script
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
}
