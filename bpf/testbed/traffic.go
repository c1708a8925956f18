package testbed

import (
	"io"
	"net"
	"testing"
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

// Bulk sends octets in one stream, and returns when all have arrived.
func Bulk(t testing.TB, from, to *Host, octets int) {
	t.Helper()
	listener := to.Listen(t, net.JoinHostPort(to.V4, "0"))
	defer listener.Close()
	received := make(chan int64, 1)
	go func() {
		var n int64
		if conn, err := listener.Accept(); err == nil {
			n, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 256<<10))
			conn.Close()
		}
		received <- n
	}()
	conn := dial(t, from, "tcp", listener.Addr().String())
	defer conn.Close()
	chunk := make([]byte, 64<<10)
	for sent := 0; sent < octets; sent += len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	if n := <-received; n < int64(octets) {
		t.Fatalf("%d of %d octets have arrived", n, octets)
	}
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
