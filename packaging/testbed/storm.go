package testbed

import (
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Connections makes connections from one host to another, as fast as two cores
// can: each with a small request and answer, ten packets.
func Connections(t testing.TB, from, to *Host, connections int) {
	t.Helper()
	connect(t, from, to, connections, func(client, server int) error {
		return errors.Join(pass(client, server, 100), pass(server, client, 1000), unix.Close(server), unix.Close(client))
	})
}

// BareConnections are nothing but begun and ended, which takes six packets.
func BareConnections(t testing.TB, from, to *Host, connections int) {
	t.Helper()
	connect(t, from, to, connections, func(client, server int) error {
		return errors.Join(unix.Close(server), unix.Close(client))
	})
}

// ResetConnections end with a RST of the client's, the fourth packet.
func ResetConnections(t testing.TB, from, to *Host, connections int) {
	t.Helper()
	connect(t, from, to, connections, func(client, server int) error {
		reset := unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		return errors.Join(reset, unix.Close(client), unix.Close(server))
	})
}

// Exchanges are of one datagram each way, each of a flow of its own.
func Exchanges(t testing.TB, from, to *Host, exchanges int) {
	t.Helper()
	storm(t, from, to, unix.SOCK_DGRAM, exchanges, func(server int, at unix.Sockaddr) error {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(client)
		datagram := make([]byte, 100)
		if err := errors.Join(unix.Connect(client, at), write(client, datagram)); err != nil {
			return err
		}
		_, who, err := unix.Recvfrom(server, datagram, 0)
		if err != nil {
			return err
		}
		if err := unix.Sendto(server, datagram, 0, who); err != nil {
			return err
		}
		_, err = unix.Read(client, datagram)
		return err
	})
}

// storm has a thread for each CPU make one exchange after the other, both ends
// of it and by system calls alone: nothing is faster. one makes an exchange with a
// socket on the other host, which has an address there.
func storm(t testing.TB, from, to *Host, kind, exchanges int, one func(socket int, at unix.Sockaddr) error) {
	t.Helper()
	var left atomic.Int64
	left.Store(int64(exchanges))
	thread := func() error {
		runtime.LockOSThread() // and not unlocked: the thread ends here
		socket, at, err := listen(to, kind)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
		if err := netns.Set(from.ns); err != nil {
			return err
		}
		for left.Add(-1) >= 0 && err == nil {
			err = one(socket, at)
		}
		return err
	}
	var threads sync.WaitGroup
	for range runtime.NumCPU() {
		threads.Go(func() {
			if err := thread(); err != nil {
				t.Error(err)
			}
		})
	}
	threads.Wait()
}

// listen has the thread enter a host's namespace and open a socket there.
func listen(h *Host, kind int) (socket int, at unix.Sockaddr, err error) {
	if err := netns.Set(h.ns); err != nil {
		return 0, nil, err
	}
	if socket, err = unix.Socket(unix.AF_INET, kind, 0); err != nil {
		return 0, nil, err
	}
	err = unix.Bind(socket, &unix.SockaddrInet4{Addr: netip.MustParseAddr(h.V4).As4()})
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(socket, 128)
	}
	if err == nil {
		at, err = unix.Getsockname(socket)
	}
	if err != nil {
		unix.Close(socket)
	}
	return socket, at, err
}

// connect is a storm of connections: use does with the ends of each what it likes,
// and closes them.
func connect(t testing.TB, from, to *Host, connections int, use func(client, server int) error) {
	t.Helper()
	storm(t, from, to, unix.SOCK_STREAM, connections, func(listener int, at unix.Sockaddr) error {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(client, at); err != nil {
			unix.Close(client)
			return err
		}
		server, _, err := unix.Accept(listener)
		if err != nil {
			unix.Close(client)
			return err
		}
		return use(client, server)
	})
}

// pass sends so many octets from one end to the other, which has room for them.
func pass(from, to, octets int) error {
	text := make([]byte, octets)
	if err := write(from, text); err != nil {
		return err
	}
	for n := 0; n < octets; {
		more, err := unix.Read(to, text)
		if err != nil {
			return err
		}
		n += more
	}
	return nil
}

func write(socket int, text []byte) error {
	_, err := unix.Write(socket, text)
	return err
}
