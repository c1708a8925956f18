package outputs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/flatd/flatd/flows"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var errDisconnected = errors.New("the connection was lost in the middle of a batch")

const (
	routesMax     = 1024 // subjects that are remembered
	lookupTimeout = time.Second
)

// route is where an event goes.
type route struct {
	subject string
	stored  bool // a stream takes it
}

// outgoing is an event on its way.
type outgoing struct {
	route
	id      string
	message *message               // JetStream's, which keeps it until it is acknowledged
	ack     jetstream.PubAckFuture // nil: none to wait for
	err     error                  // why it was not taken
}

// message is one whose parts are used again.
type message struct {
	nats.Msg
	ids []string // of Header, to be filled in place
}

func newMessage() *message {
	ids := make([]string, 1)
	return &message{ids: ids, Msg: nats.Msg{Header: nats.Header{jetstream.MsgIDHeader: ids}}}
}

// publish sends a batch and waits for the server. The tally counts events up to
// the first that is to come again. It may have arrived nevertheless, and so may
// those behind it: that is what Nats-Msg-Id is for.
func (n *NATS) publish(ctx context.Context, conn *nats.Conn, events []*flows.Event) (Tally, error) {
	out, err := n.prepare(ctx, conn, events)
	if err != nil {
		return Tally{}, err
	}
	before := standOf(conn)
	sent, unsent := n.send(conn, out, events)
	if err := before.confirm(ctx, conn); err != nil {
		n.abandon()
		return Tally{}, err
	}
	t, err := n.await(ctx, out[:sent])
	if err != nil {
		n.abandon()
		if errors.Is(err, context.DeadlineExceeded) {
			err = errors.Join(n.learnSilence(out[t.Total()].subject), err)
		}
		return t, err
	}
	return t, unsent
}

// prepare finds out where the events go.
func (n *NATS) prepare(ctx context.Context, conn *nats.Conn, events []*flows.Event) ([]outgoing, error) {
	if missing := len(events) - len(n.out); missing > 0 {
		n.out = append(n.out, make([]outgoing, missing)...)
	}
	out := n.out[:len(events)]
	for i, e := range events {
		to, err := n.route(ctx, conn, e)
		if err != nil {
			return nil, err
		}
		out[i].route, out[i].ack, out[i].err = to, nil, nil
	}
	n.identify(out, events)
	return out, nil
}

// identify gives events their ids, which are parts of one string.
func (n *NATS) identify(out []outgoing, events []*flows.Event) {
	n.text = n.text[:0]
	for _, e := range events {
		n.text = append(n.options.Host().AppendID(n.text, e), ' ')
	}
	ids := string(n.text)
	for i := range out {
		out[i].id, ids, _ = strings.Cut(ids, " ")
	}
}

// send publishes in order and returns how many it got rid of.
func (n *NATS) send(conn *nats.Conn, out []outgoing, events []*flows.Event) (sent int, err error) {
	for i := range out {
		o := &out[i]
		m := n.messageOf(o, events[i])
		if o.stored {
			o.ack, err = n.streams.PublishMsgAsync(m)
		} else {
			err = conn.PublishMsg(m)
		}
		if errors.Is(err, nats.ErrMaxPayload) {
			o.err, o.ack = err, nil
		} else if err != nil {
			return i, fmt.Errorf("publish to %s: %w", o.subject, err)
		}
	}
	return len(out), nil
}

// messageOf makes the message. In core mode the client copies it at once, so
// that one serves all events and stays in the CPU's cache.
func (n *NATS) messageOf(o *outgoing, e *flows.Event) *nats.Msg {
	m := n.message
	if o.stored {
		if o.message == nil {
			o.message = newMessage()
		}
		m = o.message
	}
	m.Subject, m.ids[0] = o.subject, o.id
	m.Data = n.options.Host().AppendJSON(m.Data[:0], e)
	return &m.Msg
}

// stand is what a connection had been through before a batch.
type stand struct {
	reconnects uint64
	err        error
}

func standOf(conn *nats.Conn) stand {
	return stand{reconnects: conn.Stats().Reconnects, err: conn.LastError()}
}

// confirm waits until the server has read everything that was published. Its
// complaints come before its answer to the ping.
func (s stand) confirm(ctx context.Context, conn *nats.Conn) error {
	if !conn.IsConnected() {
		return errDisconnected
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the server is slow: %w", err)
	}
	if err := conn.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	if conn.Stats().Reconnects != s.reconnects {
		return errDisconnected
	}
	return s.violation(conn)
}

