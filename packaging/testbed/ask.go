package testbed

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// askPatience bounds what a test waits for on a connection.
const askPatience = time.Minute

// Connect connects to a socket of the Unix domain until the test ends.
func Connect(t testing.TB, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(askPatience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// AskHTTP sends bytes, which may be any, and returns the status of the answer; 0 if
// the connection is closed without one.
func AskHTTP(conn net.Conn, request string) int {
	go func() { _, _ = io.WriteString(conn, request) }() // which nobody may read
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	return response.StatusCode
}
