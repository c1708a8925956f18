package daemon

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/tshark"
)

// What gets lost on the way to and from each of these ports, of one connection
// over each family: so many packets of a kind, then no more for a while.
const (
	oneSYNLost    = 7101
	twoSYNsLost   = 7102
	oneSYNACKLost = 7103
	oneACKLost    = 7104
)

// Rules for one family. A rule counts its own packets.
const losses = `
	ether type FAMILY tcp dport 7101 tcp flags & (syn | ack) == syn numgen inc mod 2 < 1 drop
	ether type FAMILY tcp dport 7102 tcp flags & (syn | ack) == syn numgen inc mod 3 < 2 drop
	ether type FAMILY tcp sport 7103 tcp flags & (syn | ack) == syn | ack numgen inc mod 2 < 1 drop
	ether type FAMILY tcp dport 7104 tcp flags & (syn | ack | fin | rst | psh) == ack numgen inc mod 2 < 1 drop
`

// TestLossyPath makes connections over a path that loses parts of the
// handshake. Both ends have to tell what was sent again, what the initiator
// waited and, apart from that, how long the network took, as tshark does from
// what passed each of them.
func TestLossyPath(t *testing.T) {
	client, server, bridge := testbed.Bridged(t)
	lose(t, bridge)
	binary := testbed.Build(t, "flatd", "")
	near := newSetup(t, client, binary, "").start(t)
	far := newSetup(t, server, binary, "").start(t)
	tr := &traffic{t: t, client: client, server: server}
	atClient, atServer := tshark.StartCapture(t, client), tshark.StartCapture(t, server)

	var all errgroup.Group
	for _, port := range []int{oneSYNLost, twoSYNsLost, oneSYNACKLost, oneACKLost} {
		tr.listenTCP(port)
		for _, address := range addresses(server) {
			all.Go(func() error {
				conn, err := dial(client, "tcp", join(address, port))
				if err != nil {
					return err
				}
				_, _ = io.Copy(io.Discard, conn) // until the server, too, is connected
				return conn.Close()
			})
		}
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	atClient.End()
	atServer.End()

	asked := near.judge(t, atClient.Found("client", tshark.Addressed(client)), "client")
	sameDurations(t, asked)
	closeTo(t, "round trip", asked, func(v verdict) (got, want time.Duration) { return time.Duration(v.Flatd.RTT), v.Found.RTT })
	repeats := make(map[uint16]int)
	for _, v := range asked {
		port := v.Found.Destination.Port()
		repeats[port] += v.Flatd.Retransmits
		if v.Flatd.Retransmits != v.Resent {
			t.Errorf("%s: %d retransmits, of which tshark knows %d", v.Exchange, v.Flatd.Retransmits, v.Resent)
		}
		if v.Flatd.Ambiguous || (v.Flatd.RTT == 0) == v.HasRTT {
			t.Errorf("%s: rtt %d ns, ambiguous %t, tshark found %s", v.Exchange, v.Flatd.RTT, v.Flatd.Ambiguous, v.Found.RTT)
		}
	}
	for port, want := range map[uint16]int{oneSYNLost: 2, twoSYNsLost: 4, oneACKLost: 0} {
		if repeats[port] != want {
			t.Errorf("%d SYNs sent again to port %d, want %d: the path did not lose what it should", repeats[port], port, want)
		}
	}

	was := far.judge(t, atServer.Found("server", tshark.Addressed(server)), "server")
	sameDurations(t, was)
	answeredOnce := slices.DeleteFunc(slices.Clone(was), func(v verdict) bool { return v.Found.ClientRTT > time.Second/2 })
	closeTo(t, "the client's round trip", answeredOnce, clientRTT)
	for _, v := range was {
		// Which of two SYN/ACKs the client's ACK was for cannot be known.
		again := v.Found.Destination.Port() == oneACKLost || v.Found.Destination.Port() == oneSYNACKLost
		if (v.Flatd.ClientRTT == 0) != again || (v.Found.ClientRTT > time.Second/2) != again {
			t.Errorf("%s: the client took %d ns, tshark says %s", v.Exchange, v.Flatd.ClientRTT, v.Found.ClientRTT)
		}
	}
}

// lose has nftables drop what the path is to lose.
func lose(t *testing.T, bridge string) {
	t.Helper()
	nft := testbed.Tool(t, "nft")
	rules := strings.ReplaceAll(losses, "FAMILY", "ip") + strings.ReplaceAll(losses, "FAMILY", "ip6")
	command := (&testbed.Host{Name: bridge}).Command(nft, "-f", "-")
	command.Stdin = strings.NewReader("table bridge path {\n\tchain forward {\n\ttype filter hook forward priority 0;\n" + rules + "\t}\n}\n")
	if out, err := command.CombinedOutput(); err != nil {
		testbed.Missing(t, "nftables on a bridge: %v\n%s", err, out)
	}
}
