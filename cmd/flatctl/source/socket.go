package source

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
)

// socketSource reads from flatd's control socket. flatd itself filters.
type socketSource struct {
	client *Client
	say    Say
}

// NewSocket reads from the flatd that c asks.
func NewSocket(c *Client, say Say) Source { return &socketSource{c, say} }

// Remote implements Source.
func (s *socketSource) Remote() bool { return false }

// Events implements Source.
func (s *socketSource) Events(ctx context.Context, r Request, take func(*Report) error) error {
	began := time.Now()
	query := r.query()
	response, err := s.client.do(ctx, http.MethodGet, "/v1/events?"+query.Encode())
	if err != nil {
		return UnlessEnded(ctx, err)
	}
	s.sayReach(response.Header, r.Conditions.Get("since"))
	// After a break flatd is asked for all it remembers of what was asked for.
	if !query.Has("since") {
		query.Set("since", began.Format(time.RFC3339Nano))
	}
	query.Set("limit", strconv.Itoa(api.RecentMax))
	seen := newSeen(api.RecentMax)
	for {
		if r.Live != nil {
			r.Live()
		}
		err := read(response.Body, func(one *Report) error {
			if !seen.add(string(one.Host.AppendID(nil, &one.Event))) {
				return nil
			}
			return take(one)
		})
		response.Body.Close()
		if ctx.Err() != nil {
			return nil
		}
		if _, mendable := errors.AsType[*broken](err); !r.Follow || err != nil && !mendable {
			return err
		}
		s.say("flatd has gone away; waiting for it")
		if response, err = s.again(ctx, query); err != nil {
			return UnlessEnded(ctx, err)
		}
	}
}

// query is what the control socket is asked.
func (r *Request) query() url.Values {
	query := url.Values{"limit": {strconv.Itoa(r.Limit)}, "follow": {strconv.FormatBool(r.Follow)}}
	for name, values := range r.Conditions {
		query[name] = values
	}
	return query
}

// sayReach says so if flatd may have forgotten what was asked for.
func (s *socketSource) sayReach(header http.Header, since string) {
	from, err := time.Parse(time.RFC3339Nano, since)
	oldest, oldestErr := time.Parse(time.RFC3339Nano, header.Get(api.OldestHeader))
	if err == nil && oldestErr == nil && oldest.After(from) {
		s.say("flatd remembers the last %d events, which go back to %s; the journal has more: journalctl -u flatd",
			api.RecentMax, oldest.Local().Format(time.DateTime))
	}
}

// RetryMax is the longest pause between two attempts to reach what has gone away.
const (
	RetryMax = 2 * time.Second
	retryMin = 100 * time.Millisecond
)

// again asks until flatd answers. One that has just gone may answer for a moment
// yet, so that it waits before it asks, too.
func (s *socketSource) again(ctx context.Context, query url.Values) (*http.Response, error) {
	for pause := retryMin; ; pause = min(2*pause, RetryMax) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
		response, err := s.client.do(ctx, http.MethodGet, "/v1/events?"+query.Encode())
		if _, refused := errors.AsType[Refusal](err); err == nil || refused || errors.Is(err, fs.ErrPermission) {
			return response, err
		}
	}
}

// broken is the end of an answer that was not to end.
type broken struct{ error }

func (b *broken) Unwrap() error { return b.error }

// read hands over the events of one answer, a line each.
func read(body io.Reader, take func(*Report) error) error {
	lines := bufio.NewReader(body)
	var one Report
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
		if err := take(&one); err != nil {
			return err
		}
	}
}
