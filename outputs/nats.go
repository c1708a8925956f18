package outputs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flatd/flatd/flows"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How events are published.
const (
	ModeAuto      = "auto"      // JetStream for each subject that a stream takes, else core
	ModeCore      = "core"      // to whoever listens at the moment
	ModeJetStream = "jetstream" // stored: delivered means acknowledged by a stream
)

// NATSOptions configure a NATS. What authenticates is named by file, so that it
// can be a systemd credential, and read anew at each connect.
type NATSOptions struct {
	Host    func() *flows.Host // as it is called at the moment
	URL     string             // one or more servers, separated by commas
	Subject string             // default DefaultSubject; see ParseSubject
	Mode    string             // default ModeAuto

	// At most one of these four.
	Credentials string // file of a user's JWT and seed
	NKey        string // file of a user's nkey seed
	Token       string // file
	User        string // a name, not a file
	Password    string // file, together with User

	CA        string // file of the certificates to trust, default the system's
	Cert, Key string // files of the client's certificate and key
}

const (
	natsRetryMin = 100 * time.Millisecond
	natsRetryMax = 5 * time.Second
	natsPing     = 20 * time.Second // a dead connection is noticed after three
	// routesFor is how long it is believed that a stream takes a subject or
	// that none does.
	routesFor = time.Minute
	// natsPaceMax is how many events go to the server before its answer is
	// waited for; fewer while it is slow.
	natsPaceMax = batchMax
)

// NATS publishes events to a NATS server, one message each. Nats-Msg-Id is the
// event's id: after a failure up to one batch is published again, and a stream
// drops such duplicates within its window (two minutes by default).
//
// An event whose subject may not be published to has failed, if events of other
// subjects are taken; it holds up nothing. A server that takes none at all is an
// error of the output, and the queue keeps what there is until that is repaired.
type NATS struct {
	options NATSOptions
	mode    string
	subject Subject
	server  string // the URLs without passwords, for errors
	ready   chan struct{}
	closing chan struct{} // closed by Close

	mu      sync.Mutex
	conn    *nats.Conn // nil until the first dial is over
	streams jetstream.JetStream
	greeted bool // has waited for the first connection; for Write alone
	dialing bool
	told    bool // the client has told of a connection
	closed  bool
	lost    error // why there is no connection, as far as known

	reconnected atomic.Bool // since the routes were last cleared

	// For the goroutine that calls Write alone.
	routes    map[string]route
	silent    map[string]bool // streams that do not acknowledge
	routesAt  time.Time
	noStreams bool                // nor is it worth asking for any
	refusals  map[string]*refusal // by subject
	pace      int                 // events published at once
	text      []byte
	message   *message // for core mode
	out       []outgoing
}

// NewNATS checks the options, reads the files they name once, and begins to
// connect. It never waits for a server.
func NewNATS(o NATSOptions) (*NATS, error) {
	n := &NATS{options: o, mode: cmp.Or(o.Mode, ModeAuto), ready: make(chan struct{}, 1), closing: make(chan struct{}), routes: make(map[string]route), silent: make(map[string]bool), refusals: make(map[string]*refusal), pace: natsPaceMax, message: newMessage()}
	if err := n.configure(); err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	n.connect()
	return n, nil
}

func (n *NATS) configure() (err error) {
	switch n.mode {
	case ModeAuto, ModeCore, ModeJetStream:
	default:
		return fmt.Errorf("mode %q: must be %q, %q or %q", n.mode, ModeAuto, ModeCore, ModeJetStream)
	}
	if n.subject, err = ParseSubject(cmp.Or(n.options.Subject, DefaultSubject)); err != nil {
		return err
	}
	n.server, err = n.options.check()
	return err
}

// check looks at where to connect and how to log in, and returns the URLs without
// passwords.
func (o *NATSOptions) check() (server string, err error) {
	if server, err = redact(o.URL); err == nil {
		_, err = o.secrets()
	}
	return server, err
}

