package api

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/flatd/flatd/flows"
)

// RecentMax is how many events the daemon remembers.
const RecentMax = 1024

// OldestHeader is, in an answer of /v1/events, the time of the oldest event that
// flatd remembers, if it has forgotten older ones.
const OldestHeader = "Flatd-Oldest"

// EventsQuery is what /v1/events is asked for.
type EventsQuery struct {
	Limit  int
	Follow bool
	Text   bool // lines for people instead of JSON
	Color  bool
	EventFilter
}

// wordsMax bounds each list: every event is compared with it.
const wordsMax = 64

// queryNames are the parameters of /v1/events.
func queryNames() []string {
	return append([]string{"limit", "follow", "format", "color"}, EventFilterNames()...)
}

// ParseEventsQuery reads the parameters that queryNames has. Those of which there may
// be several are repeated or separated by commas.
func ParseEventsQuery(values url.Values) (EventsQuery, error) {
	q := EventsQuery{Limit: 100}
	err := setAll(q.set, values, queryNames())
	return q, err
}

func (q *EventsQuery) set(name string, texts []string) (err error) {
	switch name {
	case "limit":
		q.Limit, err = strconv.Atoi(texts[0])
		if err == nil && (q.Limit < 0 || q.Limit > RecentMax) {
			err = fmt.Errorf("must be from 0 to %d", RecentMax)
		}
	case "follow":
		q.Follow, err = strconv.ParseBool(texts[0])
	case "format":
		_, err = oneOf(texts, "json", "text")
		q.Text = texts[0] == "text"
	case "color":
		q.Color, err = strconv.ParseBool(texts[0])
	default:
		err = q.Set(name, texts)
	}
	return err
}

// errUnknown is the error for a parameter that there is not.
var errUnknown = errors.New("unknown")

// setAll sets the parameters of a query. The error says what is wrong with one, and
// which there are, in words that may be shown.
func setAll(set func(name string, texts []string) error, values url.Values, known []string) error {
	for name, texts := range values {
		err := set(name, texts)
		switch {
		case errors.Is(err, errUnknown), err != nil && !slices.Contains(known, name):
			return fmt.Errorf("unknown parameter %q: known are %s", name, strings.Join(known, ", "))
		case err != nil:
			return fmt.Errorf("parameter %s=%q: %w", name, strings.Join(texts, ","), err)
		}
	}
	return nil
}

// words splits lists at their commas, so that a list may be given in parts.
func words(texts []string) ([]string, error) {
	all := strings.Split(strings.Join(texts, ","), ",")
	if len(all) > wordsMax {
		return nil, fmt.Errorf("has %d values: at most %d are allowed", len(all), wordsMax)
	}
	return all, nil
}

func oneOf(words []string, known ...string) ([]string, error) {
	for _, w := range words {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("must be one of %s", strings.Join(known, ", "))
		}
	}
	return words, nil
}

func parseAll[T any](words []string, parse func(string) (T, error)) ([]T, error) {
	all := make([]T, 0, len(words))
	for _, w := range words {
		v, err := parse(w)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// parseUnit takes "nginx" for nginx.service, as systemctl does.
func parseUnit(s string) (string, error) {
	for _, name := range []string{s, s + ".service"} {
		if s != "" && flows.OwnerOf("/"+name).Unit == name {
			return name, nil
		}
	}
	return "", fmt.Errorf("%q is not the name of a unit", s)
}

func among(words []string, word string) bool { return len(words) == 0 || slices.Contains(words, word) }
