package main

import (
	"encoding/binary"
	"net"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// asking is a client with questions of every kind, some of which are answered
// late, some in the negative, and some never.
type asking struct {
	*site
	asked int // datagrams so far
}

const (
	dnsPort    = "53"
	echoPort   = "7003"
	silentPort = "7004"
	firstPort  = 10000 // of the client, below what the kernel chooses from
)

// newAsking has the server answer.
func (s *site) newAsking() *asking {
	s.t.Helper()
	s.answer(dnsPort, answerDNS)
	s.answer(echoPort, func([]byte) bool { return true })
	s.answer(silentPort, func([]byte) bool { return false })
	return &asking{site: s}
}

// answer has the server answer datagrams with what is made of them, if anything
// is; later from one to the next, so that the answers' durations are many.
func (s *site) answer(port string, turn func(datagram []byte) bool) {
	s.t.Helper()
	var socket net.PacketConn
	var err error
	s.server.Do(func() { socket, err = net.ListenPacket("udp", ":"+port) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { socket.Close() })
	go func() {
		datagram := make([]byte, 512)
		for delay := time.Duration(0); ; delay = (delay + time.Millisecond) * 5 / 4 % (50 * time.Millisecond) {
			n, from, err := socket.ReadFrom(datagram)
			if err != nil {
				return
			}
			if turn(datagram[:n]) {
				time.Sleep(delay) // life, not a wait
				_, _ = socket.WriteTo(datagram[:n], from)
			}
		}
	}()
}

// answerDNS makes of a question its answer (RFC 1035, 4.1.1): of each third one
// that there is no such name.
func answerDNS(message []byte) bool {
	const response, noSuchName = 0x80, 3
	message[2] |= response
	if binary.BigEndian.Uint16(message)%3 == 0 {
		message[3] |= noSuchName
	}
	return true
}

// udp is a socket from a port of the client's, 0 for any.
func (s *site) udp(port int, address string) (conn net.Conn, err error) {
	s.client.Do(func() {
		conn, err = (&net.Dialer{LocalAddr: &net.UDPAddr{Port: port}}).Dial("udp", address)
	})
	return conn, err
}

// ask sends a datagram from a port that was not used before, which else would be
// the same exchange, and reads what comes back.
func (a *asking) ask(address, port string, datagram []byte, answered bool) {
	a.t.Helper()
	a.asked++
	conn, err := a.udp(firstPort+a.asked, net.JoinHostPort(address, port))
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(datagram); err != nil {
		a.t.Fatal(err)
	}
	if !answered {
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		a.t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 512)); err != nil {
		a.t.Fatal(err)
	}
}

// question asks for the address of example.test (RFC 1035, 4.1).
func (a *asking) question() []byte {
	message := binary.BigEndian.AppendUint16(nil, uint16(a.asked))
	message = append(message, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired, one question
	return append(message, "\x07example\x04test\x00\x00\x01\x00\x01"...)
}

// everything asks in every way.
func (a *asking) everything() {
	a.t.Helper()
	for range 20 {
		a.connect()
	}
	for range 7 {
		a.refuse()
	}
	for _, address := range []string{a.server.V4, a.server.V6} {
		for range 20 {
			a.ask(address, dnsPort, a.question(), true)
			a.ask(address, echoPort, []byte("echo"), true)
		}
		a.ask(address, silentPort, []byte("is anybody there?"), false)
		ping := a.client.Command(testbed.Tool(a.t, "ping"), "-c", "5", "-i", "0.01", "-W", "20", address)
		if out, err := ping.CombinedOutput(); err != nil {
			a.t.Fatalf("ping: %v\n%s", err, out)
		}
	}
}