// NATSSchemes are those that the URL of a server may have.
var NATSSchemes = []string{"nats", "tls", "ws", "wss"}

// redact checks the URLs and returns them without passwords.
func redact(urls string) (string, error) {
	var servers []string
	for server := range strings.SplitSeq(urls, ",") {
		server = strings.TrimSpace(server)
		if !strings.Contains(server, "://") {
			server = "nats://" + server
		}
		u, err := url.Parse(server)
		if err != nil {
			return "", errors.New("url: is not of the form nats://host:port") // err would show a password
		}
		if !slices.Contains(NATSSchemes, u.Scheme) {
			return "", fmt.Errorf("url: scheme %q: must be one of %s", u.Scheme, strings.Join(NATSSchemes, ", "))
		}
		if u.Host == "" {
			return "", fmt.Errorf("url: %s names no host: write nats://host:port", u.Redacted())
		}
		servers = append(servers, u.Redacted())
	}
	return strings.Join(servers, ","), nil
}

// persistent is how a connection is kept for as long as flatd wants it. The
// client's own buffer is off: what cannot be sent now is the caller's to keep.
func persistent(name string) []nats.Option {
	return []nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // permissions and passwords get repaired, too
		nats.ReconnectBufSize(-1),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.FlusherTimeout(WriteTimeout),
		nats.PingInterval(natsPing),
	}
}

// behaviour is how the connection for events is kept.
func (n *NATS) behaviour() []nats.Option {
	return append(persistent("flatd on "+n.options.Host().Name),
		nats.SkipSubjectValidation(), // ParseSubject did it
		nats.ConnectHandler(n.up),
		nats.ReconnectHandler(n.up),
		nats.DisconnectErrHandler(n.down),
		nats.ReconnectErrHandler(n.down),
		nats.ErrorHandler(func(c *nats.Conn, _ *nats.Subscription, err error) { n.down(c, err) }),
	)
}

// reconnectDelay doubles up to five seconds. The second half of it is random,
// so that a fleet does not come back all at once.
func reconnectDelay(attempt int) time.Duration {
	d := min(natsRetryMin<<min(attempt, 10), natsRetryMax)
	return d/2 + rand.N(d/2)
}

func (n *NATS) up(*nats.Conn) {
	n.reconnected.Store(true)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost, n.told = nil, true
	n.signal()
}

// signal says that there is a connection, once it can be used: the client may
// tell of it (up) before it hands it over (connect). n.mu is held.
func (n *NATS) signal() {
	if !n.told || n.conn == nil {
		return
	}
	select {
	case n.ready <- struct{}{}:
	default:
	}
}

func (n *NATS) down(c *nats.Conn, err error) {
	if err == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = err
	if c == n.conn && n.options.staleLogin(err) {
		n.conn, n.told = nil, false // the next Write connects anew
		go c.Close()                // not by its own callback
	}
}

// connect dials in the background until there is a connection; the client then
// mends it by itself. Names have to be looked up, and a server that does not
// answer takes two seconds. n.mu is held.
func (n *NATS) connect() {
	n.dialing = true
	go func() {
		for attempt := 1; !n.dial(); attempt++ {
			select {
			case <-n.closing:
				return
			case <-time.After(reconnectDelay(attempt)):
			}
		}
	}()
}

// dial makes one attempt, and returns whether it was the last.
func (n *NATS) dial() bool {
	conn, err := n.options.connect(n.behaviour()...)
	var streams jetstream.JetStream
	if err == nil {
		streams, err = jetstream.New(conn)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.lost = err
		return n.closed
	}
	n.conn, n.streams, n.dialing = conn, streams, false
	if n.closed {
		conn.Close()
	}
	n.signal()
	return true
}

// connected returns the connection, or why there is none.
func (n *NATS) connected() (*nats.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil && n.conn.IsConnected() {
		return n.conn, nil
	}
	if n.conn == nil && !n.dialing && !n.closed {
		n.connect() // anew; see down
	}
	lost := n.lost
	if n.conn != nil && n.conn.LastError() != nil {
		lost = n.conn.LastError() // of the latest attempt, if it got as far as TLS; no handler is told
	}
	if lost == nil {
		return nil, fmt.Errorf("not connected to %s yet", n.server)
	}
	return nil, fmt.Errorf("not connected to %s: %w%s", n.server, lost, n.options.hint(lost))
}

