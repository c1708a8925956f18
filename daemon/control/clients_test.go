package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/daemon/pipeline"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
)

// hall is the control socket alone, with limits of the test's own.
type hall struct {
	*Control
	socket  string
	clients *clients
}

// nobody is a daemon with the default configuration that measures nothing.
type nobody struct{ Daemon }

func (nobody) Config() config.Config { return config.Defaults() }

// patience bounds every wait for something that has to happen.
const patience = time.Minute

func newHall(t *testing.T, l limits) *hall {
	t.Helper()
	h := &hall{Control: New(nobody{}, nil, func() *flows.Host { return &flows.Host{Name: "h"} }, pipeline.NewRecent()), socket: filepath.Join(t.TempDir(), "s")}
	h.clients = newClients(l, slog.New(slog.DiscardHandler))
	listener, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- serveAt(ctx, listener, h.clients, h.routes(h.clients)) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	for i := range api.RecentMax {
		h.recent.Add(&flows.Event{Kind: flows.KindTCP, Sequence: uint64(i)})
	}
	return h
}

// awaitEmpty waits until nobody is inside any more.
func (h *hall) awaitEmpty(t *testing.T) {
	t.Helper()
	inside := func() (int, int) {
		h.clients.mu.Lock()
		defer h.clients.mu.Unlock()
		return len(h.clients.open), h.recent.Followers()
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		open, followers := inside()
		if open == 0 && followers == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections and %d followers are still there", open, followers)
		}
	}
}

// TestSlowClientsAreSentAway, whatever they are slow at.
func TestSlowClientsAreSentAway(t *testing.T) {
	short := 50 * time.Millisecond
	h := newHall(t, limits{connections: 8, atOnce: 8, header: 16 << 10, ask: short, read: short, idle: short})
	askOn := func(path string) func(net.Conn) { // again and again, and never read
		return func(conn net.Conn) {
			for {
				if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: flatd\r\n\r\n", path); err != nil {
					return
				}
			}
		}
	}
	for name, slow := range map[string]func(conn net.Conn){
		"says nothing":            func(net.Conn) {},
		"does not end its header": func(c net.Conn) { _, _ = io.WriteString(c, "GET /v1/events HTTP/1.1\r\nX: ") },
		"does not send its body": func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /v1/reload HTTP/1.1\r\nHost: f\r\nContent-Length: 9\r\n\r\n")
		},
		"does not ask again":        func(c net.Conn) { _, _ = io.WriteString(c, "GET /v1/events?limit=1 HTTP/1.1\r\nHost: f\r\n\r\n") },
		"does not read the events":  askOn("/v1/events"),
		"does not read the answers": askOn("/v1/config"),
		"does not read what follows": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /v1/events?follow=true HTTP/1.1\r\nHost: f\r\n\r\n")
			for h.recent.Followers() == 0 {
				time.Sleep(time.Millisecond)
			}
			for h.recent.Followers() > 0 {
				h.recent.Add(&flows.Event{Kind: flows.KindTCP})
				time.Sleep(10 * time.Microsecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := testbed.Connect(t, h.socket)
			slow(conn)
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("is not sent away")
			}
			h.awaitEmpty(t)
		})
	}
}

// TestAFollowerMayStay for longer than others may take to ask.
func TestAFollowerMayStay(t *testing.T) {
	short := 20 * time.Millisecond
	h := newHall(t, limits{connections: 8, atOnce: 8, header: 16 << 10, ask: short, read: patience, idle: short})
	conn := testbed.Connect(t, h.socket)
	if _, err := io.WriteString(conn, "GET /v1/events?follow=true&limit=0 HTTP/1.1\r\nHost: f\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	if _, err := http.ReadResponse(reader, nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * short) // the time itself is the subject
	h.recent.Add(&flows.Event{Kind: flows.KindTCP, Sequence: 4711})
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			t.Fatalf("sent away: %v", err)
		}
		if strings.Contains(line, "4711") {
			break
		}
	}
	conn.Close()
	h.awaitEmpty(t)
}

// TestNobodyTakesEveryRequest: a user's share of what is answered at once is
// bounded.
func TestNobodyTakesEveryRequest(t *testing.T) {
	h := newHall(t, limits{connections: 8, atOnce: 2, header: 16 << 10, ask: patience, read: patience, idle: patience})
	const follow = "GET /v1/events?follow=true&limit=0 HTTP/1.1\r\nHost: f\r\n\r\n"
	for i, want := range []int{200, 200, 429} {
		if got := testbed.AskHTTP(testbed.Connect(t, h.socket), follow); got != want {
			t.Errorf("request %d gets %d, want %d", i+1, got, want)
		}
	}
}
