package daemon

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// The ways in which a process can be sent every packet of an interface.
const (
	userSpaceSocket = "socket" // a packet socket (packet(7))
	userSpaceRing   = "ring"   // tc programs that put each packet's headers into a BPF ring buffer
)

const (
	userSpaceVariable = "FLATD_USERSPACE"        // way
	userSpaceObject   = "FLATD_USERSPACE_OBJECT" // compiled every_packet.c
)

// watchFromUserSpace is flatd's job without the kernel's half: a process of its
// own is sent each packet, decodes it, matches SYN and SYN/ACK. Like flatd's its
// CPU time counts until it has dealt with all of them, and it may lose none.
func watchFromUserSpace(b *testing.B, h *testbed.Host, way string) (stop func() time.Duration) {
	b.Helper()
	object := filepath.Join(b.TempDir(), "every_packet.o")
	testbed.Run(b, testbed.Tool(b, "clang"), "-O2", "-g", "-mcpu=v3", "-target", "bpf",
		"-idirafter", "/usr/include/x86_64-linux-gnu", "-idirafter", "/usr/include/aarch64-linux-gnu",
		"-c", "testdata/every_packet.c", "-o", object)
	watcher := h.Command(os.Args[0], "-test.run", "^TestUserSpaceProcess$")
	watcher.Env = append(os.Environ(), userSpaceVariable+"="+way, userSpaceObject+"="+object)
	watcher.Stderr = os.Stderr
	pipe, err := watcher.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := watcher.Start(); err != nil {
		b.Fatal(err)
	}
	out := bufio.NewScanner(pipe)
	if !out.Scan() { // it listens
		b.Fatalf("the watcher in user space said nothing: %v", out.Err())
	}
	last := make(chan string)
	go func() {
		var line string
		for out.Scan() {
			if strings.HasPrefix(out.Text(), "lost ") {
				line = out.Text()
			}
		}
		last <- line
	}()
	started := cpuTime(b, watcher.Process.Pid)
	return func() time.Duration {
		_ = watcher.Process.Signal(syscall.SIGTERM)
		line := <-last
		if err := watcher.Wait(); err != nil {
			b.Fatalf("the watcher in user space: %v", err)
		}
		if lost, err := strconv.Atoi(strings.TrimPrefix(line, "lost ")); err != nil || lost > 0 {
			b.Errorf("the watcher in user space (%s): %q packets", way, line)
		}
		return watcher.ProcessState.UserTime() + watcher.ProcessState.SystemTime() - started
	}
}

// TestUserSpaceProcess is not a test but the process that watchFromUserSpace
// starts. At SIGTERM it deals with what has come, and ends.
func TestUserSpaceProcess(t *testing.T) {
	source, ok := map[string]func(*testing.T) *packetSource{
		userSpaceSocket: packetsFromSocket,
		userSpaceRing:   packetsFromRing,
	}[os.Getenv(userSpaceVariable)]
	if !ok {
		t.Skip("the other half of BenchmarkConnectionStorm")
	}
	packets := source(t)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		packets.end()
	}()
	fmt.Println("listening")

	var ethernet layers.Ethernet
	var ip layers.IPv4
	var tcp layers.TCP
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &ethernet, &ip, &tcp)
	parser.IgnoreUnsupported = true
	asked := make(map[gopacket.Flow]time.Duration)
	decoded := make([]gopacket.LayerType, 0, 4)
	for {
		packet, at, err := packets.next()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ringbuf.ErrFlushed) {
			fmt.Printf("lost %d\n", packets.lost())
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if parser.DecodeLayers(packet, &decoded) != nil || len(decoded) < 3 || !tcp.SYN {
			continue
		}
		if ports := tcp.TransportFlow(); !tcp.ACK {
			asked[ports] = at
		} else if began, ok := asked[ports.Reverse()]; ok {
			delete(asked, ports.Reverse())
			fmt.Printf("{\"source\":%q,\"destination\":%q,\"duration\":%d}\n", ip.DstIP, ip.SrcIP, at-began)
		}
	}
}

// packetSource is a way in which packets come.
type packetSource struct {
	// next returns a packet from its Ethernet header on, which is valid until the
	// next call, and when it was seen.
	next func() (packet []byte, at time.Duration, err error)
	end  func()        // has next return ErrDeadlineExceeded once there are no more
	lost func() uint64 // packets
}

func packetsFromSocket(t *testing.T) *packetSource {
	const everything = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, everything)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 512<<20); err != nil {
		t.Fatal(err)
	}
	// So that an ended watcher looks again.
	wait := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 65536)
	began := time.Now()
	var ended atomic.Bool
	return &packetSource{
		next: func() ([]byte, time.Duration, error) {
			for {
				n, err := unix.Read(fd, frame)
				switch {
				case err == nil:
					return frame[:n], time.Since(began), nil
				case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
					return nil, 0, err
				case ended.Load():
					return nil, 0, os.ErrDeadlineExceeded
				}
			}
		},
		end: func() { ended.Store(true) },
		lost: func() uint64 {
			stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err != nil {
				t.Fatal(err)
			}
			return uint64(stats.Drops)
		},
	}
}

func packetsFromRing(t *testing.T) *packetSource {
	var objects struct {
		Program *ebpf.Program  `ebpf:"every_packet"`
		Packets *ebpf.Map      `ebpf:"packets"`
		Lost    *ebpf.Variable `ebpf:"lost"`
	}
	spec, err := ebpf.LoadCollectionSpec(os.Getenv(userSpaceObject))
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		t.Fatal(err)
	}
	device, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		l, err := link.AttachTCX(link.TCXOptions{Interface: device.Index, Program: objects.Program, Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	ring, err := ringbuf.NewReader(objects.Packets)
	if err != nil {
		t.Fatal(err)
	}
	var record ringbuf.Record
	return &packetSource{
		next: func() ([]byte, time.Duration, error) {
			if err := ring.ReadInto(&record); err != nil {
				return nil, 0, err
			}
			return record.RawSample[8:], time.Duration(binary.NativeEndian.Uint64(record.RawSample)), nil
		},
		end: func() {
			if err := ring.Flush(); err != nil {
				t.Error(err)
			}
		},
		lost: func() (lost uint64) {
			if err := objects.Lost.Get(&lost); err != nil {
				t.Fatal(err)
			}
			return lost
		},
	}
}
