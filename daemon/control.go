package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sync/errgroup"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/daemon/pipeline"
	"github.com/flatd/flatd/flows"
)

// Routes on the control socket, HTTP/1.1 with JSON:
//
//	GET  /v1/status      how flatd is (Status)
//	GET  /v1/events      recent events, JSON lines; ?follow=true goes on, see api.ParseEventsQuery
//	GET  /v1/summary     the events of the latest summary, a JSON array; ?format=text a sentence each
//	GET  /v1/histogram   the kernel's histograms of durations, see api.HistogramQuery
//	GET  /v1/interfaces  what is measured, and what is not and why
//	GET  /v1/config      the configuration in force; ?format=toml as in the file
//	POST /v1/reload      read the configuration again; root only
//	GET  /healthz        200 if everything makes progress, else 503
//	GET  /metrics        Prometheus
func (d *Daemon) controlRoutes(entrance *door) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		status, err := d.Status()
		answer(w, status, err)
	})
	mux.HandleFunc("GET /v1/events", d.serveEvents)
	mux.HandleFunc("GET /v1/summary", d.serveSummary)
	mux.HandleFunc("GET /v1/histogram", d.serveHistogram)
	mux.HandleFunc("GET /v1/interfaces", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.interfaces(), nil) })
	mux.HandleFunc("GET /v1/config", d.serveConfig)
	mux.HandleFunc("POST /v1/reload", entrance.rootOnly(d.serveReload))
	mux.HandleFunc("GET /healthz", d.serveHealth)
	mux.Handle("GET /metrics", d.metricsHandler())
	return mux
}

func (d *Daemon) metricsRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", d.serveHealth)
	mux.Handle("GET /metrics", d.metricsHandler())
	return mux
}

// serve answers on the sockets until ctx ends.
func (s *service) serve(ctx context.Context, d *Daemon) error {
	tasks, ctx := errgroup.WithContext(ctx)
	control := newDoor(usualLimits, s.log.With("socket", ControlSocketName))
	tasks.Go(func() error { return serveAt(ctx, s.control, control, d.controlRoutes(control)) })
	for _, l := range s.metrics {
		metrics := newDoor(usualLimits, s.log.With("socket", MetricsSocketName))
		tasks.Go(func() error { return serveAt(ctx, l, metrics, d.metricsRoutes()) })
	}
	return tasks.Wait()
}

// serveAt answers on one socket until ctx ends. Followers end with it; others
// have a second to read their answer. Who connects later finds the next daemon.
func serveAt(ctx context.Context, l net.Listener, entrance *door, handler http.Handler) error {
	server := entrance.server(ctx, handler)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	err := server.Serve(l)
	if stop() {
		return err // ctx has nothing to do with it
	}
	// Not by Shutdown, which leaves those without an answer whose request it is
	// still reading.
	server.SetKeepAlivesEnabled(false)
	last, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	entrance.empty(last)
	_ = server.Close() // whoever has not read it by now
	return nil
}

func answer(w http.ResponseWriter, value any, err error) {
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(value) // the client has gone
}

// refuse answers with {"error": "..."}.
func refuse(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

func (d *Daemon) serveConfig(w http.ResponseWriter, r *http.Request) {
	table := d.current().Table()
	if r.URL.Query().Get("format") != "toml" {
		answer(w, table, nil)
		return
	}
	w.Header().Set("Content-Type", "application/toml")
	_ = toml.NewEncoder(w).Encode(table) // the client has gone
}

func (d *Daemon) serveReload(w http.ResponseWriter, _ *http.Request) {
	if err := d.Reload(); err != nil {
		code := http.StatusInternalServerError
		if errors.Is(err, config.ErrInvalid) {
			code = http.StatusUnprocessableEntity
		}
		refuse(w, code, err)
		return
	}
	answer(w, map[string]string{"result": "reloaded"}, nil)
}

func (d *Daemon) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if stuck := d.stuck(); stuck != "" {
		refuse(w, http.StatusServiceUnavailable, fmt.Errorf("no progress: %s", stuck))
		return
	}
	answer(w, map[string]string{"health": "ok"}, nil)
}

// serveSummary writes what the latest interval that is over came to.
func (d *Daemon) serveSummary(w http.ResponseWriter, r *http.Request) {
	events := d.pipeline.Summaries()
	var text []byte
	if r.URL.Query().Get("format") == "text" {
		for i := range events {
			text = append(flows.AppendText(text, &events[i]), '\n')
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	} else {
		text = d.appendArray(text, events)
		w.Header().Set("Content-Type", "application/json")
	}
	_, _ = w.Write(text) // the client has gone
}

// appendArray appends events as a JSON array, a line each.
func (d *Daemon) appendArray(dst []byte, events []flows.Event) []byte {
	dst = append(dst, '[')
	for i := range events {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = d.host.AppendJSON(append(dst, '\n'), &events[i])
	}
	return append(dst, "\n]\n"...)
}

// serveEvents writes events as JSON lines.
func (d *Daemon) serveEvents(w http.ResponseWriter, r *http.Request) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	q, err := api.ParseEventsQuery(values)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	var events []flows.Event
	var f *pipeline.Follower
	if q.Follow {
		if events, f, err = d.recent.Follow(q.Limit, q.Match); err != nil {
			refuse(w, http.StatusTooManyRequests, err)
			return
		}
		defer d.recent.Unfollow(f)
	} else {
		events = d.recent.Latest(q.Limit, q.Match)
	}
	stream := eventStream{
		response: http.NewResponseController(w), writer: w, append: d.host.AppendJSON,
		patience: guestOf(r).door.limits.read,
	}
	contentType := "application/x-ndjson"
	if q.Text {
		contentType = "text/plain; charset=utf-8"
		stream.append = func(dst []byte, e *flows.Event) []byte { return d.host.AppendLine(dst, e, q.Color) }
	}
	w.Header().Set("Content-Type", contentType)
	if at, forgotten := d.recent.Oldest(); forgotten {
		w.Header().Set(api.OldestHeader, at.UTC().Format(time.RFC3339Nano))
	}
	for i := range events {
		if stream.write(&events[i]) != nil {
			return
		}
	}
	if f != nil && stream.flush() == nil {
		d.follow(r.Context(), f, &stream)
	}
}

// follow writes what comes until the client goes or ctx ends.
func (d *Daemon) follow(ctx context.Context, f *pipeline.Follower, stream *eventStream) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-f.Events:
			if stream.write(&e) != nil {
				return
			}
		}
		if len(f.Events) > 0 {
			continue
		}
		if missed := d.recent.TakeMissed(f); missed > 0 {
			loss := d.pipeline.LossEvent(missed, fmt.Sprintf("this follower was too slow and missed %d events", missed))
			_ = stream.write(&loss)
		}
		if stream.flush() != nil {
			return
		}
	}
}

// eventStream writes events to a client, a line each.
type eventStream struct {
	append   func(dst []byte, e *flows.Event) []byte
	response *http.ResponseController
	writer   http.ResponseWriter
	patience time.Duration // with a client that does not read
	line     []byte
}

func (s *eventStream) write(e *flows.Event) error {
	s.line = append(s.append(s.line[:0], e), '\n')
	if err := s.response.SetWriteDeadline(time.Now().Add(s.patience)); err != nil {
		return err
	}
	_, err := s.writer.Write(s.line)
	return err
}

func (s *eventStream) flush() error { return s.response.Flush() }
