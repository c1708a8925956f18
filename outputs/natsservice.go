package outputs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"golang.org/x/time/rate"
)

// ServiceName is flatd's in the NATS services API: $SRV.PING.flatd.
const ServiceName = "flatd"

// servicePrefix begins the subjects of requests: srv.flatd.{host}.{endpoint}. It
// is not that of events, whose streams would else take the requests, and answer.
const servicePrefix = "srv.flatd"

// Bounds of what a NATSService does for those who ask.
const (
	serviceRate    = 20       // answers a second
	serviceBurst   = 40       // answers at once after a quiet time
	serviceWaiting = 64       // requests of one endpoint that wait; more are dropped
	serviceAsk     = 4 << 10  // bytes of a request
	serviceAnswer  = 1 << 20  // bytes of an answer, or what the server allows
	servicePace    = 64 << 10 // bytes read from the server a second, PINGs and all
)

// ErrRequest marks errors that are the requester's.
var ErrRequest = errors.New("bad request")

// Endpoint is one thing that a service can be asked for.
type Endpoint struct {
	Name string // the last token of its subject
	// Answer gives what the answer's JSON is made of. It is called by one
	// goroutine for each endpoint.
	Answer func(query url.Values) (any, error)
}

// ServiceOptions configure a NATSService.
type ServiceOptions struct {
	NATS      NATSOptions // Host, URL, and how to log in
	Version   string
	Endpoints []Endpoint
	// Refused, which may be nil, is told once, by a goroutine of the service's,
	// when the server does not let it serve; events are not affected.
	Refused func(error)
}

// NATSService answers requests over NATS, as the services API has it (ADR-32):
// it is found by $SRV.PING and tells of its endpoints by $SRV.INFO.
//
// It has a connection of its own: on that of the output a refused subscription
// would be one of the errors that Write waits for, and who asks too much would
// delay the acknowledgements.
type NATSService struct {
	options ServiceOptions
	limit   *rate.Limiter
	stop    context.CancelFunc
	refused sync.Once

	mu     sync.RWMutex // held to answer
	closed bool
}

// NewNATSService checks the options and begins to connect. It never waits for a
// server, and looks for one until Close.
func NewNATSService(o ServiceOptions) (*NATSService, error) {
	if _, err := o.NATS.check(); err != nil {
		return nil, fmt.Errorf("nats service: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &NATSService{options: o, limit: rate.NewLimiter(serviceRate, serviceBurst), stop: stop}
	go s.run(ctx)
	return s, nil
}

// Close ends the service. When it returns no endpoint is being asked any more.
func (s *NATSService) Close() {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// run keeps a connection until ctx ends.
func (s *NATSService) run(ctx context.Context) {
	for attempt := 1; ctx.Err() == nil; attempt++ {
		s.trouble(s.serve(ctx))
		select {
		case <-ctx.Done():
		case <-time.After(reconnectDelay(attempt)):
		}
	}
}

// serve answers over one connection, which the client mends by itself, until ctx
// ends or the login has to be read anew.
func (s *NATSService) serve(ctx context.Context) error {
	stale := make(chan struct{}, 1)
	conn, err := s.options.NATS.connect(append(persistent("flatd service on "+s.options.NATS.Host().Name),
		nats.SetCustomDialer(&pacedDialer{ctx: ctx}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.trouble(err)
			if s.options.NATS.staleLogin(err) {
				select {
				case stale <- struct{}{}:
				default:
				}
			}
		}))...)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := s.register(conn); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-stale:
	}
	return nil
}

// register adds the service to a connection, which need not be there yet.
func (s *NATSService) register(conn *nats.Conn) error {
	host := s.options.NATS.Host().Name
	service, err := micro.AddService(conn, micro.Config{
		Name:        ServiceName,
		Version:     semanticVersion(s.options.Version),
		Description: "How long the network takes to answer " + host,
		Metadata:    map[string]string{"host": host},
	})
	if err != nil {
		return err
	}
	group := service.AddGroup(string(appendToken([]byte(servicePrefix+"."), host)))
	for _, e := range s.options.Endpoints {
		handler := micro.HandlerFunc(func(r micro.Request) { s.answer(conn, e, r) })
		if err := group.AddEndpoint(e.Name, handler, micro.WithEndpointPendingLimits(serviceWaiting, serviceWaiting*serviceAsk)); err != nil {
			return fmt.Errorf("endpoint %s: %w", e.Name, err)
		}
	}
	return nil
}

// answer answers a request, with an error that has the number HTTP would give it.
func (s *NATSService) answer(conn *nats.Conn, e Endpoint, r micro.Request) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed || r.Reply() == "" {
		return
	}
	// An answer that cannot be sent is in the service's own statistics.
	if !s.limit.Allow() {
		_ = r.Error("429", fmt.Sprintf("more than %d requests a second; ask again later", serviceRate), nil)
		return
	}
	most := min(serviceAnswer, int(conn.MaxPayload()))
	switch text, err := e.ask(r.Data()); {
	case errors.Is(err, ErrRequest):
		_ = r.Error("400", oneLine(err), nil)
	case err != nil:
		_ = r.Error("500", oneLine(err), nil)
	case len(text) > most:
		_ = r.Error("413", fmt.Sprintf("the answer has %d bytes, more than %d; ask flatd on its host", len(text), most), nil)
	default:
		_ = r.Respond(text)
	}
}

