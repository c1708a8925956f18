package systemd

import (
	"cmp"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/nats-io/nats.go"
)

// inGuest says whether this runs as the job of a guest (guests/test.sh), which has
// two packages beside it, and where all else is this test's.
func inGuest() bool { return os.Getenv("FLATD_GUEST") != "" }

// guestBed is the guest as a bed. Without KVM it takes ten times as long for all.
func guestBed(t *testing.T) *bed {
	patience = 5 * time.Minute
	b := &bed{dir: "/bed", pid: "1", since: fmt.Sprintf("@%d", time.Now().Unix()), watchdog: 15}
	// Of the test before. The namespace alone would take its veth along later.
	b.try(t, "ip", "link", "delete", "flat0")
	b.try(t, "ip", "netns", "delete", "peer")
	return b
}

// TestGuest has flatd measure what only a kernel of the test's own can be made to
// do: delay, loss, VLANs, tunnels.
func TestGuest(t *testing.T) {
	if !inGuest() {
		t.Skip("takes a guest: make test-guests")
	}
	s := &service{bed: boot(t), t: t}
	for i, step := range []struct {
		name string
		test func(*service, *testing.T)
	}{
		{"starts for the guest", (*service).startInGuest},
		{"names the unit of a server and of a client", (*service).nameBothEnds},
		{"times out where packets are dropped", (*service).dropped},
		{"finds a delay of 40 ms", (*service).delayed},
		{"counts retransmissions as the kernel does", (*service).lossy},
		{"measures a VLAN", (*service).vlan},
		{"measures WireGuard", (*service).wireguard},
		{"publishes to Debian's nats-server", (*service).publish},
	} {
		if !s.step(t, step.name, func(t *testing.T) { step.test(s, t) }) && i == 0 {
			t.Fatal("the other steps need this one")
		}
	}
}

// TestGuestAfterReboot comes after TestGuest and a reboot.
func TestGuestAfterReboot(t *testing.T) {
	if !inGuest() {
		t.Skip("takes a guest: make test-guests")
	}
	s := &service{bed: boot(t), t: t}
	s.step(t, "measures again", s.measureAgain)
}

func (s *service) startInGuest(t *testing.T) {
	s.apt(t, "install", deb.file("1.0.1"))
	s.write(t, "/etc/flatd/flatd.toml.d/50-bed.toml", "interfaces = [\"flat0*\", \"wg*\"]\n[outputs.journald]\nprofile = \"all\"\n")
	s.self, s.peer = s.addPeer(t)
	for _, h := range []host{s.self, s.peer} {
		listener, err := h.listen(openPort)
		if err != nil {
			t.Fatal(err)
		}
		s.t.Cleanup(func() { listener.Close() })
	}
	s.run(t, "systemctl", "enable", "flatd")
	s.run(t, "systemctl", "restart", "flatd")
	s.wantPrograms(t, 1)
}

