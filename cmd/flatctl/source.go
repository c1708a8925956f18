package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

// source is where events come from: flatd's control socket, or a NATS server.
type source interface {
	// events hands over the events that are asked for, one after the other, in
	// the order in which they are told, each once. It returns nil when there are
	// no more or ctx has ended, and what tell returns if that is an error.
	//
	// It fails if there is no flatd or server to begin with. When one goes away
	// while it is followed, that is said once, it is waited for, and the events
	// go on.
	events(ctx context.Context, r request, tell func(*report) error) error
}

// request says which events are wanted.
type request struct {
	conditions url.Values // of api.EventFilter; since is a time, see flags
	limit      int        // past events, the newest
	follow     bool       // go on with new ones
	// live, if not nil, is called when everything new from now on will be told, and
	// again after each time that flatd or the server was away.
	live func()
}

// report is one event. It is the source's again once tell has returned.
type report struct {
	host  flows.Host
	event flows.Event
	json  []byte // as it came; not to be shown as it is
}

// parse takes the JSON of an event.
func (r *report) parse(text []byte) (err error) {
	r.json = text
	r.host, err = flows.ParseJSON(text, &r.event)
	return err
}

// socketSource reads from flatd's control socket. flatd itself filters.
type socketSource struct {
	client *client
	// say tells of what the events do not: that flatd has gone, that it does not
	// remember as far back.
	say func(format string, args ...any)
}

func (s *socketSource) events(ctx context.Context, r request, tell func(*report) error) error {
	began := time.Now()
	query := r.query()
	response, err := s.client.do(ctx, http.MethodGet, "/v1/events?"+query.Encode())
	if err != nil {
		return unlessEnded(ctx, err)
	}
	s.tellReach(response.Header, r.conditions.Get("since"))
	// After a break flatd is asked for all it remembers of what was asked for.
	if !query.Has("since") {
		query.Set("since", began.Format(time.RFC3339Nano))
	}
	query.Set("limit", strconv.Itoa(api.RecentMax))
	seen := newSeen(api.RecentMax)
	for {
		if r.live != nil {
			r.live()
		}
		err := read(response.Body, func(one *report) error {
			if !seen.add(string(one.host.AppendID(nil, &one.event))) {
				return nil
			}
			return tell(one)
		})
		response.Body.Close()
		if ctx.Err() != nil {
			return nil
		}
		if _, mendable := errors.AsType[*broken](err); !r.follow || err != nil && !mendable {
			return err
		}
		s.say("flatd has gone away; waiting for it")
		if response, err = s.again(ctx, query); err != nil {
			return unlessEnded(ctx, err)
		}
	}
}

// query is what the control socket is asked.
func (r *request) query() url.Values {
	query := url.Values{"limit": {strconv.Itoa(r.limit)}, "follow": {strconv.FormatBool(r.follow)}}
	for name, values := range r.conditions {
		query[name] = values
	}
	return query
}

// tellReach says so if flatd may have forgotten what was asked for.
func (s *socketSource) tellReach(header http.Header, since string) {
	from, err := time.Parse(time.RFC3339Nano, since)
	oldest, oldestErr := time.Parse(time.RFC3339Nano, header.Get(api.OldestHeader))
	if err == nil && oldestErr == nil && oldest.After(from) {
		s.say("flatd remembers the last %d events, which go back to %s; the journal has more: journalctl -u flatd",
			api.RecentMax, oldest.Local().Format(time.DateTime))
	}
}

// Between two attempts to find what has gone away.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
)

// again asks until flatd answers. One that has just gone may answer for a moment
// yet, so that it waits before it asks, too.
func (s *socketSource) again(ctx context.Context, query url.Values) (*http.Response, error) {
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
		response, err := s.client.do(ctx, http.MethodGet, "/v1/events?"+query.Encode())
		if _, refused := errors.AsType[refusal](err); err == nil || refused || errors.Is(err, fs.ErrPermission) {
			return response, err
		}
	}
}

// broken is the end of an answer that was not to end.
type broken struct{ error }

func (b *broken) Unwrap() error { return b.error }

// read hands over the events of one answer, a line each.
func read(body io.Reader, tell func(*report) error) error {
	lines := bufio.NewReader(body)
	var one report
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return &broken{fmt.Errorf("the connection to flatd broke: %w", err)}
		}
		if err := one.parse(line); err != nil {
			return fmt.Errorf("flatd's answer: %w", err)
		}
		if err := tell(&one); err != nil {
			return err
		}
	}
}

func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// seen remembers so many ids, the latest.
type seen struct {
	ids  map[string]bool
	ring []string
	next int
}

func newSeen(room int) *seen {
	return &seen{ids: make(map[string]bool, room), ring: make([]string, room)}
}

// add reports whether the id is new.
func (s *seen) add(id string) bool {
	if s.ids[id] {
		return false
	}
	delete(s.ids, s.ring[s.next])
	s.ids[id], s.ring[s.next] = true, id
	s.next = (s.next + 1) % len(s.ring)
	return true
}
