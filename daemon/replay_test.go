package daemon

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf/testbed"
)

// TestReplayedCapture records real traffic, then puts its packets on the wire
// between two hosts that know nothing of it, and has tshark judge what flatd
// makes of the replay.
func TestReplayedCapture(t *testing.T) {
	client, server := testbed.Pair(t)
	tr := newTraffic(t, client, server)
	recording := startCapture(t, client)
	const rounds = 10
	for range rounds {
		tr.everything()
	}
	recording.stop()
	packets := readPackets(t, recording.file)

	left, right := testbed.Pair(t)
	near := newSetup(t, left, testbed.Build(t, "flatd", ""), "measure.timeout = \"1500ms\"\n").start(t)
	c := startCapture(t, left)
	for _, h := range []*testbed.Host{left, right} {
		testbed.Run(t, "ip", "-n", h.Name, "address", "flush", "dev", "eth0")
	}
	replay(t, packets, client, left, right)
	near.waitN("all of the replay", rounds*(answeredOfEverything+silentOnClient), func(e event) bool { return e.Flatd.Side == "client" })
	c.stop()

	want := exchanges(c.read())
	got := reported(t, near.end(syscall.SIGINT), "client")
	sameExchanges(t, want, got)
	sameDurations(t, want, got)
}

type recorded struct {
	gopacket.CaptureInfo
	frame []byte
}

func readPackets(t *testing.T, file string) (packets []recorded) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	reader, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		frame, info, err := reader.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return packets
		}
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, recorded{info, frame})
	}
}

// replay sends what the client sent from the left and all else from the right,
// in the order of the recording and at its pace, but for long pauses.
func replay(t *testing.T, packets []recorded, client, left, right *testbed.Host) {
	t.Helper()
	const longest = 2 * time.Millisecond
	fromLeft, fromRight := rawSocket(t, left), rawSocket(t, right)
	var last time.Time
	for _, p := range packets {
		packet := gopacket.NewPacket(p.frame, layers.LayerTypeEthernet, gopacket.Lazy)
		network := packet.NetworkLayer()
		if network == nil || net.IP(network.NetworkFlow().Dst().Raw()).IsMulticast() {
			continue
		}
		if !last.IsZero() {
			// The pause is part of what is replayed.
			time.Sleep(min(p.Timestamp.Sub(last), longest))
		}
		last = p.Timestamp
		socket := fromRight
		if source := network.NetworkFlow().Src().String(); source == client.V4 || source == client.V6 {
			socket = fromLeft
		}
		if _, err := unix.Write(socket, p.frame); err != nil {
			t.Fatalf("send a frame: %v", err)
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
