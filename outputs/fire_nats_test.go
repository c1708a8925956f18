package outputs

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/flatd/flatd/packaging/testbed/broker"
)

// everything is a stream that takes all of flatd's subjects. A restart takes
// long in the long form of the tests, and its duplicates come within that.
func everything(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{Name: "FLATD", Subjects: []string{"flatd.>"}, Duplicates: time.Hour, Replicas: replicas}
}

// underFire is flatd's output to a server with such a stream, which has begun to
// take events.
func underFire(t *testing.T, url, mode string, capacity int) *trial {
	t.Helper()
	out := newTestNATS(t, NATSOptions{URL: url, Mode: mode})
	tr := newTrial(t, out, capacity)
	tr.publish(1)
	tr.await("the first event", func(s Stats) bool { return s.Delivered == 1 })
	return tr
}

// The server stops under load, for a second or in the long form a minute, and
// comes back as it was.
func TestNATSAwayForAWhile(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{ModeAuto, ModeJetStream} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			o := serverOptions(t)
			s := broker.Start(t, o)
			makeStream(t, client(t, s), everything(1))
			tr := underFire(t, s.ClientURL(), mode, 1<<17)
			stop := tr.steadily()
			tr.await("some events", moreThan(100, tr.stats()))
			broker.Stop(s)
			tr.await("the outage", isDown)
			time.Sleep(away(t)) // is the subject
			s = restartServer(t, o, s)
			tr.await("the first after it", moreThan(100, tr.stats()))
			stop()
			checkStoredOnce(t, s, tr.endWhole())
			if n := tr.told(); n != 1 {
				t.Errorf("one outage was told %d times: %v", n, tr.failures)
			}
		})
	}
}

// Another server takes the port: it has never heard of the stream.
func TestNATSReplaced(t *testing.T) {
	t.Parallel()
	o := serverOptions(t)
	first := broker.Start(t, o)
	before := makeStream(t, client(t, first), everything(1))
	tr := underFire(t, first.ClientURL(), ModeJetStream, 1<<17)
	tr.publish(1000)
	tr.await("the first thousand", isIdle)
	if n := stored(t, before); n != 1001 {
		t.Errorf("%d events stored in the first server, want 1001", n)
	}
	broker.Stop(first)

	again := o.Clone()
	again.Port, again.StoreDir = port(first), t.TempDir()
	second := broker.Start(t, again)
	if second.ID() == first.ID() {
		t.Fatal("the same server")
	}
	tr.publish(1000)
	s := tr.await("that the stream is missed", func(s Stats) bool { return strings.Contains(s.LastError, "no response from stream") })
	if s.Queued != 1000 || !s.Down {
		t.Errorf("without a stream: %+v", s)
	}
	after := makeStream(t, client(t, second), everything(1))
	tr.endWhole()
	if n := stored(t, after); n != 1000 {
		t.Errorf("%d events stored in the second server, want 1000", n)
	}
}

// In lame duck mode a server keeps its clients for a while, and its streams no
// longer: who published without them then would lose events.
func TestNATSLameDuck(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{ModeAuto, ModeJetStream} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			o := serverOptions(t)
			o.LameDuckGracePeriod, o.LameDuckDuration = time.Second, 2*time.Second
			s := broker.Start(t, o)
			makeStream(t, client(t, s), everything(1))
			tr := underFire(t, s.ClientURL(), mode, 1<<17)
			stop := tr.steadily()
			tr.await("some events", moreThan(100, tr.stats()))
			s.LameDuckShutdown()
			s = restartServer(t, o, s)
			tr.await("the first after it", moreThan(100, tr.stats()))
			stop()
			checkStoredOnce(t, s, tr.endWhole())
		})
	}
}

// cluster starts three servers that know each other.
func cluster(t testing.TB) (servers []*server.Server, urls string) {
	t.Helper()
	var options []*server.Options
	var routes []*url.URL
	var all []string
	for n := range 3 {
		o := serverOptions(t)
		o.ServerName, o.Port = fmt.Sprint("n", n), freePort(t)
		o.Cluster = server.ClusterOpts{Name: "three", Host: "127.0.0.1", Port: freePort(t)}
		options = append(options, o)
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprint("127.0.0.1:", o.Cluster.Port)})
		all = append(all, fmt.Sprint("nats://127.0.0.1:", o.Port))
	}
	for _, o := range options {
		o.Routes = routes
		servers = append(servers, broker.Start(t, o))
	}
	return servers, strings.Join(all, ",")
}

