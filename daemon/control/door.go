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

// door lets clients in to a socket, as many as there is room for. When there is
// none, one that has not asked anything yet has to leave, the oldest of the user
// who has most inside: a flood crowds out itself and nobody else.
type door struct {
	limits limits
	log    *slog.Logger
	turned seldom // away, because there is no room
	denied seldom // to change anything
	others seldom // what the HTTP server complains of

	mu      sync.Mutex
	guests  map[net.Conn]*guest
	arrived uint64
	left    chan struct{} // holds a token when somebody has gone
}

// guest is one connection. What changes is guarded by the door's mu.
type guest struct {
	door    *door
	conn    net.Conn
	peer    *unix.Ucred // nil if it is not known
	arrived uint64
	served  bool // a request of its is being answered
}

func newDoor(l limits, log *slog.Logger) *door {
	return &door{limits: l, log: log, guests: make(map[net.Conn]*guest), left: make(chan struct{}, 1)}
}

// server answers with what handler makes of those whom the door lets in.
func (d *door) server(ctx context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           d.attend(handler),
		ReadHeaderTimeout: d.limits.ask,
		ReadTimeout:       d.limits.ask,
		IdleTimeout:       d.limits.idle,
		MaxHeaderBytes:    d.limits.header,
		ErrorLog:          log.New(d, "", 0),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       d.enter,
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				d.leave(c)
			}
		},
	}
}

type guestKey struct{}

// enter lets a connection in, and another out if there is no room. The server
// closes the connection itself when its first read fails.
func (d *door) enter(ctx context.Context, c net.Conn) context.Context {
	g := &guest{door: d, conn: c, peer: peerOf(c)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrived++
	g.arrived = d.arrived
	d.guests[c] = g
	if len(d.guests) > d.limits.connections {
		out := d.choose()
		out.conn.Close()
		delete(d.guests, out.conn)
		d.turned.log(func(before uint64) {
			d.log.Warn("too many connections at once; closing those that ask nothing",
				"limit", d.limits.connections, "user", out.user(), "closed before", before)
		})
	}
	return context.WithValue(ctx, guestKey{}, g)
}

// choose picks who has to leave. The newest has not asked anything yet, so there
// is one.
func (d *door) choose() (out *guest) {
	inside := make(map[int]int)
	for _, g := range d.guests {
		inside[g.user()]++
	}
	for _, g := range d.guests {
		if g.served {
			continue
		}
		if out == nil || inside[g.user()] > inside[out.user()] ||
			inside[g.user()] == inside[out.user()] && g.arrived < out.arrived {
			out = g
		}
	}
	return out
}

func (d *door) leave(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.guests, c)
	select {
	case d.left <- struct{}{}:
	default:
	}
}

// empty waits until nobody is inside, or ctx ends.
func (d *door) empty(ctx context.Context) {
	inside := func() int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.guests)
	}
	for inside() > 0 {
		select {
		case <-d.left:
		case <-ctx.Done():
			return
		}
	}
}

// attend bounds each request. No route wants a body, so one is not waited for.
func (d *door) attend(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := guestOf(r)
		if http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d.limits.read)) != nil {
			return // gone
		}
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			refuse(w, http.StatusRequestEntityTooLarge, errors.New("no request here has a body"))
			return
		}
		if !d.begin(g) {
			refuse(w, http.StatusTooManyRequests, errors.New("too many requests of this user at once; end one first"))
			return
		}
		defer d.end(g)
		next.ServeHTTP(w, r)
	})
}

// begin reports whether a request of this guest may be answered now.
func (d *door) begin(g *guest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	served := 0
	for _, other := range d.guests {
		if other.served && other.user() == g.user() {
			served++
		}
	}
	g.served = served < d.limits.atOnce
	return g.served
}

func (d *door) end(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g.served = false
}

// Write takes the HTTP server's complaints, which a client may cause at will.
func (d *door) Write(line []byte) (int, error) {
	d.others.log(func(before uint64) {
		d.log.Warn("trouble with a client", "error", strings.TrimSpace(string(line)), "not told before", before)
	})
	return len(line), nil
}

// rootOnly lets nobody else through: the group may look, not change.
func (d *door) rootOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		g := guestOf(r)
		if g.user() != 0 {
			d.denied.log(func(before uint64) {
				d.log.Warn("refused a change to somebody who is not root", "request", r.Method+" "+r.URL.Path, "user", g.user(), "refused before", before)
			})
			refuse(w, http.StatusForbidden, errors.New("only root may do this"))
			return
		}
		next(w, r)
	}
}

// guestOf returns whose request it is. There is nobody without a door.
func guestOf(r *http.Request) *guest { return r.Context().Value(guestKey{}).(*guest) }

const unknownUser = -1

func (g *guest) user() int {
	if g.peer == nil {
		return unknownUser
	}
	return int(g.peer.Uid)
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
