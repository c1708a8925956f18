package outputs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/flatd/flatd/packaging/testbed/broker"
)

// refusals are in the errors that the secrets of another make lead to.
var refusals = map[string]string{
	"token":       "Authorization Violation (it was shown the token in /",
	"password":    "Authorization Violation (it was shown the password in /",
	"nkey":        "Authorization Violation (it was shown the nkey in /",
	"credentials": "Authorization Violation (it was shown the credentials in /",
	"tls":         "x509: ",
	"certificate": "x509: ",
}

// TestNATSLogins logs in each way there is. Then the server wants other secrets:
// the error says what was refused, and once the files have them, that is enough.
func TestNATSLogins(t *testing.T) {
	for _, l := range broker.Logins {
		t.Run(l.Name, func(t *testing.T) {
			t.Parallel() // nearly all of it is waiting
			secrets := newSecretFiles(t)
			demand := l.Demand(t)
			secrets.put(t, demand)
			o := serverOptions(t)
			demand.Configure(o)
			s := broker.Start(t, o)
			options := secrets.options(NATSOptions{URL: s.ClientURL(), Mode: ModeCore}, demand)
			out := newTestNATS(t, options)
			awaitReady(t, out)
			mustWrite(t, out, sample(1))
			broker.Stop(s)

			demand = l.Demand(t)
			again := serverOptions(t)
			again.Port = port(s)
			demand.Configure(again)
			broker.Start(t, again)
			refused := func(err error) bool { return err != nil && strings.Contains(err.Error(), refusals[l.Name]) }
			awaitWrite(t, out, refused)
			late := newTestNATS(t, options) // one that is refused from the start
			awaitWrite(t, late, refused)
			secrets.put(t, demand)
			delivered := func(err error) bool { return err == nil }
			awaitWrite(t, out, delivered)
			awaitWrite(t, late, delivered)
		})
	}
}

// secretFiles is a directory of files that options name.
type secretFiles string

func newSecretFiles(t *testing.T) secretFiles { return secretFiles(t.TempDir()) }

func (dir secretFiles) put(t *testing.T, d broker.Demand) {
	t.Helper()
	for key, content := range d.Files {
		if err := os.WriteFile(filepath.Join(string(dir), key), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// options are o with the files that satisfy d.
func (dir secretFiles) options(o NATSOptions, d broker.Demand) NATSOptions {
	o.User = d.User
	for key, option := range map[string]*string{
		"credentials": &o.Credentials, "nkey": &o.NKey, "token": &o.Token, "password": &o.Password,
		"tls_ca": &o.CA, "tls_cert": &o.Cert, "tls_key": &o.Key,
	} {
		if _, wanted := d.Files[key]; wanted {
			*option = filepath.Join(string(dir), key)
		}
	}
	return o
}

// A server that wants a certificate says so to a client without one, and to one
// whose certificate it does not trust.
func TestNATSWithoutCertificate(t *testing.T) {
	trusted, other := broker.NewCertificate(t), broker.NewCertificate(t)
	o := serverOptions(t)
	trusted.ServeVerified(o)
	url := broker.Start(t, o).ClientURL()
	for what, options := range map[string]NATSOptions{
		"(it was shown no certificate: set tls_cert": {CA: file(t, trusted.PEM)},
		"(it was shown the certificate in /":         {CA: file(t, trusted.PEM), Cert: file(t, other.PEM), Key: file(t, other.Key)},
	} {
		options.URL, options.Mode = url, ModeCore
		out := newTestNATS(t, options)
		awaitWrite(t, out, func(err error) bool { return err != nil && strings.Contains(err.Error(), what) })
	}
}

// A server that wants a login says so to a client without one.
func TestNATSWithoutLogin(t *testing.T) {
	o := serverOptions(t)
	o.Authorization = "s3cret"
	out := newTestNATS(t, NATSOptions{URL: broker.Start(t, o).ClientURL()})
	awaitWrite(t, out, func(err error) bool {
		return err != nil && strings.Contains(err.Error(), "Authorization Violation (it was shown nothing: set credentials")
	})
}

// awaitWrite writes an event until that goes as wanted.
func awaitWrite(t *testing.T, out *NATS, wanted func(error) bool) {
	t.Helper()
	ctx := deadline(t)
	for {
		_, err := out.Write(ctx, samples(1, 1))
		if wanted(err) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("waited in vain; the last write ended with: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The nkey of flatd's user is replaced, on the server and then in the file: the
// service logs in with the new one.
func TestServiceRotatesNKey(t *testing.T) {
	oldPublic, oldSeed := broker.NKey(t)
	newPublic, newSeed := broker.NKey(t)
	watcher, watcherSeed := broker.NKey(t)
	o := serverOptions(t)
	o.Nkeys = []*server.NkeyUser{{Nkey: oldPublic}, {Nkey: watcher}}
	s := broker.Start(t, o)
	watch, err := (&NATSOptions{NKey: file(t, watcherSeed)}).secretOptions()
	if err != nil {
		t.Fatal(err)
	}
	seed := file(t, oldSeed)
	newTestService(t, NATSOptions{URL: s.ClientURL(), NKey: seed})
	request(t, client(t, s, watch...), echoSubject, "")
	broker.Stop(s)

	o.Nkeys = []*server.NkeyUser{{Nkey: newPublic}, {Nkey: watcher}}
	s = restartServer(t, o, s)
	if err := os.WriteFile(seed, []byte(newSeed), 0o600); err != nil {
		t.Fatal(err)
	}
	request(t, client(t, s, watch...), echoSubject, "")
}
