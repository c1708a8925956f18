package outputs

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/flatd/flatd/packaging/testbed/broker"
)

// leafnodeFile is one of those that scale.md tells of.
func leafnodeFile(name string) string { return filepath.Join("../packaging/leafnode", name) }

// configured is what a server's file says, but for places that are the test's.
func configured(t *testing.T, name string) *server.Options {
	t.Helper()
	o, err := server.ProcessConfigFile(leafnodeFile(name))
	if err != nil {
		t.Fatal(err)
	}
	o.Host, o.Port, o.NoLog, o.NoSigs = "127.0.0.1", freePort(t), true, true
	o.StoreDir = t.TempDir()
	o.JetStreamMaxStore = 1 << 30
	return o
}

// addStream makes a stream of its file.
func addStream(t *testing.T, conn *nats.Conn, name string) jetstream.Stream {
	t.Helper()
	text, err := os.ReadFile(leafnodeFile(name))
	if err != nil {
		t.Fatal(err)
	}
	var config jetstream.StreamConfig
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	config.MaxBytes = min(config.MaxBytes, 1<<28)
	return makeStream(t, conn, config)
}

// TestLeafNode: events pass through a server at the edge to a hub. The hub goes
// away and comes back, then the edge does; nothing is lost, nothing doubled.
func TestLeafNode(t *testing.T) {
	t.Parallel()
	hubOptions, edgeOptions := configured(t, "hub.conf"), configured(t, "edge.conf")
	hubOptions.LeafNode.Host, hubOptions.LeafNode.Port = "127.0.0.1", freePort(t)
	edgeOptions.LeafNode.Remotes[0].URLs = []*url.URL{{Scheme: "nats-leaf", Host: fmt.Sprint("127.0.0.1:", hubOptions.LeafNode.Port)}}
	edgeOptions.LeafNode.ReconnectInterval = 100 * time.Millisecond
	hub, edge := broker.Start(t, hubOptions), broker.Start(t, edgeOptions)
	addStream(t, client(t, edge), "edge-stream.json")
	addStream(t, client(t, hub), "hub-stream.json")

	tr := underFire(t, edge.ClientURL(), ModeAuto, 1<<17)
	stop := tr.steadily()
	awaitHub(t, hub, func(stored uint64) bool { return stored > 100 })

	broker.Stop(hub)
	tr.await("some events without the hub", moreThan(500, tr.stats()))
	hub = broker.Start(t, hubOptions)
	awaitHub(t, hub, func(stored uint64) bool { return stored >= tr.stats().Delivered/2 })

	broker.Stop(edge)
	tr.await("the outage", isDown)
	broker.Start(t, edgeOptions)
	tr.await("some events after it", moreThan(500, tr.stats()))

	stop()
	all := tr.endWhole()
	awaitHub(t, hub, func(stored uint64) bool { return stored >= uint64(all) })
	checkStoredOnce(t, hub, all)
}

// awaitHub waits until the hub's stream holds as many events as wanted.
func awaitHub(t *testing.T, hub *server.Server, wanted func(stored uint64) bool) {
	t.Helper()
	js, err := jetstream.New(client(t, hub))
	if err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(4 * patience); ; time.Sleep(20 * time.Millisecond) {
		stream, err := js.Stream(deadline(t), "FLATD")
		if err != nil {
			t.Fatal(err)
		}
		if n := stream.CachedInfo().State.Msgs; wanted(n) {
			return
		} else if time.Now().After(late) {
			t.Fatalf("the hub has %d events: %+v", n, stream.CachedInfo().Sources[0])
		}
	}
}
