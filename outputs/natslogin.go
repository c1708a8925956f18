package outputs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go"
)

// secrets are the options that authenticate.
func (o *NATSOptions) secrets() ([]nats.Option, error) {
	unset := func(way string) bool { return way == "" }
	ways := slices.DeleteFunc([]string{o.Credentials, o.NKey, o.Token, o.User}, unset)
	switch {
	case len(ways) > 1:
		return nil, errors.New("credentials, nkey, token and user exclude each other: set one of them")
	case (o.User == "") != (o.Password == ""):
		return nil, errors.New("user and password go together: password names the file that holds it")
	case (o.Cert == "") != (o.Key == ""):
		return nil, errors.New("cert and key go together")
	}
	if err := o.readable(); err != nil {
		return nil, err
	}
	return o.secretOptions()
}

// readable tells a file that cannot be read now rather than at each connect.
func (o *NATSOptions) readable() error {
	files := []struct{ key, path string }{
		{"credentials", o.Credentials}, {"nkey", o.NKey}, {"token", o.Token},
		{"password", o.Password}, {"ca", o.CA}, {"cert", o.Cert}, {"key", o.Key},
	}
	for _, f := range files {
		if f.path == "" {
			continue
		}
		if _, err := os.ReadFile(f.path); err != nil {
			return fmt.Errorf("%s: %w", f.key, err)
		}
	}
	return nil
}

func (o *NATSOptions) secretOptions() (options []nats.Option, err error) {
	var option nats.Option
	switch {
	case o.Credentials != "":
		option = nats.UserCredentials(o.Credentials)
	case o.NKey != "":
		if option, err = nats.NkeyOptionFromSeed(o.NKey); err != nil {
			return nil, fmt.Errorf("nkey: %s: %w", o.NKey, err)
		}
	case o.Token != "":
		option = nats.TokenHandler(func() string { return secret(o.Token) })
	case o.User != "":
		option = nats.UserInfoHandler(func() (string, string) { return o.User, secret(o.Password) })
	}
	if option != nil {
		options = append(options, option)
	}
	if o.CA != "" {
		options = append(options, nats.RootCAs(o.CA))
	}
	if o.Cert != "" {
		options = append(options, nats.ClientCert(o.Cert, o.Key))
	}
	return options, nil
}

// connect makes a connection, with the secrets that the files have now. The
// client's own way of trying on (RetryOnFailedConnect) would keep those of the
// first attempt, and tell nobody when the server refuses them.
func (o *NATSOptions) connect(options ...nats.Option) (*nats.Conn, error) {
	secrets, err := o.secretOptions()
	if err != nil {
		return nil, err
	}
	conn, err := nats.Connect(o.URL, append(options, secrets...)...)
	if errors.Is(err, nats.ErrNoServers) {
		err = syscall.ECONNREFUSED // what the client means by that
	}
	return conn, err
}

// staleLogin reports whether err may come of a file that has changed since the
// connection was made. All secrets are read at each connect, but the client takes
// the public half of an nkey only once.
func (o *NATSOptions) staleLogin(err error) bool {
	return o.NKey != "" && errors.Is(err, nats.ErrAuthorization)
}

// hint says where to look when the server refuses the login. One that wants a
// certificate says so by an alert, which the end of the connection may overtake.
func (o *NATSOptions) hint(err error) string {
	switch {
	// What the library says of an alert; its type for them is its own.
	case errors.Is(err, nats.ErrTLS) || strings.Contains(err.Error(), "remote error: tls: "):
		if o.Cert == "" {
			return " (it was shown no certificate: set tls_cert and tls_key if it wants one)"
		}
		return fmt.Sprintf(" (it was shown the certificate in %s)", o.Cert)
	case !errors.Is(err, nats.ErrAuthorization):
		return ""
	}
	for _, way := range []struct{ key, path string }{
		{"credentials", o.Credentials}, {"nkey", o.NKey}, {"token", o.Token}, {"password", o.Password}, {"certificate", o.Cert},
	} {
		if way.path != "" {
			return fmt.Sprintf(" (it was shown the %s in %s)", way.key, way.path)
		}
	}
	return " (it was shown nothing: set credentials, nkey, token, or user and password)"
}

// secret reads a file that holds one line. If it has become unreadable the
// server will refuse the empty secret and the output will say so.
func secret(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimRight(string(text), "\r\n")
}
