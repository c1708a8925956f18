//go:build !natsserver

package main

import "github.com/spf13/cobra"

func addServer(*cobra.Command) {}

func startServer() (stop func(), err error) { return func() {}, nil }
