package control

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/daemon/pipeline"
)

// limits bound what clients of a socket can make flatd hold and do.
type limits struct {
	connections int           // at once
	atOnce      int           // requests of one user that are being answered
	header      int           // bytes of a request's header
	ask         time.Duration // to send a whole request
	read        time.Duration // to read what was asked for; of a stream, each part
	idle        time.Duration // between two requests
}

// ConnectionsMax is how many connections a socket has at once.
const ConnectionsMax = 128

var usualLimits = limits{
	connections: ConnectionsMax, atOnce: pipeline.FollowersMax + 8, header: 16 << 10,
	ask: 5 * time.Second, read: 30 * time.Second, idle: time.Minute,
}

// clients are those of one socket, as many as its limits allow. When there is no
// room for another, one that has not asked anything yet is closed, the oldest of the
// user who has most connections: a flood crowds out itself and nobody else.
type clients struct {
	limits limits
	log    *slog.Logger
	closed seldom // to make room
	denied seldom // changes by others than root
	others seldom // what the HTTP server complains of

	mu      sync.Mutex
	open    map[net.Conn]*client
	arrived uint64
	left    chan struct{} // holds a token when somebody has gone
}

// client is one connection. What changes is guarded by the mu of clients.
type client struct {
	clients *clients
	conn    net.Conn
	peer    *unix.Ucred // nil if it is not known
	arrived uint64
	served  bool // its request is being answered
}

func newClients(l limits, log *slog.Logger) *clients {
	return &clients{limits: l, log: log, open: make(map[net.Conn]*client), left: make(chan struct{}, 1)}
}

// server has handler answer the requests that the limits allow.
func (c *clients) server(ctx context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           c.attend(handler),
		ReadHeaderTimeout: c.limits.ask,
		ReadTimeout:       c.limits.ask,
		IdleTimeout:       c.limits.idle,
		MaxHeaderBytes:    c.limits.header,
		ErrorLog:          log.New(c, "", 0),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       c.enter,
		ConnState: func(conn net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				c.leave(conn)
			}
		},
	}
}

type clientKey struct{}

// enter lets a connection in, and another out if there is no room. The server
// closes the connection itself when its first read fails.
func (c *clients) enter(ctx context.Context, conn net.Conn) context.Context {
	one := &client{clients: c, conn: conn, peer: peerOf(conn)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrived++
	one.arrived = c.arrived
	c.open[conn] = one
	if len(c.open) > c.limits.connections {
		out := c.choose()
		out.conn.Close()
		delete(c.open, out.conn)
		c.closed.log(func(before uint64) {
			c.log.Warn("too many connections at once; closing those that ask nothing",
				"limit", c.limits.connections, "user", out.user(), "closed before", before)
		})
	}
	return context.WithValue(ctx, clientKey{}, one)
}

// choose picks who has to leave. The newest has not asked anything yet, so there
// is one.
func (c *clients) choose() (out *client) {
	inside := make(map[int]int)
	for _, one := range c.open {
		inside[one.user()]++
	}
	for _, one := range c.open {
		if one.served {
			continue
		}
		if out == nil || inside[one.user()] > inside[out.user()] ||
			inside[one.user()] == inside[out.user()] && one.arrived < out.arrived {
			out = one
		}
	}
	return out
}

func (c *clients) leave(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
	select {
	case c.left <- struct{}{}:
	default:
	}
}

// empty waits until nobody is inside, or ctx ends.
func (c *clients) empty(ctx context.Context) {
	inside := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.open)
	}
	for inside() > 0 {
		select {
		case <-c.left:
		case <-ctx.Done():
			return
		}
	}
}

// attend bounds each request. No route wants a body, so one is not waited for.
func (c *clients) attend(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one := clientOf(r)
		if http.NewResponseController(w).SetWriteDeadline(time.Now().Add(c.limits.read)) != nil {
			return // gone
		}
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			refuse(w, http.StatusRequestEntityTooLarge, errors.New("no request here has a body"))
			return
		}
		if !c.begin(one) {
			refuse(w, http.StatusTooManyRequests, errors.New("too many requests of this user at once; end one first"))
			return
		}
		defer c.end(one)
		next.ServeHTTP(w, r)
	})
}

// begin reports whether a request of this client may be answered now.
func (c *clients) begin(one *client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	served := 0
	for _, other := range c.open {
		if other.served && other.user() == one.user() {
			served++
		}
	}
	one.served = served < c.limits.atOnce
	return one.served
}

func (c *clients) end(one *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one.served = false
}

// Write takes the HTTP server's complaints, which a client may cause at will.
func (c *clients) Write(line []byte) (int, error) {
	c.others.log(func(before uint64) {
		c.log.Warn("trouble with a client", "error", strings.TrimSpace(string(line)), "not told before", before)
	})
	return len(line), nil
}

// rootOnly lets nobody else through: the group may look, not change.
func (c *clients) rootOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		one := clientOf(r)
		if one.user() != 0 {
			c.denied.log(func(before uint64) {
				c.log.Warn("refused a change to somebody who is not root", "request", r.Method+" "+r.URL.Path, "user", one.user(), "refused before", before)
			})
			refuse(w, http.StatusForbidden, errors.New("only root may do this"))
			return
		}
		next(w, r)
	}
}

// clientOf returns the client whose request it is. Every request has one.
func clientOf(r *http.Request) *client { return r.Context().Value(clientKey{}).(*client) }

const unknownUser = -1

func (c *client) user() int {
	if c.peer == nil {
		return unknownUser
	}
	return int(c.peer.Uid)
}

// peerOf returns who is on the other end of a Unix socket (SO_PEERCRED), nil on
// any other.
func peerOf(c net.Conn) *unix.Ucred {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return nil
	}
	var peer *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if errors.Join(controlErr, err) != nil {
		return nil
	}
	return peer
}

// seldom limits a log line to one per minute.
type seldom struct {
	mu      sync.Mutex
	next    time.Time
	skipped uint64
}

const seldomEvery = time.Minute

// log calls say, with how often it was skipped since the last time, or skips it.
func (s *seldom) log(say func(skipped uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Before(s.next) {
		s.skipped++
		return
	}
	say(s.skipped)
	s.next, s.skipped = now.Add(seldomEvery), 0
}
