package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/spf13/pflag"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/outputs"
)

// fleet is every flatd that can be asked: the one of a socket, or those that a
// NATS server knows.
type fleet interface {
	// statuses asks all of them how they are, and returns when all have answered
	// or ctx has ended. They are ordered by name.
	statuses(ctx context.Context) ([]hostStatus, error)
	close()
}

// hostStatus is what one of them answered, or why it did not.
type hostStatus struct {
	host   string
	status api.Status
	err    error
	at     time.Time // when the answer came
}

// fleet returns whom a command asks, by the same flags as source does.
func (f *natsFlags) fleet(flags *pflag.FlagSet, c *client) (fleet, error) {
	from, err := f.source(flags, c, nil)
	if err != nil {
		return nil, err
	}
	if _, remote := from.(*natsSource); !remote {
		return &socketFleet{c}, nil
	}
	host, _ := os.Hostname() // for people who look at the server's list
	conn, err := outputs.DialNATS("flatctl on "+host, f.options, nats.PermissionErrOnSubscribe(true))
	if err != nil {
		return nil, err
	}
	return &natsFleet{conn}, nil
}

type socketFleet struct{ client *client }

func (f *socketFleet) close() {}

func (f *socketFleet) statuses(ctx context.Context) ([]hostStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTime)
	defer cancel()
	var s api.Status
	if err := f.client.decode(ctx, "/v1/status", &s); err != nil {
		return nil, err
	}
	return []hostStatus{{host: s.Host, status: s, at: time.Now()}}, nil
}

// natsFleet are those that offer the service flatd (ADR-32).
type natsFleet struct{ conn *nats.Conn }

func (f *natsFleet) close() { f.conn.Close() }

// Nobody knows how many will answer, so the search is over when for a while
// nobody else has.
const (
	fleetQuiet = time.Second
	fleetReply = 5 * time.Second // what one has to answer in
	fleetMax   = 10_000          // hosts
)

func (f *natsFleet) statuses(ctx context.Context) ([]hostStatus, error) {
	found, err := f.find(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for flatds: %w", err)
	}
	all := make([]hostStatus, len(found))
	var asked sync.WaitGroup
	for i := range found {
		asked.Go(func() { all[i] = f.ask(ctx, &found[i]) })
	}
	asked.Wait()
	slices.SortStableFunc(all, func(a, b hostStatus) int { return strings.Compare(a.host, b.host) })
	for i := 1; i < len(all); i++ {
		if all[i].host == all[i-1].host {
			all[i].err = errors.New("another flatd has this host name, too, and either may have answered")
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
func (f *natsFleet) ask(ctx context.Context, info *micro.Info) hostStatus {
	ctx, cancel := context.WithTimeout(ctx, fleetReply)
	defer cancel()
	s := hostStatus{host: info.Metadata["host"]}
	message, err := f.conn.RequestWithContext(ctx, endpointOf(info, "status"), nil)
	s.at = time.Now()
	switch {
	case err != nil:
		s.err = fmt.Errorf("does not answer: %w", err)
	case message.Header.Get(micro.ErrorCodeHeader) != "":
		s.err = refusal(message.Header.Get(micro.ErrorHeader))
	default:
		s.err = json.Unmarshal(message.Data, &s.status)
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
