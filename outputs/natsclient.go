package outputs

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// DialNATS makes a connection for somebody who reads what flatd publishes, with
// the URL and the secrets of o. It waits for the server's answer, and fails if
// there is none; a connection that is lost later the client mends by itself. The
// caller closes it.
func DialNATS(name string, o NATSOptions, options ...nats.Option) (*nats.Conn, error) {
	server, err := o.check()
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	conn, err := o.connect(append(persistent(name), options...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w%s", server, err, o.hint(err))
	}
	return conn, nil
}
