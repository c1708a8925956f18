package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// NKey makes the nkey of a user.
func NKey(t testing.TB) (public, seed string) {
	t.Helper()
	user, public := pair(t, nkeys.CreateUser)
	return public, string(must(user.Seed())(t))
}

// must returns a value that comes with an error, for a test that the error ends.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func pair(t testing.TB, create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
	t.Helper()
	key := must(create())(t)
	return key, must(key.PublicKey())(t)
}

// credentials make an operator, with an account, with a user: what a server has
// to know of them, and the user's credentials file.
func credentials(t testing.TB) (configure func(*server.Options), file string) {
	t.Helper()
	operator, operatorID := pair(t, nkeys.CreateOperator)
	account, accountID := pair(t, nkeys.CreateAccount)
	user, userID := pair(t, nkeys.CreateUser)
	resolver := &server.MemAccResolver{}
	if err := resolver.Store(accountID, must(jwt.NewAccountClaims(accountID).Encode(operator))(t)); err != nil {
		t.Fatal(err)
	}
	configure = func(o *server.Options) {
		o.JetStream = false // would need a system account
		o.TrustedOperators = []*jwt.OperatorClaims{jwt.NewOperatorClaims(operatorID)}
		o.TrustedOperators[0].Issuer = operatorID
		o.AccountResolver = resolver
	}
	token := must(jwt.NewUserClaims(userID).Encode(account))(t)
	return configure, string(must(jwt.FormatUserConfig(token, must(user.Seed())(t)))(t))
}

// NewCertificate makes a certificate for 127.0.0.1.
func NewCertificate(t testing.TB) Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "flatd test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))(t)
	pool := x509.NewCertPool()
	pool.AddCert(must(x509.ParseCertificate(der))(t))
	keyDER := must(x509.MarshalPKCS8PrivateKey(key))(t)
	return Certificate{
		PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
		server: &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			ClientCAs:    pool,
		},
	}
}
