package daemon

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/tshark"
	"github.com/flatd/flatd/packaging/testbed/wild"
)

// TestReplayedCapture records real traffic, then puts its packets on the wire
// between two hosts that know nothing of it, and has tshark judge what flatd
// makes of the replay.
func TestReplayedCapture(t *testing.T) {
	client, server := testbed.Pair(t)
	tr := newTraffic(t, client, server)
	recording := tshark.StartCapture(t, client)
	const rounds = 10
	for range rounds {
		tr.everything()
	}
	recording.Stop()
	recorded, err := wild.Read(recording.File)
	if err != nil {
		t.Fatal(err)
	}

	left, right := testbed.Pair(t)
	near := newSetup(t, left, testbed.Build(t, "flatd", ""), "measure.timeout = \"1500ms\"\n").start(t)
	c := tshark.StartCapture(t, left)
	silence(t, left, right)
	replay(t, recorded, tshark.Read(t, recording.File), tshark.Addressed(client), left, right)
	near.waitN("all of the replay", rounds*(answeredOfEverything+silentOnClient), onSide("client"))
	c.Stop()
	sameDurations(t, near.judge(t, c.Found("client", tshark.Addressed(client)), "client"))
}

// silence takes away what makes the hosts say something of their own.
func silence(t *testing.T, hosts ...*testbed.Host) {
	t.Helper()
	for _, h := range hosts {
		testbed.Run(t, "ip", "-n", h.Name, "address", "flush", "dev", "eth0")
	}
}

// replay puts a capture's frames on the wire as a host saw them: from the left
// what it sent, from the right what it received, in order and at the pace of
// the recording, but for long pauses.
func replay(t *testing.T, frames []wild.Frame, packets []tshark.Packet, host tshark.Hosts, left, right *testbed.Host) {
	t.Helper()
	const longest = 2 * time.Millisecond
	fromLeft, fromRight := rawSocket(t, left), rawSocket(t, right)
	for i, f := range frames {
		if i > 0 {
			// The pause is part of what is replayed.
			time.Sleep(min(f.Time.Sub(frames[i-1].Time), longest))
		}
		// What is for the host itself never was on its wire.
		ways := host.Ways(&packets[i])
		if len(ways) != 1 || packets[i].Group() {
			continue
		}
		socket := fromRight
		if ways[0] {
			socket = fromLeft
		}
		if _, err := unix.Write(socket, f.Bytes); err != nil {
			t.Fatalf("send a frame of %d bytes: %v", len(f.Bytes), err)
		}
	}
}

// rawSocket sends whole frames out of the host's eth0.
func rawSocket(t *testing.T, h *testbed.Host) int {
	t.Helper()
	fd, err := -1, error(nil)
	h.Do(func() {
		var iface *net.Interface
		if iface, err = net.InterfaceByName("eth0"); err != nil {
			return
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: iface.Index})
		}
	})
	if err != nil {
		t.Fatalf("open a raw socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
