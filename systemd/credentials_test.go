package systemd

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/flatd/flatd/packaging/testbed/broker"
)

// credentialsDirectory is where systemd puts what LoadCredential= names.
const credentialsDirectory = "/run/credentials/flatd.service/"

// TestCredentials has a flatd under the shipped unit log in to a real NATS server
// in each way there is, with files that systemd hands over.
func TestCredentials(t *testing.T) {
	if testing.Short() {
		t.Skip("boots systemd")
	}
	s := &service{bed: boot(t), t: t}
	s.install(t)
	s.self, s.peer = s.addPeer(t)
	for _, l := range broker.Logins {
		s.step(t, l.Name, func(t *testing.T) {
			demand := l.Demand(t)
			hub := s.startNATS(t, demand.Configure)
			s.loadCredentials(t, demand)
			s.configureNATS(t, hub.ClientURL(), demand)
			s.run(t, "systemctl", "restart", "flatd")
			s.awaitNATS(t, func(o natsStatus) bool { return !o.Down && o.Delivered > 0 })
			if got := mustVarz(t, hub).InMsgs; got == 0 {
				t.Error("nothing has come to the server")
			}
		})
	}
	s.step(t, "one that is wrong", s.wrongToken)
	s.step(t, "the shipped example", s.credentialsExample)
	s.run(t, "rm", "-r", "/etc/flatd/flatd.toml.d/50-nats.toml", "/etc/systemd/system/flatd.service.d/nats.conf", "/etc/flatd/secrets", "/etc/flatd/nats.creds")
	s.run(t, "systemctl", "daemon-reload")
}

// startNATS runs a server in the bed, reachable at 127.0.0.1.
func (s *service) startNATS(t *testing.T, configure func(*server.Options)) (hub *server.Server) {
	t.Helper()
	o := new(server.Options)
	configure(o)
	err := in(s.self.namespace, func() error { hub = broker.Start(t, o); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return hub
}

// loadCredentials puts secrets where only root reads them, and has the unit load
// them.
func (s *service) loadCredentials(t *testing.T, demand broker.Demand) {
	t.Helper()
	dropIn := "[Service]\n"
	for _, key := range slices.Sorted(maps.Keys(demand.Files)) {
		path := "/etc/flatd/secrets/nats." + key
		s.write(t, path, demand.Files[key])
		s.run(t, "chmod", "0600", path)
		dropIn += "LoadCredential=nats." + key + ":" + path + "\n"
	}
	s.write(t, "/etc/systemd/system/flatd.service.d/60-nats.conf", dropIn)
	s.run(t, "systemctl", "daemon-reload")
}

// configureNATS names the files where they are then.
func (s *service) configureNATS(t *testing.T, url string, demand broker.Demand) {
	t.Helper()
	config := "[outputs.nats]\nurl = \"" + url + "\"\nuser = \"" + demand.User + "\"\n"
	for _, key := range slices.Sorted(maps.Keys(demand.Files)) {
		config += key + " = \"" + credentialsDirectory + "nats." + key + "\"\n"
	}
	s.write(t, "/etc/flatd/flatd.toml.d/60-nats.toml", config)
	s.run(t, "flatctl", "config", "check") // in a terminal, where the files are not to be seen
}

func mustVarz(t *testing.T, hub *server.Server) *server.Varz {
	t.Helper()
	v, err := hub.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// natsStatus is what /v1/status says of the output to NATS.
type natsStatus struct {
	Name      string
	Delivered uint64
	Down      bool
	Error     string
}

// awaitNATS waits until the output to NATS is as wanted.
func (s *service) awaitNATS(t *testing.T, wanted func(natsStatus) bool) {
	t.Helper()
	var all struct{ Outputs []natsStatus }
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := json.Unmarshal([]byte(s.curl(t, status)), &all); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(all.Outputs, func(o natsStatus) bool { return o.Name == "nats" && wanted(o) }) {
			return
		}
	}
	t.Fatalf("waited in vain; the outputs are %+v", all.Outputs)
}

// wrongToken: the error names the file. A credential is what it was when the unit
// started, so that a corrected one takes a restart.
func (s *service) wrongToken(t *testing.T) {
	demand := broker.Logins[0].Demand(t)
	hub := s.startNATS(t, demand.Configure)
	right := demand.Files["token"]
	demand.Files["token"] = "wrong"
	s.loadCredentials(t, demand)
	s.configureNATS(t, hub.ClientURL(), demand)
	s.run(t, "systemctl", "restart", "flatd")
	s.awaitNATS(t, func(o natsStatus) bool {
		return o.Down && strings.Contains(o.Error, "Authorization Violation (it was shown the token in "+credentialsDirectory+"nats.token)")
	})
	demand.Files["token"] = right
	s.loadCredentials(t, demand)
	s.run(t, "systemctl", "restart", "flatd")
	s.awaitNATS(t, func(o natsStatus) bool { return !o.Down && o.Delivered > 0 })
}

// credentialsExample uses the files that are shipped as examples, but for the
// server's name.
func (s *service) credentialsExample(t *testing.T) {
	s.run(t, "rm", "-r", "/etc/flatd/flatd.toml.d/60-nats.toml", "/etc/systemd/system/flatd.service.d/60-nats.conf")
	var demand broker.Demand
	for _, l := range broker.Logins {
		if l.Name == "credentials" {
			demand = l.Demand(t)
		}
	}
	hub := s.startNATS(t, demand.Configure)
	example := func(name string) string {
		text, err := os.ReadFile("../packaging/examples/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const urls = `"tls://nats1.example.com,tls://nats2.example.com"`
	config := example("50-nats.toml")
	if strings.Count(config, urls) != 1 {
		t.Fatalf("the example does not have %s:\n%s", urls, config)
	}
	s.write(t, "/etc/flatd/flatd.toml.d/50-nats.toml", strings.Replace(config, urls, `"`+hub.ClientURL()+`"`, 1))
	s.write(t, "/etc/systemd/system/flatd.service.d/nats.conf", example("flatd-nats.conf"))
	s.write(t, "/etc/flatd/nats.creds", demand.Files["credentials"])
	s.run(t, "chmod", "0600", "/etc/flatd/nats.creds")
	s.run(t, "systemctl", "daemon-reload")
	s.run(t, "systemctl", "restart", "flatd")
	s.awaitNATS(t, func(o natsStatus) bool { return !o.Down && o.Delivered > 0 })
}
