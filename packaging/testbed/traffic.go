package testbed

import (
	"io"
	"net"
	"runtime"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// What follows is traffic for benchmarks: as fast as the hosts make it.

// Ask sends a small request, and reads its answer to the end: the other end
// closes first, and keeps the TIME_WAIT.
func Ask(conn net.Conn) {
	_, _ = conn.Write(make([]byte, 100))
	_, _ = io.Copy(io.Discard, conn)
	conn.Close()
}

// CloseEach takes connections and closes them, until the listener is closed.
func CloseEach(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Close()
	}
}

// AnswerEach answers what Ask asks, until the listener is closed.
func AnswerEach(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = conn.Read(make([]byte, 100))
			_, _ = conn.Write(make([]byte, 1000))
			conn.Close()
		}()
	}
}

// Bulk sends octets in one stream, from one CPU to another, and returns when all
// have arrived. Where the scheduler may choose, chance decides on the rate.
func Bulk(t testing.TB, from, to *Host, octets int) {
	t.Helper()
	listener := to.Listen(t, net.JoinHostPort(to.V4, "0"))
	defer listener.Close()
	sender := dial(t, from, "tcp", listener.Addr().String()).(*net.TCPConn)
	defer sender.Close()
	receiver, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	var received int
	var ends errgroup.Group
	ends.Go(func() error {
		return onCPU(0, sender, func(socket int) error {
			defer sender.CloseWrite()
			chunk := make([]byte, 64<<10)
			for left := octets; left > 0; {
				n, err := unix.Write(socket, chunk[:min(left, len(chunk))])
				if err != nil {
					return err
				}
				left -= n
			}
			return nil
		})
	})
	ends.Go(func() error {
		return onCPU(1, receiver.(*net.TCPConn), func(socket int) error {
			chunk := make([]byte, 256<<10)
			for {
				n, err := unix.Read(socket, chunk)
				if err != nil || n == 0 {
					return err
				}
				received += n
			}
		})
	})
	if err := ends.Wait(); err != nil {
		t.Fatal(err)
	}
	if received != octets {
		t.Fatalf("%d of %d octets have arrived", received, octets)
	}
}

// onCPU has a thread do something with a socket that blocks, on one of the CPUs that
// there are for us, by its number among them.
func onCPU(number int, conn *net.TCPConn, do func(socket int) error) error {
	runtime.LockOSThread() // and not unlocked: the thread ends here
	file, err := conn.File()
	if err != nil {
		return err
	}
	defer file.Close()
	var ours, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &ours); err != nil {
		return err
	}
	cpu := -1
	for range number%ours.Count() + 1 {
		for cpu++; !ours.IsSet(cpu); cpu++ {
		}
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return do(int(file.Fd())) // which makes it block
}

// Datagrams sends small ones of one flow. That some find no room in the
// receiver's socket does not matter: they have crossed the network by then.
func Datagrams(t testing.TB, from, to *Host, datagrams int) {
	t.Helper()
	var socket net.PacketConn
	var err error
	to.Do(func() { socket, err = net.ListenPacket("udp", net.JoinHostPort(to.V4, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	conn := dial(t, from, "udp", socket.LocalAddr().String())
	defer conn.Close()
	datagram := make([]byte, 64)
	for range datagrams {
		if _, err := conn.Write(datagram); err != nil {
			t.Fatal(err)
		}
	}
}

func dial(t testing.TB, h *Host, network, address string) (conn net.Conn) {
	t.Helper()
	var err error
	h.Do(func() { conn, err = net.Dial(network, address) })
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
