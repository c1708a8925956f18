package outputs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/flatd/flatd/packaging/testbed/broker"
)

const echoSubject = "srv.flatd.web1_example_com.echo"

// newTestService answers on the endpoint echo with the query; its problems come
// over the channel.
func newTestService(t *testing.T, o NATSOptions) (*NATSService, chan error) {
	t.Helper()
	refused := make(chan error, 100)
	o.Host = thisHost
	s, err := NewNATSService(ServiceOptions{
		NATS: o, Version: "v1.2.3-4-gabcdef0",
		Endpoints: []Endpoint{{Name: "echo", Answer: func(q url.Values) (any, error) {
			switch size := q.Get("size"); {
			case q.Has("bad"):
				return nil, fmt.Errorf("%w: no\nbad things", ErrRequest)
			case q.Has("broken"):
				return nil, errors.New("broken")
			case size != "":
				var n int
				fmt.Sscan(size, &n)
				return strings.Repeat("x", n), nil
			}
			return q, nil
		}}},
		Refused: func(err error) { refused <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, refused
}

// request asks until there is somebody who answers.
func request(t *testing.T, conn *nats.Conn, subject, payload string) *nats.Msg {
	t.Helper()
	ctx := deadline(t)
	for {
		m, err := conn.RequestWithContext(ctx, subject, []byte(payload))
		if err == nil {
			return m
		}
		if !errors.Is(err, nats.ErrNoResponders) {
			t.Fatalf("%s: %v", subject, err)
		}
		time.Sleep(time.Millisecond) // the server says at once that nobody is there
	}
}

// ping waits until the service answers to a discovery, and returns what.
func ping[T any](t *testing.T, conn *nats.Conn, subject string) (answer T) {
	t.Helper()
	if err := json.Unmarshal(request(t, conn, subject, "").Data, &answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestServiceIsDiscovered(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	conn := client(t, s)
	newTestService(t, NATSOptions{URL: s.ClientURL()})
	for _, subject := range []string{"$SRV.PING", "$SRV.PING.flatd"} {
		p := ping[micro.Ping](t, conn, subject)
		if p.Name != "flatd" || p.Version != "1.2.3-4-gabcdef0" || p.Metadata["host"] != testHost.Name || p.Type != micro.PingResponseType {
			t.Errorf("%s: %+v", subject, p)
		}
	}
	// The library announces the service before what it has.
	ctx, info := deadline(t), micro.Info{}
	for len(info.Endpoints) == 0 && ctx.Err() == nil {
		info = ping[micro.Info](t, conn, "$SRV.INFO.flatd")
	}
	if len(info.Endpoints) != 1 || info.Endpoints[0].Name != "echo" || info.Endpoints[0].Subject != echoSubject {
		t.Errorf("%+v", info)
	}
	if m := request(t, conn, echoSubject, "kind=tcp&kind=dns"); string(m.Data) != `{"kind":["tcp","dns"]}` {
		t.Errorf("%s %v", m.Data, m.Header)
	}
	for payload, code := range map[string]string{
		"bad=1": "400", "broken=1": "500", "%": "400", strings.Repeat("a", 5000): "400", "size=1200000": "413", "size=900000": "",
	} {
		if m := request(t, conn, echoSubject, payload); m.Header.Get(micro.ErrorCodeHeader) != code {
			t.Errorf("%.10s: %v, want %q", payload, m.Header, code)
		}
	}
	stats := ping[micro.Stats](t, conn, "$SRV.STATS.flatd")
	if e := stats.Endpoints[0]; e.NumRequests != 7 || e.NumErrors != 5 {
		t.Errorf("%+v, want 7 requests and 5 errors", *e)
	}
}

// Requests are no events: who stores those does not store these, and does not
// answer them either.
func TestServiceIsApartFromEvents(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	conn := client(t, s)
	sub := subscribe(t, conn)
	newTestService(t, NATSOptions{URL: s.ClientURL()})
	request(t, conn, echoSubject, "")
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := sub.Pending(); n != 0 {
		t.Errorf("%d messages on subjects of events", n)
	}
}

func TestServiceOutlivesTheServer(t *testing.T) {
	o := serverOptions(t)
	s := broker.Start(t, o)
	url := s.ClientURL()
	broker.Stop(s)
	_, refused := newTestService(t, NATSOptions{URL: url}) // before there is a server
	for range 2 {
		s = restartServer(t, o, s)
		conn := client(t, s)
		ping[micro.Ping](t, conn, "$SRV.PING.flatd")
		request(t, conn, echoSubject, "")
		conn.Close()
		broker.Stop(s)
	}
	select {
	case err := <-refused:
		t.Errorf("a server that is away is a refusal: %v", err)
	default:
	}
}

// What the server does not allow is told once, goes on being wanted, and is no
// trouble of the output's.
func TestServiceWithoutPermission(t *testing.T) {
	o := serverOptions(t)
	o.Users = []*server.User{
		{Username: "watcher", Password: "w"},
		{Username: "flatd", Password: "f", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"flatd.>", "_INBOX.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"srv.>", "_INBOX.>"}},
		}},
	}
	s := broker.Start(t, o)
	login := NATSOptions{URL: s.ClientURL(), User: "flatd", Password: file(t, "f")}
	out := newTestNATS(t, login)
	_, refused := newTestService(t, login)
	conn := client(t, s, nats.UserInfo("watcher", "w"))
	request(t, conn, echoSubject, "") // is allowed
	select {
	case err := <-refused:
		if !strings.Contains(err.Error(), "$SRV") {
			t.Errorf("%v does not name the subject", err)
		}
	case <-time.After(patience):
		t.Error("a refusal is not told")
	}
	awaitReady(t, out)
	mustWrite(t, out, samples(1, 100)...)
	if n := len(refused); n != 0 {
		t.Errorf("told %d times more", n)
	}
}

// Who floods the service gets refusals or nothing, and events go on.
func TestServiceFlooded(t *testing.T) {
	o := serverOptions(t)
	s := broker.Start(t, o)
	out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: ModeCore})
	newTestService(t, NATSOptions{URL: s.ClientURL()})
	conn := client(t, s)
	request(t, conn, echoSubject, "")
	answers, err := conn.SubscribeSync("answers")
	if err != nil {
		t.Fatal(err)
	}
	const flood = 3000
	for range flood {
		if err := conn.PublishRequest(echoSubject, "answers", nil); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	awaitReady(t, out)
	mustWrite(t, out, samples(1, 1000)...)
	var served int
	codes := make(map[string]int)
	for {
		m, err := answers.NextMsg(time.Second)
		if err != nil {
			break // no more come
		}
		code := m.Header.Get(micro.ErrorCodeHeader)
		codes[code]++
		if code == "" {
			served++
		}
	}
	most := serviceBurst + int(time.Since(began).Seconds()+1)*serviceRate
	if served == 0 || served > most || codes["429"]+served > flood || len(codes) > 2 {
		t.Errorf("%d of %d requests served, want at most %d: %v", served, flood, most, codes)
	}
	if m := request(t, conn, "$SRV.PING.flatd", ""); len(m.Data) == 0 {
		t.Error("the service is gone")
	}
}

// A service that is closed asks its endpoints for nothing any more.
func TestServiceClosed(t *testing.T) {
	s := broker.Start(t, serverOptions(t))
	conn := client(t, s)
	service, _ := newTestService(t, NATSOptions{URL: s.ClientURL()})
	request(t, conn, echoSubject, "")
	service.Close()
	for {
		_, err := conn.Request(echoSubject, nil, time.Second)
		if errors.Is(err, nats.ErrNoResponders) {
			return
		}
		if err == nil {
			t.Fatal("answered after Close")
		}
	}
}

func TestSemanticVersion(t *testing.T) {
	for version, want := range map[string]string{
		"1.2.3": "1.2.3", "v1.2.3": "1.2.3", "v1.2.3-rc1": "1.2.3-rc1", "v1.2.3-5-gabcdef0-dirty": "1.2.3-5-gabcdef0-dirty",
		"1.2.3~rc1+5.gabc": "1.2.3-rc1+5.gabc", "devel": "0.0.0+devel", "4b2890d": "0.0.0+4b2890d", "": "0.0.0+none", "1.2": "0.0.0+1_2",
	} {
		if got := semanticVersion(version); got != want {
			t.Errorf("%q: %q, want %q", version, got, want)
		}
	}
}

// A connection of the service's is read only so fast.
func TestServiceReadsSlowly(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		for err == nil {
			_, err = conn.Write(make([]byte, servicePace))
		}
	}()
	const long = time.Second / 4 // not how long it takes, but as of when there is no more to be had
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	conn, err := (&pacedDialer{ctx: ctx}).Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	total, buffer := 0, make([]byte, 4*servicePace)
	for err == nil && total < 100*servicePace {
		var n int
		n, err = conn.Read(buffer)
		total += n
	}
	// What was saved up, what came by then, and one part that came in vain.
	if most := 3 * servicePace; err == nil || total > most {
		t.Errorf("%d bytes read, want at most %d (%v)", total, most, err)
	}
}