// violation is what the server has said since about permissions, or nil. The
// client remembers one such error, so a new one is another value.
func (s stand) violation(conn *nats.Conn) error {
	if err := conn.LastError(); errors.Is(err, nats.ErrPermissionViolation) && err != s.err {
		return err
	}
	return nil
}

// await waits for the acknowledgements. It stops at the first event that is to
// come again.
func (n *NATS) await(ctx context.Context, sent []outgoing) (t Tally, err error) {
	for i := range sent {
		o := &sent[i]
		if o.ack != nil {
			o.err = acknowledged(ctx, o.ack)
		}
		switch {
		case o.err == nil:
			t.Delivered++
		case isNeverTaken(o.err):
			t.Failed++
			t.Why = o.err
		default:
			if errors.Is(o.err, jetstream.ErrNoStreamResponse) {
				clear(n.routes) // there was a stream, perhaps
			}
			return t, fmt.Errorf("store %s: %w", o.subject, o.err)
		}
	}
	return t, nil
}

func acknowledged(ctx context.Context, ack jetstream.PubAckFuture) error {
	select {
	case <-ack.Ok():
		return nil
	case err := <-ack.Err():
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// codeStoreFailed is JSStreamStoreFailedF of the server; why is in the text.
const codeStoreFailed = 10077

// isNeverTaken reports whether the server or the stream does not take the event, while it
// may take others: it is too large, or its subject has as many as the stream allows.
func isNeverTaken(err error) bool {
	if errors.Is(err, nats.ErrMaxPayload) {
		return true
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum ||
		api.ErrorCode == codeStoreFailed && strings.Contains(api.Description, "per subject"))
}

// learnSilence finds out whether the stream of a subject acknowledges nothing (no_ack), and
// says so. From then on its events are published as where there is no stream.
func (n *NATS) learnSilence(subject string) error {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	name, err := n.streams.StreamNameBySubject(ctx, subject)
	if err != nil {
		return nil // something else is wrong
	}
	stream, err := n.streams.Stream(ctx, name)
	if err != nil || !stream.CachedInfo().Config.NoAck {
		return nil
	}
	n.silent[name] = true
	clear(n.routes)
	return fmt.Errorf("stream %s does not acknowledge (no_ack); its events count as delivered once the server has them", name)
}

// abandon gives up on acknowledgements that have not come. The client may still
// send such a message again, so its memory is left to it.
func (n *NATS) abandon() {
	n.streams.CleanupPublisher()
	n.out = nil
}

// forgetRoutes has the streams looked up again after a reconnect and every
// routesFor, since they come and go.
func (n *NATS) forgetRoutes() {
	fresh := n.reconnected.Swap(false)
	if fresh {
		clear(n.refusals) // another server, perhaps, or other permissions
	}
	if fresh || len(n.routes) >= routesMax || time.Since(n.routesAt) > routesFor {
		clear(n.routes)
		n.noStreams, n.routesAt = false, time.Now()
	}
}

// route finds the subject of e and, once for each subject, how to publish to it.
func (n *NATS) route(ctx context.Context, conn *nats.Conn, e *flows.Event) (route, error) {
	n.text = n.subject.Append(n.text[:0], n.options.Host(), e)
	if known, ok := n.routes[string(n.text)]; ok {
		return known, nil
	}
	r := route{subject: string(n.text), stored: n.mode == ModeJetStream}
	if n.mode == ModeAuto {
		var err error
		if r.stored, err = n.taken(ctx, conn, r.subject); err != nil {
			return r, fmt.Errorf("look up the stream of %s: %w", r.subject, err)
		}
	}
	if r.stored && len(n.silent) > 0 {
		stream, err := n.streams.StreamNameBySubject(ctx, r.subject)
		r.stored = err != nil || !n.silent[stream]
	}
	n.routes[r.subject] = r
	return r, nil
}

// taken asks whether a stream takes a subject. A server without JetStream and
// an account that may not ask mean no, for every subject; one that does not
// answer, as in lame duck mode, means nothing.
func (n *NATS) taken(ctx context.Context, conn *nats.Conn, subject string) (bool, error) {
	if n.noStreams {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	before := standOf(conn)
	_, err := n.streams.StreamNameBySubject(ctx, subject)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return false, nil
	case errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount),
		before.violation(conn) != nil:
		n.noStreams = true
		return false, nil
	}
	return false, err
}
