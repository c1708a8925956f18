package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// natsSource reads what flatds publish. It filters as flatd does for its socket.
// With a time to begin at it reads from the JetStream stream that has the
// subject, else only what is published from now on.
type natsSource struct {
	options outputs.NATSOptions // of them the URL and the secrets
	subject string              // with wildcards
	say     Say
}

// NewNATS reads from the server of the options.
func NewNATS(options outputs.NATSOptions, subject string, say Say) Source {
	return &natsSource{options, subject, say}
}

// Remote implements Source.
func (s *natsSource) Remote() bool { return true }

// Events implements Source.
func (s *natsSource) Events(ctx context.Context, r Request, take func(*Report) error) error {
	i := &intake{hand: take, say: s.say, seen: newSeen(4 * api.RecentMax)}
	for name, values := range r.Conditions {
		if err := i.filter.Set(name, values); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	conn, err := s.dial(r.Live)
	if err != nil {
		return UnlessEnded(ctx, err)
	}
	defer conn.Close()
	if i.filter.Since().IsZero() {
		err = s.subscribe(ctx, conn, r, i)
	} else {
		err = s.replay(ctx, conn, r, i)
	}
	return UnlessEnded(ctx, err)
}

// dial connects. From then on the client mends the connection by itself.
func (s *natsSource) dial(live func()) (*nats.Conn, error) {
	slow := sync.OnceFunc(func() { s.say("too slow: the server's events are dropped before they can be shown; narrow --subject") })
	return s.connect(
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // else it is we who close it
				s.say("the NATS server has gone away; waiting for it")
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			if live != nil {
				live()
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) {
				slow()
			}
		}))
}

func (s *natsSource) connect(with ...nats.Option) (*nats.Conn, error) {
	host, _ := os.Hostname() // for people who look at the server's list
	return outputs.DialNATS("flatctl on "+host, s.options, append(with, nats.PermissionErrOnSubscribe(true))...)
}

// subscribe takes what is published from now on, until ctx ends.
func (s *natsSource) subscribe(ctx context.Context, conn *nats.Conn, r Request, i *intake) error {
	sub, err := conn.SubscribeSync(s.subject)
	if err != nil {
		return fmt.Errorf("subscribe to %q: %w", s.subject, err)
	}
	if err := conn.FlushTimeout(quickTime); err != nil {
		return fmt.Errorf("subscribe to %s: %w", s.subject, err)
	}
	if r.Live != nil {
		r.Live()
	}
	for {
		message, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", s.subject, err)
		}
		if err := i.take(message.Subject, message.Data); err != nil {
			return err
		}
	}
}

// intake takes messages and hands over the events that are wanted.
type intake struct {
	filter   api.EventFilter
	hand     func(*Report) error // over to the caller
	say      Say
	seen     *seen
	one      Report
	stranger bool // a message that is no event has been reported
}

// take hands over a message, if it is an event that is wanted and new: flatd
// publishes an event again when it does not know whether it arrived.
func (i *intake) take(subject string, text []byte) error {
	if len(text) == 0 {
		return nil // a request, perhaps; events have a payload
	}
	if err := i.one.parse(text); err != nil {
		if !i.stranger {
			i.say("left out a message on %s, and all others of its like: %v", flows.AppendPrintable(nil, subject), err)
			i.stranger = true
		}
		return nil
	}
	if !i.filter.Match(&i.one.Event) || !i.seen.add(string(i.one.Host.AppendID(nil, &i.one.Event))) {
		return nil
	}
	return i.hand(&i.one)
}

// clockSlack is how far the clocks of a host and of the server may differ: the
// stream goes by the time when it stored an event, the filter by the event's own.
const clockSlack = time.Minute