// ask gives the answer's JSON. A request's payload, if there is one, is what the
// query is in a URL.
func (e *Endpoint) ask(request []byte) ([]byte, error) {
	if len(request) > serviceAsk {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrRequest, len(request), serviceAsk)
	}
	query, err := url.ParseQuery(string(request))
	if err != nil {
		return nil, fmt.Errorf("%w: want a query such as kind=tcp&side=client: %w", ErrRequest, err)
	}
	value, err := e.Answer(query)
	if err != nil {
		return nil, err
	}
	return json.Marshal(value)
}

// oneLine is an error as a header can have it.
func oneLine(err error) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, err.Error())
}

// trouble tells, once, what the server refuses. The output has a connection to
// the same server and says when that is away, or when the login is wrong.
func (s *NATSService) trouble(err error) {
	for _, refusal := range []error{nats.ErrPermissionViolation, nats.ErrMaxConnectionsExceeded,
		nats.ErrMaxAccountConnectionsExceeded, nats.ErrMaxSubscriptionsExceeded, micro.ErrConfigValidation} {
		if errors.Is(err, refusal) && s.options.Refused != nil {
			s.refused.Do(func() { s.options.Refused(err) })
		}
	}
}

var semanticPattern = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+)?(\+[0-9A-Za-z.-]+)?$`)

// semanticVersion is a version as the services API wants it. One of a build that
// is no release is put behind 0.0.0.
func semanticVersion(version string) string {
	v := strings.Replace(strings.TrimPrefix(version, "v"), "~", "-", 1)
	if semanticPattern.MatchString(v) {
		return v
	}
	return "0.0.0+" + string(appendToken(nil, strings.ReplaceAll(v, "_", "-")))
}

// pacedDialer makes connections that are read no faster than servicePace. Who
// floods the service then waits in the server, which ends the connection when
// that lasts; flatd spends next to nothing on it.
type pacedDialer struct{ ctx context.Context }

// Dial implements nats.CustomDialer.
func (d *pacedDialer) Dial(network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: nats.DefaultTimeout}).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &pacedConn{Conn: conn, ctx: d.ctx, pace: rate.NewLimiter(servicePace, servicePace)}, nil
}

type pacedConn struct {
	net.Conn
	ctx  context.Context
	pace *rate.Limiter
}

// Read implements net.Conn.
func (c *pacedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), servicePace)])
	if waitErr := c.pace.WaitN(c.ctx, n); err == nil && waitErr != nil {
		err = waitErr
	}
	return n, err
}
