package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/tshark"
)

const (
	httpPort = 8080
	quicPort = 4433
)

// TestRealServices has programs that people run talk to each other, between two
// hosts with a flatd each, and tshark judge what the two report.
func TestRealServices(t *testing.T) {
	client, server := testbed.Pair(t)
	binary := testbed.Build(t, "flatd", "")
	const config = "measure.timeout = \"1500ms\"\n"
	near := newSetup(t, client, binary, config).start(t)
	far := newSetup(t, server, binary, config).start(t)
	tr := newTraffic(t, client, server)
	tr.serveHTTP()
	tr.serveQUIC()
	atClient, atServer := tshark.StartCapture(t, client), tshark.StartCapture(t, server)

	const rounds = 3
	for range rounds {
		for _, address := range addresses(server) {
			tr.browse(address)
			tr.lookUp(address)
			tr.quic(address)
			tr.run(testbed.Tool(t, "ping"), "-c", "3", "-i", "0.01", "-W", "20", address)
			tr.connectRefused(address)
			tr.sendRefused(address)
		}
		tr.connectInVain(silentV4)
		tr.connectInVain(silentV6)
	}
	atClient.End()
	atServer.End()

	asked := near.judge(t, atClient.Found("client", tshark.Addressed(client)), "client")
	sameDurations(t, asked)
	wantResults(t, asked, "tcp established", "tcp refused", "tcp timeout", "udp answered", "udp unreachable", "icmp answered",
		"dns noerror", "dns nxdomain")
	retried := func(v verdict) bool { return v.Kind == "tcp" && v.Found.Destination.Port() == dnsPort }
	if !slices.ContainsFunc(asked, retried) {
		t.Error("no truncated answer led to a connection")
	}
	for _, v := range asked {
		if quic := v.Kind == "udp" && v.Found.Destination.Port() == quicPort; quic != (v.Network.Protocol == "quic") {
			t.Errorf("%s is said to be %q", v.Exchange, v.Network.Protocol)
		}
	}
	was := far.judge(t, atServer.Found("server", tshark.Addressed(server)), "server")
	sameDurations(t, was)
	closeTo(t, "the client's round trip", was, clientRTT)
}

func clientRTT(v verdict) (got, want time.Duration) {
	return time.Duration(v.Flatd.ClientRTT), v.Found.ClientRTT
}

// wantResults makes sure that the traffic was what it is meant to be.
func wantResults(t *testing.T, pairs []verdict, results ...string) {
	t.Helper()
	seen := make(map[string]int)
	for _, v := range pairs {
		seen[v.Kind+" "+v.Result]++
	}
	for _, r := range results {
		if seen[r] == 0 {
			t.Errorf("no exchange was %q: %v", r, seen)
		}
	}
	t.Log(seen)
}

// serveHTTP runs nginx.
func (tr *traffic) serveHTTP() {
	tr.t.Helper()
	dir := tr.t.TempDir()
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr; worker_processes 1;
events { worker_connections 128; }
http { access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	server { listen %[2]d; listen [::]:%[2]d; location / { return 200 "here\n"; } } }
`, dir, httpPort)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		tr.t.Fatal(err)
	}
	tr.serve(httpPort, testbed.Tool(tr.t, "nginx"), "-c", file, "-p", dir)
}

// browse fetches over connections that are kept, and over several at once.
func (tr *traffic) browse(address string) {
	url := "http://" + join(address, httpPort) + "/"
	curl := testbed.Tool(tr.t, "curl")
	tr.run(curl, "--silent", "--show-error", "--fail", url, url+"again", url+"and/again")
	tr.run(curl, "--silent", "--show-error", "--fail", "--parallel", "--parallel-immediate", url+"[1-4]")
}

// lookUp asks every kind of question: with and without EDNS, for an answer that
// only fits into TCP, and as programs do, for both families over one socket.
func (tr *traffic) lookUp(address string) {
	tr.t.Helper()
	tr.dig(address, "example.test", "A")
	tr.dig(address, "example.test", "AAAA")
	tr.dig(address, "nothing.test", "A")
	tr.run(testbed.Tool(tr.t, "dig"), "+noedns", "+tries=1", "+time=20", "@"+address, "long.test", "TXT")
	tr.run(testbed.Tool(tr.t, "dig"), "+bufsize=4096", "+tries=1", "+time=20", "@"+address, "long.test", "TXT")
	dir := filepath.Join("/etc/netns", tr.client.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tr.t.Fatal(err)
	}
	tr.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+address+"\n"), 0o644); err != nil {
		tr.t.Fatal(err)
	}
	tr.run(testbed.Tool(tr.t, "getent"), "ahosts", "example.test")
}

// sendRefused sends to a UDP port that nobody listens on.
func (tr *traffic) sendRefused(address string) {
	tr.t.Helper()
	conn, err := dial(tr.client, "udp", join(address, closedPort))
	if err != nil {
		tr.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ask")); err != nil {
		tr.t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		tr.t.Fatalf("a closed port: %v", err)
	}
}

const quicProtocol = "flatd-test"

// serveQUIC echoes what comes on the first stream of each connection.
func (tr *traffic) serveQUIC() {
	tr.t.Helper()
	listener, err := tr.quicSocket(tr.server, quicPort).Listen(&tls.Config{
		Certificates: []tls.Certificate{selfSigned(tr.t)}, NextProtos: []string{quicProtocol},
	}, nil)
	if err != nil {
		tr.t.Fatal(err)
	}
	ctx := tr.t.Context()
	go func() {
		for {
			conn, err := listener.Accept(ctx)
			if err != nil {
				return
			}
			stream, err := conn.AcceptStream(ctx)
			if err != nil {
				continue
			}
			_, _ = io.Copy(stream, stream)
			stream.Close()
		}
	}()
}

// quicSocket is a UDP socket of a host that speaks QUIC.
func (tr *traffic) quicSocket(h *testbed.Host, port int) *quic.Transport {
	tr.t.Helper()
	var conn *net.UDPConn
	var err error
	h.Do(func() { conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port}) })
	if err != nil {
		tr.t.Fatal(err)
	}
	transport := &quic.Transport{Conn: conn}
	tr.t.Cleanup(func() {
		transport.Close()
		conn.Close()
	})
	return transport
}

// quic makes a connection, and has more come back than fits into one datagram.
func (tr *traffic) quic(address string) {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), patience)
	defer cancel()
	to := &net.UDPAddr{IP: net.ParseIP(address), Port: quicPort}
	// Whose certificate it is does not matter here.
	conn, err := tr.quicSocket(tr.client, 0).Dial(ctx, to, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{quicProtocol}}, nil)
	if err != nil {
		tr.t.Fatal(err)
	}
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		tr.t.Fatal(err)
	}
	go func() {
		_, _ = stream.Write(make([]byte, 64<<10))
		stream.Close()
	}()
	if n, err := io.Copy(io.Discard, stream); err != nil || n != 64<<10 {
		tr.t.Fatalf("%d bytes came back: %v", n, err)
	}
	_ = conn.CloseWithError(0, "")
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
