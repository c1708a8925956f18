package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/outputs"
)

// Fleet is every flatd that can be asked: the one of a socket, or those that a
// NATS server knows.
type Fleet interface {
	// Statuses asks all of them how they are, and returns when all have answered
	// or ctx has ended. They are ordered by name.
	Statuses(ctx context.Context) ([]HostStatus, error)
	Close()
}

// HostStatus is what one of them answered, or why it did not.
type HostStatus struct {
	Host   string
	Status api.Status
	Err    error
	At     time.Time // when the answer came
}

// Fleet implements Source: the one flatd is all of it.
func (s *socketSource) Fleet() (Fleet, error) { return s, nil }

// Close implements Fleet.
func (s *socketSource) Close() {}

// Statuses implements Fleet.
func (s *socketSource) Statuses(ctx context.Context) ([]HostStatus, error) {
	var one api.Status
	if err := s.client.Get(ctx, "/v1/status", &one); err != nil {
		return nil, err
	}
	return []HostStatus{{Host: one.Host, Status: one, At: time.Now()}}, nil
}

// natsFleet are those that offer the service flatd (ADR-32).
type natsFleet struct{ conn *nats.Conn }

// Fleet implements Source.
func (s *natsSource) Fleet() (Fleet, error) {
	conn, err := s.connect()
	if err != nil {
		return nil, err
	}
	return &natsFleet{conn}, nil
}

// Close implements Fleet.
func (f *natsFleet) Close() { f.conn.Close() }

// Nobody knows how many will answer, so the search is over when for a while
// nobody else has.
const (
	fleetQuiet = time.Second
	fleetReply = 5 * time.Second // what one has to answer in
	fleetMax   = 10_000          // hosts
)

// Statuses implements Fleet.
func (f *natsFleet) Statuses(ctx context.Context) ([]HostStatus, error) {
	found, err := f.find(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for flatds: %w", err)
	}
	all := make([]HostStatus, len(found))
	var asked sync.WaitGroup
	for i := range found {
		asked.Go(func() { all[i] = f.ask(ctx, &found[i]) })
	}
	asked.Wait()
	slices.SortStableFunc(all, func(a, b HostStatus) int { return strings.Compare(a.Host, b.Host) })
	for i := 1; i < len(all); i++ {
		if all[i].Host == all[i-1].Host {
			all[i].Err = errors.New("another flatd has this host name, too, and either may have answered")
		}
	}
	return all, ctx.Err()
}

// find returns the services there are.
func (f *natsFleet) find(ctx context.Context) (found []micro.Info, err error) {
	inbox := f.conn.NewInbox()
	replies, err := f.conn.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = replies.Unsubscribe() }() // fails when the connection has gone
	subject, err := micro.ControlSubject(micro.InfoVerb, outputs.ServiceName, "")
	if err != nil {
		return nil, err
	}
	if err := f.conn.PublishRequest(subject, inbox, nil); err != nil {
		return nil, err
	}
	for len(found) < fleetMax {
		wait, cancel := context.WithTimeout(ctx, fleetQuiet)
		message, err := replies.NextMsgWithContext(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders):
			return found, nil
		case err != nil:
			return nil, err
		}
		var info micro.Info
		if json.Unmarshal(message.Data, &info) == nil && info.Name == outputs.ServiceName {
			found = append(found, info)
		}
	}
	return found, nil
}

// ask asks one of them.
func (f *natsFleet) ask(ctx context.Context, info *micro.Info) HostStatus {
	ctx, cancel := context.WithTimeout(ctx, fleetReply)
	defer cancel()
	s := HostStatus{Host: info.Metadata["host"]}
	message, err := f.conn.RequestWithContext(ctx, endpointOf(info, "status"), nil)
	s.At = time.Now()
	switch {
	case err != nil:
		s.Err = fmt.Errorf("does not answer: %w", err)
	case message.Header.Get(micro.ErrorCodeHeader) != "":
		s.Err = Refusal(message.Header.Get(micro.ErrorHeader))
	default:
		s.Err = json.Unmarshal(message.Data, &s.Status)
	}
	return s
}

// endpointOf is the subject of an endpoint, "" if there is none.
func endpointOf(info *micro.Info, name string) string {
	for _, e := range info.Endpoints {
		if e.Name == name {
			return e.Subject
		}
	}
	return ""
}
