package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/flows"
)

// Routes on the control socket, HTTP/1.1 with JSON:
//
//	GET  /v1/status      how flatd is (Status)
//	GET  /v1/events      recent events, JSON lines; ?follow=true goes on, see parseQuery
//	GET  /v1/summary     the events of the latest summary, a JSON array; ?format=text a sentence each
//	GET  /v1/interfaces  what is measured, and what is not and why
//	GET  /v1/config      the configuration in force; ?format=toml as in the file
//	POST /v1/reload      read the configuration again; root only
//	GET  /healthz        200 if everything makes progress, else 503
//	GET  /metrics        Prometheus
func (d *Daemon) controlRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		status, err := d.Status()
		answer(w, status, err)
	})
	mux.HandleFunc("GET /v1/events", d.serveEvents)
	mux.HandleFunc("GET /v1/summary", d.serveSummary)
	mux.HandleFunc("GET /v1/interfaces", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.interfaces(), nil) })
	mux.HandleFunc("GET /v1/config", d.serveConfig)
	mux.Handle("POST /v1/reload", rootOnly(http.HandlerFunc(d.serveReload)))
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
	serve := func(l net.Listener, handler http.Handler) {
		server := &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 5 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
			BaseContext:       func(net.Listener) context.Context { return ctx },
			ConnContext:       rememberPeer,
		}
		tasks.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		tasks.Go(func() error {
			<-ctx.Done() // followers end with it
			last, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := server.Shutdown(last); err != nil {
				return server.Close()
			}
			return nil
		})
	}
	serve(s.control, d.controlRoutes())
	for _, l := range s.metrics {
		serve(l, d.metricsRoutes())
	}
	return tasks.Wait()
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
	table := d.current().table()
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
		if errors.Is(err, ErrConfig) {
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
	events := d.pipeline.summary.finished()
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
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	var events []flows.Event
	var f *follower
	if q.follow {
		if events, f, err = d.recent.follow(q.limit, q.match); err != nil {
			refuse(w, http.StatusTooManyRequests, err)
			return
		}
		defer d.recent.unfollow(f)
	} else {
		events = d.recent.latest(q.limit, q.match)
	}
	stream := eventStream{response: http.NewResponseController(w), writer: w, append: d.host.AppendJSON}
	contentType := "application/x-ndjson"
	if q.text {
		contentType = "text/plain; charset=utf-8"
		stream.append = func(dst []byte, e *flows.Event) []byte { return d.host.AppendLine(dst, e, q.color) }
	}
	w.Header().Set("Content-Type", contentType)
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
func (d *Daemon) follow(ctx context.Context, f *follower, stream *eventStream) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-f.events:
			if stream.write(&e) != nil {
				return
			}
		}
		if len(f.events) > 0 {
			continue
		}
		if missed := d.recent.takeMissed(f); missed > 0 {
			loss := d.pipeline.lossEvent(missed, fmt.Sprintf("this follower was too slow and missed %d events", missed))
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
	line     []byte
}

// clientTime bounds how long a client may take to read what it asked for.
const clientTime = 30 * time.Second

func (s *eventStream) write(e *flows.Event) error {
	s.line = append(s.append(s.line[:0], e), '\n')
	if err := s.response.SetWriteDeadline(time.Now().Add(clientTime)); err != nil {
		return err
	}
	_, err := s.writer.Write(s.line)
	return err
}

func (s *eventStream) flush() error { return s.response.Flush() }

type peerKey struct{}

// rememberPeer notes the user on the other end of a Unix socket (SO_PEERCRED).
func rememberPeer(ctx context.Context, c net.Conn) context.Context {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return ctx
	}
	var peer *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || controlErr != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// rootOnly lets nobody else through: the group may look, not change.
func rootOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := r.Context().Value(peerKey{}).(*unix.Ucred)
		if !ok || peer.Uid != 0 {
			refuse(w, http.StatusForbidden, errors.New("only root may do this"))
			return
		}
		next.ServeHTTP(w, r)
	})
}
