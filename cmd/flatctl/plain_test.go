package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/api"
)

func TestPlain(t *testing.T) {
	var shown strings.Builder
	n, err := fmt.Fprint(plain{&shown}, "a\tü\n\x1b[2J\u202e\xff'\u009b")
	if want := "a\tü\n\\x1b[2J\\u202e\\xff'\\u009b"; shown.String() != want || n != len("a\tü\n\x1b[2J\u202e\xff'\u009b") || err != nil {
		t.Errorf("shown %q, want %q (%d, %v)", shown.String(), want, n, err)
	}
}

// What others have named reaches no terminal as it is; what is ahead is shown.
func TestStatusShowsNamesPlainly(t *testing.T) {
	s := api.Status{
		Measuring: true, Problems: []string{"interface \x1b]0;x\a: gone"},
		Interfaces: []api.InterfaceStatus{{Name: "e\x1b[31m", Index: 2, Mode: bpf.TCX, Ahead: []string{"ingress: tcx program 7"}}},
	}
	var shown strings.Builder
	printStatus(&shown, &s, true)
	if strings.ContainsAny(shown.String(), "\x1b\a") {
		t.Errorf("control characters in %q", shown.String())
	}
	if !strings.Contains(shown.String(), `e\x1b[31m`) || !strings.Contains(shown.String(), "tcx program 7") {
		t.Errorf("%s", shown.String())
	}
}
