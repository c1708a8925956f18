package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// natsFlags say which server to read from, how to log in, and what to read.
type natsFlags struct {
	options outputs.NATSOptions // of them the URL and the secrets
	subject string
}

// urlVariable has the server if no flag has.
const urlVariable = "NATS_URL"

func (f *natsFlags) register(flags *pflag.FlagSet) {
	o := &f.options
	flags.StringVar(&o.URL, "nats", "", "read from this NATS server, `URL` nats://host:port, and not from the socket; $"+urlVariable+" does the same unless --socket is given")
	flags.StringVar(&f.subject, "subject", "flatd.>", "with --nats, read this `subject`, with wildcards")
	flags.StringVar(&o.Credentials, "nats-creds", "", "with --nats, log in by this credentials `file`, a user's JWT and seed")
	flags.StringVar(&o.NKey, "nats-nkey", "", "with --nats, log in by the nkey seed in this `file`")
	flags.StringVar(&o.Token, "nats-token", "", "with --nats, log in by the token in this `file`")
	flags.StringVar(&o.User, "nats-user", "", "with --nats, log in as the user of this `name`")
	flags.StringVar(&o.Password, "nats-password", "", "the `file` that holds the password of --nats-user")
	flags.StringVar(&o.CA, "nats-ca", "", "with --nats, trust the certificates in this `file`, not the system's")
	flags.StringVar(&o.Cert, "nats-cert", "", "the `file` of a certificate that shows the server who asks")
	flags.StringVar(&o.Key, "nats-key", "", "the `file` of the key of --nats-cert")
}

// source returns where a command reads from. A flag prevails over the variable.
func (f *natsFlags) source(flags *pflag.FlagSet, c *client, say func(format string, args ...any)) (source, error) {
	if !flags.Changed("nats") && !flags.Changed("socket") {
		f.options.URL = os.Getenv(urlVariable)
	}
	if f.options.URL != "" {
		return &natsSource{natsFlags: f, say: say}, nil
	}
	for _, name := range []string{"subject", "nats-creds", "nats-nkey", "nats-token", "nats-user", "nats-password", "nats-ca", "nats-cert", "nats-key"} {
		if flags.Changed(name) {
			return nil, fmt.Errorf("--%s is for a NATS server: name it with --nats or in %s; %w", name, urlVariable, errUsage)
		}
	}
	return &socketSource{client: c, say: say}, nil
}

// natsSource reads what flatds publish. It filters as flatd does for its socket.
// With a time to begin at it reads from the JetStream stream that has the
// subject, else only what is published from now on.
type natsSource struct {
	*natsFlags
	say func(format string, args ...any)
}

func (s *natsSource) events(ctx context.Context, r request, tell func(*report) error) error {
	i := &intake{tell: tell, say: s.say, seen: newSeen(4 * api.RecentMax)}
	for name, values := range r.conditions {
		if err := i.filter.Set(name, values); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	conn, err := s.dial(r.live)
	if err != nil {
		return unlessEnded(ctx, err)
	}
	defer conn.Close()
	if i.filter.Since().IsZero() {
		err = s.subscribe(ctx, conn, r, i)
	} else {
		err = s.replay(ctx, conn, r, i)
	}
	return unlessEnded(ctx, err)
}

// dial connects. From then on the client mends the connection by itself.
func (s *natsSource) dial(live func()) (*nats.Conn, error) {
	host, _ := os.Hostname() // for people who look at the server's list
	slow := sync.OnceFunc(func() { s.say("too slow: the server's events are dropped before they can be shown; narrow --subject") })
	return outputs.DialNATS("flatctl on "+host, s.options,
		nats.PermissionErrOnSubscribe(true),
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

// subscribe takes what is published from now on, until ctx ends.
func (s *natsSource) subscribe(ctx context.Context, conn *nats.Conn, r request, i *intake) error {
	sub, err := conn.SubscribeSync(s.subject)
	if err != nil {
		return fmt.Errorf("subscribe to %q: %w", s.subject, err)
	}
	if err := conn.FlushTimeout(quickTime); err != nil {
		return fmt.Errorf("subscribe to %s: %w", s.subject, err)
	}
	if r.live != nil {
		r.live()
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
	tell     func(*report) error
	say      func(format string, args ...any)
	seen     *seen
	one      report
	stranger bool // has been told
}

// take hands over a message, if it is an event that is wanted and has not been
// told: who publishes does so again when he does not know whether it arrived.
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
	if !i.filter.Match(&i.one.event) || !i.seen.add(string(i.one.host.AppendID(nil, &i.one.event))) {
		return nil
	}
	return i.tell(&i.one)
}

// clockSlack is how far the clocks of a host and of the server may differ: the
// stream goes by the time when it stored an event, the filter by the event's own.
const clockSlack = time.Minute

// replay takes what a stream has since the filter's time, then, to follow, what
// comes.
func (s *natsSource) replay(ctx context.Context, conn *nats.Conn, r request, i *intake) error {
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

	past := past{limit: r.limit, tell: i.tell}
	i.tell = past.take
	last := stream.CachedInfo().State.LastSeq
	for over := consumer.CachedInfo().NumPending == 0; !over; {
		at, err := next()
		if err != nil {
			return err
		}
		over = at.NumPending == 0 || at.Sequence.Stream >= last
	}
	if err := past.end(); err != nil || !r.follow {
		return err
	}
	i.tell = past.tell
	if r.live != nil {
		r.live()
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
	for _, p := range patterns {
		if covered(strings.Split(p, "."), strings.Split(subject, ".")) {
			return true
		}
	}
	return false
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
	tell  func(*report) error
	held  []report // a ring once it is full
	next  int
}

const unlimited = -1

func (p *past) take(one *report) error {
	switch {
	case p.limit == unlimited:
		return p.tell(one)
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
		if err := p.tell(&p.held[(p.next+i)%len(p.held)]); err != nil {
			return err
		}
	}
	p.held = nil
	return nil
}

func (r *report) clone() report {
	c := *r
	c.json = append([]byte(nil), r.json...)
	return c
}