// Name is "nats".
func (n *NATS) Name() string { return "nats" }

// Ready delivers a value when a connection is made.
func (n *NATS) Ready() <-chan struct{} { return n.ready }

// greetTime is what the first connection has before its absence is a failure.
const greetTime = 2 * time.Second

// greet waits, once, for the first connection, and returns whether it came.
func (n *NATS) greet(ctx context.Context) bool {
	if n.greeted {
		return false
	}
	n.greeted = true
	select {
	case <-n.ready:
		return true
	case <-time.After(greetTime):
	case <-ctx.Done():
	}
	return false
}

// Write publishes the events and waits until the server has them: in core mode
// for its answer to a ping behind them, in JetStream for the stream's
// acknowledgement of each.
func (n *NATS) Write(ctx context.Context, events []*flows.Event) (Tally, error) {
	conn, err := n.connected()
	if err != nil && n.greet(ctx) {
		conn, err = n.connected()
	}
	if err != nil {
		return Tally{}, fmt.Errorf("nats: %w", err)
	}
	// No longer than the client's writes may take (behaviour): the client drops
	// what such a write could not send, and then nothing may be confirmed.
	ctx, cancel := context.WithTimeout(ctx, WriteTimeout)
	defer cancel()
	tally, err := n.publishAll(ctx, conn, events)
	if err != nil {
		return tally, fmt.Errorf("nats: %w", err)
	}
	return tally, nil
}

// publishAll publishes the events part by part. Those of refused subjects fail
// if the server takes others; as long as it takes none, they wait.
func (n *NATS) publishAll(ctx context.Context, conn *nats.Conn, events []*flows.Event) (total Tally, err error) {
	n.forgetRoutes()
	n.doubtRefusals()
	var waiting Tally // refused events for which it is not known yet, and what failed behind them
	for len(events) > 0 {
		if r := n.refused(events[0]); r != nil && time.Now().Before(r.until) {
			waiting.add(Tally{Failed: 1, Why: r.why})
			if r.sure {
				total.settle(&waiting)
			}
			events = events[1:]
			continue
		}
		size := n.together(events)
		t, err := n.publish(ctx, conn, events[:size])
		events = events[t.Total():]
		if waiting.add(t); t.Delivered > 0 {
			n.ensureRefusals()
			total.settle(&waiting)
		}
		switch {
		case err == nil:
			n.pace = min(2*n.pace, natsPaceMax)
		case refusesPublish(err) && size > 1:
			n.pace = 1 // to find out which, and send no more of the others twice than need be
		case size == 1 && n.refusesFirst(err, events):
			n.learnRefusal(events[0], err)
		case errors.Is(err, context.DeadlineExceeded):
			n.slowDown(conn)
			return total, err
		default:
			return total, err
		}
	}
	if waiting.Failed > 0 {
		return total, waiting.Why
	}
	return total, nil
}

// slowDown is for a server that has not answered in time. A new connection has
// no part of what was sent in vain before it; over the old one the client could
// not tell which of its pings are answered.
func (n *NATS) slowDown(conn *nats.Conn) {
	n.pace = max(n.pace/4, 1)
	_ = conn.ForceReconnect() // fails only if it is closed
}

// refusesFirst reports whether the subject of the first event is what err is about.
func (n *NATS) refusesFirst(err error, events []*flows.Event) bool {
	n.text = n.subject.Append(n.text[:0], n.options.Host(), events[0])
	return refusesSubject(err, string(n.text))
}

// Close closes the connection. What Write counted as delivered is with the
// server, so there is nothing to flush.
func (n *NATS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.closed = true
		close(n.closing)
	}
	if n.conn != nil {
		n.conn.Close()
	}
	return nil
}
