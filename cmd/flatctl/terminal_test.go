package main

import (
	"strings"
	"testing"
)

// TestFold: what a narrow terminal would break within words is broken between
// them, and stands beside its name.
func TestFold(t *testing.T) {
	const text = `flatd 1 on web1:  measuring
  requests:       74 = 74 finished + 0 timed out
ok    left out  nothing
BAD   flatd     does not answer at all, ever
                -> no socket /run/flatd: start it
  x:  ` + "\n"
	const want = `flatd 1 on web1:  measuring
  requests:       74 = 74 finished + 0
                  timed out
ok    left out  nothing
BAD   flatd     does not answer at all,
                ever
                -> no socket /run/flatd:
                   start it
  x:  ` + "\n"
	if got := fold(text, 40); got != want {
		t.Errorf("folded:\n%s", got)
	}
	for _, width := range []int{80, 0} { // there is room enough, or none at all
		if got := fold(text, width); got != text {
			t.Errorf("%d wide:\n%s", width, got)
		}
	}
}

// TestStatusFitsTheTerminal: status and doctor break no word on a real one, and
// in a pipe no line.
func TestStatusFitsTheTerminal(t *testing.T) {
	s := newSite(t)
	const end = "0 unreported"
	for _, command := range []string{"status", "doctor"} {
		line := "env LC_ALL=C.UTF-8 " + s.flatctl + " --socket " + s.socket + " " + command
		screen := newTmux(t, "64", "40", line).awaitText("ended with ")
		whole, _ := s.run(command)
		for _, word := range strings.Fields(whole) {
			if strings.ContainsAny(word, "0123456789") || len(word) > 40 {
				continue // the figures go on, and a path may have to be broken
			}
			if !strings.Contains(screen, word) {
				t.Errorf("%s: %q is not whole on the screen:\n%s", command, word, screen)
			}
		}
		if command == "status" && !strings.HasSuffix(lineWith(whole, "requests:"), end) {
			t.Errorf("status breaks lines in a pipe:\n%s", whole)
		}
	}
}
