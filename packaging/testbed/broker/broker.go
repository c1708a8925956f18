// Package broker runs real NATS servers for tests, which may demand that clients
// log in, and makes the secrets that satisfy them.
package broker

import (
	"crypto/rand"
	"crypto/tls"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// patience is what a test gives a server; it is not what anything takes.
const patience = 30 * time.Second

// Start runs a server on 127.0.0.1, on a port of its own if o has none, until the
// test ends. The caller's network namespace is that of its socket.
func Start(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	o = o.Clone()
	o.Host, o.NoLog, o.NoSigs = "127.0.0.1", true, true
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatalf("make a NATS server: %v", err)
	}
	s.Start()
	t.Cleanup(func() { Stop(s) })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the NATS server does not start")
	}
	return s
}

// Stop ends a server, and returns when it has ended.
func Stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// Login is a way to log in.
type Login struct {
	Name string
	// Demand makes new secrets.
	Demand func(testing.TB) Demand
}

// Demand is what a server asks of its clients.
type Demand struct {
	Configure func(*server.Options)
	User      string            // its name, with a password
	Files     map[string]string // contents, by the key of [outputs.nats] that names the file
}

// Logins are all that a server can ask for, and flatd can show.
var Logins = []Login{
	{"token", func(testing.TB) Demand {
		token := rand.Text()
		return Demand{
			Configure: func(o *server.Options) { o.Authorization = token },
			Files:     map[string]string{"token": token + "\n"},
		}
	}},
	{"password", func(testing.TB) Demand {
		password := rand.Text()
		return Demand{
			Configure: func(o *server.Options) { o.Username, o.Password = "flatd", password },
			User:      "flatd",
			Files:     map[string]string{"password": password},
		}
	}},
	{"nkey", func(t testing.TB) Demand {
		public, seed := NKey(t)
		return Demand{
			Configure: func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} },
			Files:     map[string]string{"nkey": seed},
		}
	}},
	{"credentials", func(t testing.TB) Demand {
		configure, file := credentials(t)
		return Demand{Configure: configure, Files: map[string]string{"credentials": file}}
	}},
	{"tls", func(t testing.TB) Demand {
		c := NewCertificate(t)
		return Demand{Configure: c.Serve, Files: map[string]string{"tls_ca": c.PEM}}
	}},
	{"certificate", func(t testing.TB) Demand {
		c := NewCertificate(t)
		return Demand{Configure: c.ServeVerified, Files: map[string]string{"tls_ca": c.PEM, "tls_cert": c.PEM, "tls_key": c.Key}}
	}},
}

// Certificate is one certificate for all: authority, server and client.
type Certificate struct {
	PEM, Key string
	server   *tls.Config
}

// Serve has a server show it.
func (c Certificate) Serve(o *server.Options) { o.TLS, o.TLSConfig = true, c.server }

// ServeVerified has a server show it, and want it of each client.
func (c Certificate) ServeVerified(o *server.Options) {
	o.TLS, o.TLSVerify, o.TLSConfig = true, true, c.server.Clone()
	o.TLSConfig.ClientAuth = tls.RequireAndVerifyClientCert // which TLSVerify makes only of a file
}
