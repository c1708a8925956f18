//go:build natsserver

package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
)

// serverAddress is where the embedded NATS server listens; "" for none.
var serverAddress string

// addServer adds --nats-server, which `make run` uses: a NATS server in the
// same process, for trying flatd out. The release binary is without it.
func addServer(c *cobra.Command) {
	c.Flags().StringVar(&serverAddress, "nats-server", "", "run a NATS server on this `address`, such as 127.0.0.1:4222")
}

func startServer() (stop func(), err error) {
	if serverAddress == "" {
		return func() {}, nil
	}
	host, portText, err := net.SplitHostPort(serverAddress)
	if err != nil {
		return nil, fmt.Errorf("--nats-server: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("--nats-server: port: %w", err)
	}
	s, err := server.NewServer(&server.Options{Host: host, Port: port, NoSigs: true, ServerName: "flatd-dev"})
	if err != nil {
		return nil, fmt.Errorf("make the NATS server: %w", err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("the NATS server did not start on " + serverAddress + "; is the port in use?")
	}
	return s.Shutdown, nil
}