// replay takes what a stream has since the filter's time, then, to follow, what
// comes.
func (s *natsSource) replay(ctx context.Context, conn *nats.Conn, r Request, i *intake) error {
	stream, consumer, err := s.open(ctx, conn, i.filter.Since().Add(-clockSlack))
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read stream %s: %w", stream.CachedInfo().Config.Name, err)
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	next := func() (*jetstream.MsgMetadata, error) {
		message, err := messages.Next()
		if err != nil {
			return nil, fmt.Errorf("read stream %s: %w", stream.CachedInfo().Config.Name, err)
		}
		if err := i.take(message.Subject(), message.Data()); err != nil {
			return nil, err
		}
		return message.Metadata()
	}

	past := past{limit: r.Limit, hand: i.hand}
	i.hand = past.take
	last := stream.CachedInfo().State.LastSeq
	for over := consumer.CachedInfo().NumPending == 0; !over; {
		at, err := next()
		if err != nil {
			return err
		}
		over = at.NumPending == 0 || at.Sequence.Stream >= last
	}
	if err := past.end(); err != nil || !r.Follow {
		return err
	}
	i.hand = past.hand
	if r.Live != nil {
		r.Live()
	}
	for err == nil {
		_, err = next()
	}
	return err
}

// open finds the stream and begins to read it at a time.
func (s *natsSource) open(ctx context.Context, conn *nats.Conn, at time.Time) (jetstream.Stream, jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTime)
	defer cancel()
	stream, err := s.stream(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{s.subject}, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &at,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read stream %s: %w", stream.CachedInfo().Config.Name, err)
	}
	return stream, consumer, nil
}

// stream finds the one that has the subject.
func (s *natsSource) stream(ctx context.Context, conn *nats.Conn) (jetstream.Stream, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	var names []string
	found := js.StreamNames(ctx, jetstream.WithStreamListSubject(s.subject))
	for name := range found.Name() {
		names = append(names, name)
	}
	switch err := found.Err(); {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return nil, fmt.Errorf("the server has no JetStream, so nothing past: leave out --since to see what comes")
	case err != nil:
		return nil, fmt.Errorf("look for a stream that has %s: %w", s.subject, err)
	case len(names) == 0:
		return nil, fmt.Errorf("no stream has %s, so nothing past: leave out --since to see what comes", s.subject)
	case len(names) > 1:
		return nil, fmt.Errorf("the streams %s have parts of %s: choose a --subject of one", strings.Join(names, ", "), s.subject)
	}
	stream, err := js.Stream(ctx, names[0])
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", names[0], err)
	}
	if subjects := stream.CachedInfo().Config.Subjects; !covers(subjects, s.subject) {
		s.say("stream %s has only %s of %s", names[0], strings.Join(subjects, ", "), s.subject)
	}
	return stream, nil
}

// covers reports whether one of the patterns has every subject that another has.
func covers(patterns []string, subject string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return covered(strings.Split(p, "."), strings.Split(subject, "."))
	})
}

func covered(pattern, subject []string) bool {
	for i, token := range pattern {
		switch {
		case token == ">":
			return len(subject) > i
		case i >= len(subject), subject[i] == ">", token != "*" && token != subject[i]:
			return false
		}
	}
	return len(subject) == len(pattern)
}

// past holds back what is past until its end is known, to hand over the newest
// only. Without a limit it holds back nothing.
type past struct {
	limit int
	hand  func(*Report) error
	held  []Report // a ring once it is full
	next  int
}

func (p *past) take(one *Report) error {
	switch {
	case p.limit == Unlimited:
		return p.hand(one)
	case p.limit == 0:
		return nil
	case len(p.held) < p.limit:
		p.held = append(p.held, one.clone())
	default:
		p.held[p.next] = one.clone()
		p.next = (p.next + 1) % p.limit
	}
	return nil
}

// end hands over what was held back.
func (p *past) end() error {
	for i := range p.held {
		if err := p.hand(&p.held[(p.next+i)%len(p.held)]); err != nil {
			return err
		}
	}
	p.held = nil
	return nil
}

func (r *Report) clone() Report {
	c := *r
	c.JSON = append([]byte(nil), r.JSON...)
	return c
}