// nameBothEnds has a unit of this host's answer, and another one ask.
func (s *service) nameBothEnds(t *testing.T) {
	s.run(t, "systemctl", "start", "nginx")
	s.run(t, "ip", "netns", "exec", "peer", "curl", "-sS", "-o", "/dev/null", "http://"+s.self.address)
	for name, want := range map[string]string{
		"SERVICE_NAME": "nginx.service", "FLATD_SIDE": "server", "FLATD_RESULT": "established", "SOURCE_IP": s.peer.address,
	} {
		if got := s.await(t, 1, "DESTINATION_PORT=80")[0][name]; got != want {
			t.Errorf("%s is %v, want %s", name, got, want)
		}
	}
	s.run(t, "systemctl", "stop", "nginx")
	s.run(t, "systemd-run", "--wait", "--unit=visitor", "bash", "-c",
		fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", s.peer.address, openPort))
	e := s.await(t, 1, "SERVICE_NAME=visitor.service")[0]
	if e["FLATD_SIDE"] != "client" || e["FLATD_RESULT"] != "established" {
		t.Errorf("the visitor's connection is %v", map[string]any(e))
	}
}

// dropped has the peer drop what comes to a port.
func (s *service) dropped(t *testing.T) {
	const dropIn = "/etc/flatd/flatd.toml.d/60-timeout.toml"
	s.write(t, dropIn, "[measure]\ntimeout = \"2s\"\n")
	s.run(t, "systemctl", "reload", "flatd")
	port := strconv.Itoa(closedPort + s.closed)
	s.closed++
	s.run(t, "ip", "netns", "exec", "peer", "nft",
		"add table inet drops; add chain inet drops arriving { type filter hook input priority 0; }; add rule inet drops arriving tcp dport "+port+" drop")
	if out, err := s.try(t, "curl", "-s", "-m", "1", "http://"+s.peer.address+":"+port); err == nil {
		t.Errorf("curl reaches a port whose packets are dropped: %s", out)
	}
	e := s.await(t, 1, "DESTINATION_PORT="+port)[0]
	if e["FLATD_RESULT"] != "timeout" || e["FLATD_LIMIT"] != "2000000000" || e["EVENT_DURATION"] != nil {
		t.Errorf("want a timeout of 2 s without a duration: %v", map[string]any(e))
	}
	s.run(t, "rm", dropIn)
	s.run(t, "systemctl", "reload", "flatd")
}

// netem has what the peer sends delayed or lost, until the step ends.
func (s *service) netem(t *testing.T, how ...string) {
	t.Helper()
	s.run(t, "tc", append([]string{"-n", "peer", "qdisc", "add", "dev", "peer0", "root", "netem"}, how...)...)
}

func (s *service) withoutNetem(t *testing.T) {
	t.Helper()
	s.run(t, "tc", "-n", "peer", "qdisc", "delete", "dev", "peer0", "root")
}

// delayed compares the median with the delay, as single ones take what a loaded
// machine makes of them.
func (s *service) delayed(t *testing.T) {
	const delay, count = 40 * time.Millisecond, 21
	s.netem(t, "delay", delay.String())
	defer s.withoutNetem(t)
	var durations []time.Duration
	for _, e := range s.connect(t, count, 1) {
		durations = append(durations, time.Duration(e.number(t, "EVENT_DURATION")))
	}
	slices.Sort(durations)
	median := durations[len(durations)/2]
	t.Logf("%d connections took %v to %v, at median %v", len(durations), durations[0], durations[len(durations)-1], median)
	if durations[0] < delay || median >= delay*3/2 {
		t.Errorf("the delay is %v; want no duration below, and a median below %v", delay, delay*3/2)
	}
}

// lossy compares with the kernel's own count of SYNs that it sent again.
func (s *service) lossy(t *testing.T) {
	s.netem(t, "loss", "10%")
	defer s.withoutNetem(t)
	before := s.resentSYNs(t)
	var events []entry
	for len(events) == 0 || s.resentSYNs(t) == before {
		events = append(events, s.connect(t, 20, 20)...)
	}
	var got int64
	for _, e := range events {
		got += e.number(t, "FLATD_RETRANSMITS")
	}
	t.Logf("%d retransmits in %d connections", got, len(events))
	if want := s.resentSYNs(t) - before; got != want {
		t.Errorf("flatd tells of %d retransmits, the kernel of %d", got, want)
		for _, e := range events {
			t.Logf("event %v of port %v at %v: %v retransmits", e["EVENT_ID"], e["SOURCE_PORT"], e["_SOURCE_REALTIME_TIMESTAMP"], e["FLATD_RETRANSMITS"])
		}
	}
}

func (s *service) resentSYNs(t *testing.T) int64 {
	t.Helper()
	out := strings.Fields(s.run(t, "nstat", "-asz", "TcpExtTCPSynRetrans"))
	index := slices.Index(out, "TcpExtTCPSynRetrans")
	if index < 0 || index+1 == len(out) {
		t.Fatalf("nstat says %q", out)
	}
	count, err := strconv.ParseInt(out[index+1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// connect makes connections to the peer, so many at a time, and returns what is
// told of them, by source port.
func (s *service) connect(t *testing.T, count, atOnce int) (events []entry) {
	t.Helper()
	ports, errs := make([]int, count), make([]error, count)
	turns := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for i := range count {
		turns <- struct{}{}
		wait.Go(func() {
			ports[i], errs[i] = s.self.dial(s.peer, openPort)
			<-turns
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	// The same match several times means any of them.
	matches := []string{"FLATD_SIDE=client", fmt.Sprintf("DESTINATION_PORT=%d", openPort)}
	for _, port := range ports {
		matches = append(matches, fmt.Sprintf("SOURCE_PORT=%d", port))
	}
	events = s.await(t, count, matches...)
	slices.SortFunc(events, func(a, b entry) int { return cmp.Compare(a.number(t, "SOURCE_PORT"), b.number(t, "SOURCE_PORT")) })
	return events
}

// vlan wants a connection in a VLAN told by its device, and by the one below.
func (s *service) vlan(t *testing.T) {
	self, peer := s.self, s.peer
	self.address, peer.address = "198.51.100.1", "198.51.100.2"
	for _, command := range []string{
		"link add link flat0 name flat0.7 type vlan id 7",
		"address add " + self.address + "/24 dev flat0.7",
		"-n peer link add link peer0 name peer0.7 type vlan id 7",
		"-n peer address add " + peer.address + "/24 dev peer0.7",
		"-n peer link set peer0.7 up",
		"link set flat0.7 up",
	} {
		s.run(t, "ip", strings.Fields(command)...)
	}
	s.await(t, 1, "EVENT_ACTION=attach", "OBSERVER_INTERFACE_NAME=flat0.7")
	port := fmt.Sprintf("DESTINATION_PORT=%d", s.wantRefused(t, self, peer))
	vlan := s.await(t, 1, port, "OBSERVER_INTERFACE_NAME=flat0.7")[0]
	if got := vlan["OBSERVER_VLAN_ID"]; got != nil {
		t.Errorf("on the VLAN's device OBSERVER_VLAN_ID is %v", got)
	}
	below := s.await(t, 1, port, "OBSERVER_INTERFACE_NAME=flat0")[0]
	if got := below["OBSERVER_VLAN_ID"]; got != "7" {
		t.Errorf("on the device below OBSERVER_VLAN_ID is %v, want 7", got)
	}
	if below["NETWORK_COMMUNITY_ID"] != vlan["NETWORK_COMMUNITY_ID"] {
		t.Errorf("one connection has two ids: %v, %v", below["NETWORK_COMMUNITY_ID"], vlan["NETWORK_COMMUNITY_ID"])
	}
	s.run(t, "ip", "link", "delete", "flat0.7")
}

// wireguard wants a connection through a tunnel told, and the tunnel's own
// handshake.
func (s *service) wireguard(t *testing.T) {
	self, peer := s.self, s.peer
	self.address, peer.address = "203.0.113.1", "203.0.113.2"
	selfKey, peerKey := s.wireguardKey(t, "/etc/wireguard/self"), s.wireguardKey(t, "/etc/wireguard/peer")
	for _, command := range []string{
		"ip link add wg0 type wireguard",
		"wg set wg0 listen-port 51820 private-key /etc/wireguard/self peer " + peerKey + " allowed-ips " + peer.address + "/32 endpoint " + s.peer.endpoint(51820),
		"ip address add " + self.address + "/24 dev wg0",
		"ip -n peer link add wg0 type wireguard",
		"ip netns exec peer wg set wg0 listen-port 51820 private-key /etc/wireguard/peer peer " + selfKey + " allowed-ips " + self.address + "/32",
		"ip -n peer address add " + peer.address + "/24 dev wg0",
		"ip -n peer link set wg0 up",
		"ip link set wg0 up",
	} {
		arguments := strings.Fields(command)
		s.run(t, arguments[0], arguments[1:]...)
	}
	s.await(t, 1, "EVENT_ACTION=attach", "OBSERVER_INTERFACE_NAME=wg0")
	e := s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", s.wantRefused(t, self, peer)))[0]
	if e["OBSERVER_INTERFACE_NAME"] != "wg0" || e["FLATD_RESULT"] != "refused" || e["SOURCE_IP"] != self.address {
		t.Errorf("through the tunnel: %v", map[string]any(e))
	}
	e = s.await(t, 1, "DESTINATION_PORT=51820")[0]
	if e["OBSERVER_INTERFACE_NAME"] != "flat0" || e["FLATD_RESULT"] != "answered" || e["NETWORK_TRANSPORT"] != "udp" {
		t.Errorf("the tunnel's handshake: %v", map[string]any(e))
	}
	s.run(t, "ip", "link", "delete", "wg0")
}

// wireguardKey writes a private key and returns its public one.
func (s *service) wireguardKey(t *testing.T, file string) (public string) {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, file, base64.StdEncoding.EncodeToString(key.Bytes())+"\n")
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
}

func (s *service) publish(t *testing.T) {
	if _, err := exec.LookPath("nats-server"); err != nil {
		t.Skip("this suite has no nats-server")
	}
	s.run(t, "systemctl", "start", "nats-server")
	conn, err := nats.Connect(nats.DefaultURL, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	subscription, err := conn.SubscribeSync("flatd.v1.*.tcp.refused")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	const dropIn = "/etc/flatd/flatd.toml.d/60-nats.toml"
	s.write(t, dropIn, "[outputs.nats]\nurl = \""+nats.DefaultURL+"\"\n")
	s.run(t, "systemctl", "reload", "flatd")
	port := s.wantRefused(t, s.self, s.peer)
	message, err := subscription.NextMsg(patience)
	if err != nil {
		t.Fatalf("wait for the message: %v", err)
	}
	var event struct {
		Destination struct{ Port int }
	}
	if err := json.Unmarshal(message.Data, &event); err != nil || event.Destination.Port != port {
		t.Errorf("%s has port %d, want %d (%v)", message.Data, event.Destination.Port, port, err)
	}
	e := s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", port))[0]
	if id := message.Header.Get(nats.MsgIdHdr); id != e["EVENT_ID"] {
		t.Errorf("the message's id is %q, the journal's %v", id, e["EVENT_ID"])
	}
	s.run(t, "rm", dropIn)
	s.run(t, "systemctl", "reload", "flatd")
	s.run(t, "systemctl", "stop", "nats-server")
}

// measureAgain has not started flatd: the boot has.
func (s *service) measureAgain(t *testing.T) {
	s.run(t, "systemctl", "is-active", "flatd.service", "flatd.socket")
	s.self, s.peer = s.addPeer(t)
	s.await(t, 1, "EVENT_ACTION=attach", "OBSERVER_INTERFACE_NAME=flat0")
	if got := s.run(t, "flatctl", "status"); !strings.Contains(got, "absent") {
		t.Errorf("flatctl status does not say that the kernel's half was absent:\n%s", got)
	}
	s.wantPrograms(t, 1)
	s.await(t, 1, fmt.Sprintf("DESTINATION_PORT=%d", s.wantRefused(t, s.self, s.peer)))
	s.since = "@0"
	boots := make(map[string]bool)
	for _, e := range s.journal(t, "FLATD_RESULT=refused") {
		id, _ := e["EVENT_ID"].(string)
		prefix, _, _ := strings.Cut(id, "-")
		boots[prefix] = true
	}
	if len(boots) != 2 {
		t.Errorf("the events' ids have %d prefixes, want one for each of two boots", len(boots))
	}
}

// wantNoPrograms looks at all programs of the kernel, wherever they are attached.
func wantNoPrograms(t *testing.T) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err != nil {
			t.Fatalf("list the kernel's programs: %v", err)
		}
		id = next
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			t.Fatalf("open program %d: %v", id, err)
		}
		info, err := program.Info()
		program.Close()
		if err != nil {
			t.Fatalf("describe program %d: %v", id, err)
		}
		if strings.HasPrefix(info.Name, "flat") {
			t.Errorf("the program %s is left", info.Name)
		}
	}
}
