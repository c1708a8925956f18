package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/broker"
)

// startNATS runs a NATS server in a host's namespace.
func startNATS(t testing.TB, h *testbed.Host, o *server.Options) (s *server.Server) {
	t.Helper()
	h.Do(func() { s = broker.Start(t, o) })
	if s == nil {
		t.FailNow() // Start has said why, in a goroutine that it ended
	}
	return s
}

// natsClient is connected to a server in this process.
func natsClient(t testing.TB, s *server.Server, options ...nats.Option) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect("", append(options, nats.InProcessServer(s))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// askNATS asks until there is a flatd that answers.
func askNATS(t *testing.T, conn *nats.Conn, subject, query string, answer any) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		m, err := conn.Request(subject, []byte(query), patience)
		switch {
		case errors.Is(err, nats.ErrNoResponders) && time.Now().Before(deadline):
			continue
		case err != nil:
			t.Fatalf("%s: %v", subject, err)
		case m.Header.Get(micro.ErrorHeader) != "":
			t.Fatalf("%s: %v", subject, m.Header)
		}
		if err := json.Unmarshal(m.Data, answer); err != nil {
			t.Fatalf("%s: %v: %s", subject, err, m.Data)
		}
		return
	}
}

// TestNATSService: a flatd is found over NATS, and its endpoints answer what the
// control socket does.
func TestNATSService(t *testing.T) {
	client, host := testbed.Pair(t)
	hub := startNATS(t, client, &server.Options{})
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), fmt.Sprintf("outputs.nats.url = %q\nsummary.interval = \"10s\"\n", hub.ClientURL()))
	p := s.start(t)
	tr := newTraffic(t, client, host)
	tr.connect(host.V4)
	tr.connectRefused(host.V6)
	p.waitN("both handshakes", 2, func(e event) bool { return e.Event.Dataset == "flatd.tcp" && e.Flatd.Side == "client" })
	p.wait("a summary", func(e event) bool { return e.Event.Dataset == "flatd.summary" })

	conn := natsClient(t, hub)
	var info micro.Info
	askNATS(t, conn, "$SRV.INFO.flatd", "", &info)
	hostname := info.Metadata["host"]
	if info.Name != "flatd" || info.Version == "" || hostname == "" {
		t.Errorf("%+v", info)
	}
	endpoints := make(map[string]string)
	for _, e := range info.Endpoints {
		endpoints[e.Name] = e.Subject
	}
	for _, e := range natsEndpoints {
		subject := "srv.flatd." + strings.NewReplacer(".", "_").Replace(hostname) + "." + e.name
		if endpoints[e.name] != subject {
			t.Errorf("endpoint %s is at %q, want %q", e.name, endpoints[e.name], subject)
		}
		var overNATS, overHTTP any
		// Counters go on counting, and an interval may end in between.
		for deadline := time.Now().Add(patience); ; {
			askNATS(t, conn, endpoints[e.name], "", &overNATS)
			p.ask("/v1/"+e.name, &overHTTP)
			if shape(overNATS) == shape(overHTTP) && (e.name != "summary" || reflect.DeepEqual(overNATS, overHTTP)) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s over NATS: %v\nover HTTP: %v", e.name, overNATS, overHTTP)
			}
		}
	}
	for query, want := range map[string]int{"result=refused": 1, "kind=tcp": 2, "kind=icmp": 0} {
		var histograms api.Histograms
		askNATS(t, conn, endpoints["histogram"], query, &histograms)
		if len(histograms.Parts) != want {
			t.Errorf("%d histograms have %s, want %d", len(histograms.Parts), query, want)
		}
	}
	if m, err := conn.Request(endpoints["histogram"], []byte("kind=carrier-pigeon"), patience); err != nil ||
		m.Header.Get(micro.ErrorCodeHeader) != "400" || !strings.Contains(m.Header.Get(micro.ErrorHeader), "icmp") {
		t.Errorf("of a kind that there is not: %v, %v", m, err)
	}
	var status state
	askNATS(t, conn, endpoints["status"], "", &status)
	if !status.Measuring || status.Books.Finished < 2 {
		t.Errorf("the status over NATS: %+v", status)
	}

	s.config = strings.Replace(s.config, "summary.", "outputs.nats.service = false\nsummary.", 1)
	s.write(t)
	response, err := p.get(http.MethodPost, "/v1/reload")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("reload: %s", response.Status)
	}
	// That is when flatd lets go of its connection; the server learns of it later.
	for {
		_, err := conn.Request(endpoints["status"], nil, time.Second)
		if errors.Is(err, nats.ErrNoResponders) {
			break
		}
		if err == nil {
			t.Fatal("answered after the service was switched off")
		}
	}
	p.end(syscall.SIGTERM)
}

// shape is what names and types there are in a JSON value.
func shape(v any) string {
	switch v := v.(type) {
	case map[string]any:
		fields := make(map[string]string, len(v))
		for name, field := range v {
			fields[name] = shape(field)
		}
		return fmt.Sprint(fields)
	case []any:
		if len(v) > 0 {
			return "[" + shape(v[0]) + "]"
		}
	}
	return fmt.Sprintf("%T", v)
}

// TestNATSServiceNotAllowed: what the service may not do is one line of the log,
// and every event is delivered.
func TestNATSServiceNotAllowed(t *testing.T) {
	client, host := testbed.Pair(t)
	hub := startNATS(t, client, &server.Options{Users: []*server.User{
		{Username: "watcher", Password: "w"},
		{Username: "flatd", Password: "f", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"flatd.v1.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}},
	}})
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("f"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("[outputs.nats]\nurl = %q\nuser = \"flatd\"\npassword = %q\n", hub.ClientURL(), password)
	conn := natsClient(t, hub, nats.UserInfo("watcher", "w"))
	sub, err := conn.SubscribeSync("flatd.v1.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), config).start(t)
	tr := newTraffic(t, client, host)
	for range 5 {
		tr.connect(host.V4)
	}
	p.waitN("the handshakes", 5, func(e event) bool { return e.Event.Dataset == "flatd.tcp" })
	for seen := 0; seen < 5; {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(m.Subject, ".tcp.established") {
			seen++
		}
	}
	p.end(syscall.SIGTERM)
	if n := strings.Count(p.stderr.String(), "does not let flatd answer requests"); n != 1 {
		t.Errorf("told %d times, want once", n)
	}
	if strings.Contains(p.stderr.String(), "output fails") {
		t.Error("the output failed")
	}
}
