package main

// What keys do on the screen of top, and the filter that is typed there.

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/cmd/flatctl/board"
)

// topKeys are what keys do, for the help page.
var topKeys = []struct{ keys, does string }{
	{"q, Ctrl-C", "end"},
	{"s, S", "sort by the next figure, by the one before"},
	{"g, G", "group by " + strings.Join(board.Groups(), ", ")},
	{"/", "filter, as flatctl events does: to=10.0.0.0/8 port=443"},
	{"c", "clear the filter, and begin to count anew"},
	{"p, Space", "pause: the screen stays, counting goes on"},
	{"Up, Down, k, j", "choose a row; also PgUp, PgDn, Home, End"},
	{"Enter", "look into the chosen row; again, or Esc: back"},
	{"?", "this; again, or Esc: back"},
}

// press does what a key is for.
func (s *screen) press(key tea.KeyPressMsg) tea.Cmd {
	name := key.String()
	switch {
	case name == "ctrl+c":
		return tea.Quit
	case name == "ctrl+z":
		return tea.Suspend
	case s.typing:
		return s.pressTyping(name, key.Text)
	}
	switch name {
	case "q":
		return tea.Quit
	case "esc":
		s.page = pageRows
	case "?", "h":
		s.page = toggled(s.page, pageHelp)
	case "enter":
		if r := s.row(); r != nil {
			s.page, s.chosen = toggled(s.page, pageRow), r.Key
		}
	case "s", "S":
		s.arranged.order = turned(name == "s", s.arranged.order, board.Order.Next)
		s.sort()
	case "g", "G":
		s.page, s.chosen, s.first, s.paused = pageRows, board.Key{}, 0, false
		s.selected = 0
		s.arranged.group = turned(name == "g", s.arranged.group, board.Group.Next)
		s.refresh()
	case "p", "space":
		s.paused = !s.paused
		s.refresh()
	case "/":
		if !s.filtering {
			s.typing, s.typed, s.wrong = true, conditionsText(s.given), ""
		}
	case "c":
		if !s.filtering {
			return s.filter(url.Values{})
		}
	default:
		s.move(name)
	}
	return nil
}

// toggled is a page or, on that, the rows.
func toggled(from, to page) page {
	if from == to {
		return pageRows
	}
	return to
}

// turned is the next value or, by going on until there, the one before.
func turned[T comparable](forward bool, from T, next func(T) T) T {
	to := next(from)
	for !forward && next(to) != from {
		to = next(to)
	}
	return to
}

// move chooses another row.
func (s *screen) move(name string) {
	if s.page != pageRows || len(s.snapshot.Rows) == 0 {
		return
	}
	page := max(s.rowsShown()-1, 1)
	to := s.selected
	switch name {
	case "up", "k":
		to--
	case "down", "j":
		to++
	case "pgup":
		to -= page
	case "pgdown":
		to += page
	case "home":
		to = 0
	case "end":
		to = len(s.snapshot.Rows) - 1
	default:
		return
	}
	s.selected = min(max(to, 0), len(s.snapshot.Rows)-1)
	s.chosen = s.snapshot.Rows[s.selected].Key
}

// typedMax bounds a filter, in characters.
const typedMax = 1000

func (s *screen) pressTyping(name, text string) tea.Cmd {
	switch name {
	case "esc":
		s.typing = false
	case "enter":
		given, err := parseConditions(s.typed)
		if err != nil {
			s.wrong = err.Error()
			return nil
		}
		s.typing, s.page = false, pageRows
		return s.filter(given)
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(s.typed)
		s.typed = s.typed[:len(s.typed)-size]
	case "ctrl+u":
		s.typed = ""
	default:
		if len(s.typed)+len(text) <= typedMax {
			s.typed += text
		}
	}
	s.wrong = ""
	return nil
}

// parseConditions takes what was typed as a filter: name=value, or as flags of
// the command line.
func parseConditions(typed string) (url.Values, error) {
	words := strings.Fields(typed)
	for i, word := range words {
		if name, _, ok := strings.Cut(word, "="); ok && !strings.HasPrefix(name, "-") {
			words[i] = "--" + word
		}
	}
	flags := pflag.NewFlagSet("filter", pflag.ContinueOnError)
	flags.SetOutput(nil)
	flags.Usage = func() {}
	liveFilterFlags(flags)
	if err := flags.Parse(words); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is not of the form name=value", flags.Arg(0))
	}
	return conditions(flags)
}
