// Package control answers on flatd's sockets: HTTP/1.1 with JSON, and Prometheus.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sync/errgroup"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/daemon/pipeline"
	"github.com/flatd/flatd/flows"
)

// The names of inherited sockets: FileDescriptorName= in flatd.socket and
// flatd-metrics.socket.
const (
	SocketName        = "control"
	MetricsSocketName = "metrics"
)

// Daemon is what is asked for the answers.
type Daemon interface {
	Status() (api.Status, error)
	Interfaces() []api.InterfaceStatus
	Config() config.Config
	Reload() error
	Stuck() string                      // what makes no progress, or ""
	Finished() ([]bpf.Histogram, error) // the kernel's histograms of exchanges that had an answer
}

// Control answers for a daemon.
type Control struct {
	daemon   Daemon
	pipeline *pipeline.Pipeline
	host     func() *flows.Host
	recent   *pipeline.Recent
}

// New makes one. The daemon is asked only once Serve, Histograms or AppendArray is called.
func New(daemon Daemon, p *pipeline.Pipeline, host func() *flows.Host, recent *pipeline.Recent) *Control {
	return &Control{daemon, p, host, recent}
}

// routes on the control socket, HTTP/1.1 with JSON:
//
//	GET  /v1/status      how flatd is (Status)
//	GET  /v1/events      recent events, JSON lines; ?follow=true continues, see api.ParseEventsQuery
//	GET  /v1/summary     the events of the latest summary, a JSON array; ?format=text a sentence each
//	GET  /v1/histogram   the kernel's histograms of durations, see api.HistogramQuery
//	GET  /v1/interfaces  what is measured, and what is not and why
//	GET  /v1/config      the configuration in force; ?format=toml as in the file
//	POST /v1/reload      read the configuration again; root only
//	GET  /healthz        200 if everything makes progress, else 503
//	GET  /metrics        Prometheus
func (c *Control) routes(clients *clients) http.Handler {
	mux := c.metricsRoutes()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		status, err := c.daemon.Status()
		answer(w, status, err)
	})
	mux.HandleFunc("GET /v1/events", c.serveEvents)
	mux.HandleFunc("GET /v1/summary", c.serveSummary)
	mux.HandleFunc("GET /v1/histogram", c.serveHistogram)
	mux.HandleFunc("GET /v1/interfaces", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.daemon.Interfaces(), nil) })
	mux.HandleFunc("GET /v1/config", c.serveConfig)
	mux.HandleFunc("POST /v1/reload", clients.rootOnly(c.serveReload))
	return mux
}

// metricsRoutes are those that sockets for metrics have, too.
func (c *Control) metricsRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", c.serveHealth)
	mux.Handle("GET /metrics", c.metricsHandler())
	return mux
}

// Serve answers on the control socket and on those for metrics until ctx ends.
func (c *Control) Serve(ctx context.Context, control net.Listener, metrics []net.Listener, log *slog.Logger) error {
	tasks, ctx := errgroup.WithContext(ctx)
	clients := newClients(usualLimits, log.With("socket", SocketName))
	tasks.Go(func() error { return serveAt(ctx, control, clients, c.routes(clients)) })
	for _, l := range metrics {
		clients := newClients(usualLimits, log.With("socket", MetricsSocketName))
		tasks.Go(func() error { return serveAt(ctx, l, clients, c.metricsRoutes()) })
	}
	return tasks.Wait()
}

// serveAt answers on one socket until ctx ends. Followers end with it; others
// have a second to read their answer. Who connects later finds the next daemon.
func serveAt(ctx context.Context, l net.Listener, clients *clients, handler http.Handler) error {
	server := clients.server(ctx, handler)
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
	clients.empty(last)
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

func (c *Control) serveConfig(w http.ResponseWriter, r *http.Request) {
	table := c.daemon.Config().Table()
	if r.URL.Query().Get("format") != "toml" {
		answer(w, table, nil)
		return
	}
	w.Header().Set("Content-Type", "application/toml")
	_ = toml.NewEncoder(w).Encode(table) // the client has gone
}

func (c *Control) serveReload(w http.ResponseWriter, _ *http.Request) {
	if err := c.daemon.Reload(); err != nil {
		code := http.StatusInternalServerError
		if errors.Is(err, config.ErrInvalid) {
			code = http.StatusUnprocessableEntity
		}
		refuse(w, code, err)
		return
	}
	answer(w, map[string]string{"result": "reloaded"}, nil)
}

func (c *Control) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if stuck := c.daemon.Stuck(); stuck != "" {
		refuse(w, http.StatusServiceUnavailable, fmt.Errorf("no progress: %s", stuck))
		return
	}
	answer(w, map[string]string{"health": "ok"}, nil)
}

// serveSummary writes what the latest interval that is over came to.
func (c *Control) serveSummary(w http.ResponseWriter, r *http.Request) {
	events := c.pipeline.Summaries()
	var text []byte
	if r.URL.Query().Get("format") == "text" {
		for i := range events {
			text = append(flows.AppendText(text, &events[i]), '\n')
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	} else {
		text = c.AppendArray(text, events)
		w.Header().Set("Content-Type", "application/json")
	}
	_, _ = w.Write(text) // the client has gone
}

// AppendArray appends events as a JSON array, a line each.
func (c *Control) AppendArray(dst []byte, events []flows.Event) []byte {
	dst = append(dst, '[')
	for i := range events {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = c.host().AppendJSON(append(dst, '\n'), &events[i])
	}
	return append(dst, "\n]\n"...)
}

// serveEvents writes events as JSON lines.
func (c *Control) serveEvents(w http.ResponseWriter, r *http.Request) {
	var q api.EventsQuery
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil {
		q, err = api.ParseEventsQuery(values)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	var events []flows.Event
	var f *pipeline.Follower
	if q.Follow {
		if events, f, err = c.recent.Follow(clientOf(r).user(), q.Limit, q.Match); err != nil {
			refuse(w, http.StatusTooManyRequests, err)
			return
		}
		defer c.recent.Unfollow(f)
	} else {
		events = c.recent.Latest(q.Limit, q.Match)
	}
	stream := eventStream{
		response: http.NewResponseController(w), writer: w, append: func(dst []byte, e *flows.Event) []byte { return c.host().AppendJSON(dst, e) },
		patience: clientOf(r).clients.limits.read,
	}
	contentType := "application/x-ndjson"
	if q.Text {
		contentType = "text/plain; charset=utf-8"
		stream.append = func(dst []byte, e *flows.Event) []byte { return c.host().AppendLine(dst, e, q.Color) }
	}
	w.Header().Set("Content-Type", contentType)
	if at, forgotten := c.recent.Oldest(); forgotten {
		w.Header().Set(api.OldestHeader, at.UTC().Format(time.RFC3339Nano))
	}
	for i := range events {
		if stream.write(&events[i]) != nil {
			return
		}
	}
	if f != nil && stream.flush() == nil {
		c.follow(r.Context(), f, &stream)
	}
}

// follow writes what comes until the client goes or ctx ends.
func (c *Control) follow(ctx context.Context, f *pipeline.Follower, stream *eventStream) {
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
		if missed := c.recent.TakeMissed(f); missed > 0 {
			loss := c.pipeline.LossEvent(missed, fmt.Sprintf("this follower was too slow and missed %d events", missed))
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