// makeClustered makes a stream once the servers have found each other.
func makeClustered(t testing.TB, conn *nats.Conn, config jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(patience); ; {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		stream, err := js.CreateStream(ctx, config)
		if cancel(); err == nil {
			return stream
		}
		if time.Now().After(late) {
			t.Fatal(err)
		}
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A cluster loses the leader of the stream, and elects another.
func TestNATSClusterLosesItsLeader(t *testing.T) {
	t.Parallel()
	servers, urls := cluster(t)
	conn, err := nats.Connect(urls, nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	makeClustered(t, conn, everything(3))
	tr := underFire(t, urls, ModeAuto, 1<<17)
	stop := tr.steadily()
	tr.await("some events", moreThan(100, tr.stats()))

	var left *server.Server
	lost := false
	for _, s := range servers {
		if s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, "FLATD") && !lost {
			broker.Stop(s)
			lost = true
		} else {
			left = s
		}
	}
	if !lost {
		t.Fatal("no server leads the stream")
	}
	tr.await("some events under another leader", moreThan(500, tr.stats()))
	stop()
	checkStoredOnce(t, left, tr.endWhole())
}

// proxy stands between flatd and its server, and can be slow.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	more  *sync.Cond
	rate  int // bytes a second towards the server; 0: none, -1: all
	conns []net.Conn
}

const fast = -1

func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: strings.TrimPrefix(target, "nats://"), rate: fast}
	p.more = sync.NewCond(&p.mu)
	t.Cleanup(p.stop)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn.(*net.TCPConn))
		}
	}()
	return p
}

func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

func (p *proxy) set(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = rate
	p.more.Broadcast()
}

func (p *proxy) stop() {
	p.listener.Close()
	p.set(fast)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *proxy) serve(from *net.TCPConn) {
	to, err := net.Dial("tcp", p.target)
	if err != nil {
		from.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, from, to)
	p.mu.Unlock()
	go func() { _, _ = io.Copy(from, to); from.Close() }()
	defer to.Close()
	buffer := make([]byte, 1024)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		p.wait(n)
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// wait takes the time that n bytes take.
func (p *proxy) wait(n int) {
	p.mu.Lock()
	for p.rate == 0 {
		p.more.Wait()
	}
	rate := p.rate
	p.mu.Unlock()
	if rate > 0 {
		time.Sleep(time.Second * time.Duration(n) / time.Duration(rate))
	}
}

// A path that takes longer for a batch than a write may is given smaller ones.
func TestNATSSlow(t *testing.T) {
	t.Parallel()
	s := broker.Start(t, serverOptions(t))
	makeStream(t, client(t, s), everything(1))
	p := startProxy(t, s.ClientURL())
	tr := underFire(t, p.url(), ModeAuto, 1<<17)
	p.set(25000) // 256 events are about 220 kB
	tr.publish(2000)
	tr.await("the first deadline", isDown)
	tr.await("events at that pace", moreThan(50, tr.stats()))
	p.set(fast)
	checkStoredOnce(t, s, tr.endWhole())
}

// A server that stalls for longer than a write may take has not lost an event
// nor the client its way, also without a stream.
func TestNATSStalls(t *testing.T) {
	t.Parallel()
	s := broker.Start(t, serverOptions(t))
	sub := subscribe(t, client(t, s))
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, s.ClientURL())
	tr := underFire(t, p.url(), ModeCore, 1<<17)
	p.set(0)
	tr.publish(5000)
	tr.await("the deadline", isDown)
	p.set(fast)
	n := tr.endWhole()
	for seen := make(map[string]bool); len(seen) < n; {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(seen), n, err)
		}
		seen[m.Header.Get("Nats-Msg-Id")] = true
	}
}

// A server that lets flatd publish nothing is an outage: told once, nothing lost.
// One that lets it publish some is none: what it refuses has failed.
func TestNATSPermissionComesAndGoes(t *testing.T) {
	t.Parallel()
	o := serverOptions(t)
	withPermissions := func(p *server.Permissions) *server.Options {
		with := o.Clone()
		with.Users = []*server.User{
			{Username: "admin", Password: "a"},
			{Username: "flatd", Password: "f", Permissions: p},
		}
		return with
	}
	s := broker.Start(t, withPermissions(allowed("other")))
	out := newTestNATS(t, NATSOptions{URL: s.ClientURL(), Mode: ModeCore, User: "flatd", Password: file(t, "f")})
	tr := newTrial(t, out, 1<<16)
	reload := func(p *server.Permissions) {
		t.Helper()
		with := withPermissions(p)
		with.Port = port(s)
		if err := s.ReloadOptions(with); err != nil {
			t.Fatal(err)
		}
	}
	const each = 1000
	tr.publish(each)
	stats := tr.await("the refusal", isDown)
	if !strings.Contains(stats.LastError, "Permissions Violation for Publish to \"flatd.v1.web1_example_com.tcp.established\"") {
		t.Errorf("the error is %s", stats.LastError)
	}
	tr.publish(each)
	if s := tr.stats(); s.Queued != 2*each || tr.told() != 1 {
		t.Errorf("told %d times of %+v", tr.told(), s)
	}

	reload(allowed("flatd.v1.*.tcp.established"))
	if s := tr.await("the permission", isIdle); s.Delivered != 2*each {
		t.Errorf("with permission: %+v", s)
	}
	for n := range uint64(each) {
		i := tr.pool.Get()
		i.Event = *refused(n)
		tr.published++
		tr.fanout.Publish(i)
		tr.publish(1)
	}
	stats = tr.end()
	// Told again if the first that is refused went alone: it is not known then
	// whether the server takes any.
	if stats.Delivered != 3*each || stats.Failed != each || tr.told() > 2 {
		t.Errorf("of %d events %d were not allowed, told %d times: %+v", 4*each, each, tr.told(), stats)
	}
	if !strings.Contains(stats.LastError, "tcp.refused") {
		t.Errorf("why some failed is not told: %q", stats.LastError)
	}
}
