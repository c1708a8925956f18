package main

// Flags that several commands have: which events they are about, and where these come from.

import (
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flatd/flatd/cmd/flatctl/source"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// eventFilters are the flags that are conditions of api.EventFilter.
var eventFilters = []struct{ name, usage string }{
	{"kind", "only this `kind`: " + strings.Join(flows.KindNames(), ", ")},
	{"side", "only of this `side`: where this host asked (client) or was asked (server)"},
	{"result", "only this `result`: established, refused, timeout, answered, nxdomain …"},
	{"from", "only from this `address` or prefix: who asked"},
	{"to", "only to this `address` or prefix: who was asked"},
	{"peer", "only with this `address` or prefix at either end"},
	{"port", "only with this `port` at either end"},
	{"interface", "only on the interface of this `name`"},
	{"unit", "only of this systemd `unit` on its host, such as nginx.service"},
}

// liveFilterFlags registers the conditions that new events can meet.
func liveFilterFlags(flags *pflag.FlagSet) {
	for _, f := range eventFilters {
		flags.StringSlice(f.name, nil, f.usage)
	}
	flags.String("slower", "", "only what took at least this `duration`, such as 100ms")
}

// filterFlags registers all conditions.
func filterFlags(flags *pflag.FlagSet) {
	liveFilterFlags(flags)
	flags.String("since", "", "only what happened since this `time`: 10m ago, or 2026-11-22T16:09:19Z")
}

// conditions returns those that were given, checked, and since as a time.
func conditions(flags *pflag.FlagSet) (url.Values, error) {
	given := url.Values{}
	for _, name := range api.EventFilterNames() {
		values := valuesOf(flags, name)
		if values == nil {
			continue
		}
		var filter api.EventFilter
		if err := filter.Set(name, values); err != nil {
			return nil, fmt.Errorf("--%s %s: %w; %w", name, strings.Join(values, ","), err, errUsage)
		}
		given[name] = values
	}
	return given, absolute(given)
}

// valuesOf returns what a flag was given, nil if it was not.
func valuesOf(flags *pflag.FlagSet, name string) []string {
	f := flags.Lookup(name)
	if f == nil || !f.Changed {
		return nil
	}
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	return []string{f.Value.String()}
}

// absolute turns since, a while ago, into a time.
func absolute(s url.Values) error {
	var filter api.EventFilter
	if !s.Has("since") {
		return nil
	}
	err := filter.Set("since", s["since"])
	s.Set("since", filter.Since().Format(time.RFC3339Nano))
	return err
}

// selectionNames are the conditions that a histogram can have.
func selectionNames() []string {
	names := api.EventFilterNames()
	for _, name := range api.HistogramQueryNames() {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// conditionsText has conditions as one would type them.
func conditionsText(given url.Values) string {
	var words []string
	for _, name := range selectionNames() {
		values, ok := given[name]
		if at, err := time.Parse(time.RFC3339Nano, given.Get(name)); err == nil && name == "since" {
			values = []string{at.Format(time.RFC3339)}
		}
		if ok {
			words = append(words, name+"="+strings.Join(values, ","))
		}
	}
	return strings.Join(words, " ")
}

// sourceFlags say which NATS server to read from, how to log in, and what to read.
type sourceFlags struct {
	options outputs.NATSOptions // of them the URL and the secrets
	subject string
}

// urlVariable has the server if no flag has.
const urlVariable = "NATS_URL"

type natsFlag struct {
	name  string
	to    *string
	usage string
}

// all are the flags that need a server.
func (f *sourceFlags) all() []natsFlag {
	o := &f.options
	return []natsFlag{
		{"subject", &f.subject, "with --nats, read this `subject`, with wildcards"},
		{"nats-creds", &o.Credentials, "with --nats, log in by this credentials `file`, a user's JWT and seed"},
		{"nats-nkey", &o.NKey, "with --nats, log in by the nkey seed in this `file`"},
		{"nats-token", &o.Token, "with --nats, log in by the token in this `file`"},
		{"nats-user", &o.User, "with --nats, log in as the user of this `name`"},
		{"nats-password", &o.Password, "the `file` that holds the password of --nats-user"},
		{"nats-ca", &o.CA, "with --nats, trust the certificates in this `file`, not the system's"},
		{"nats-cert", &o.Cert, "the `file` of a certificate that shows the server who asks"},
		{"nats-key", &o.Key, "the `file` of the key of --nats-cert"},
	}
}

func (f *sourceFlags) register(flags *pflag.FlagSet) {
	f.subject = "flatd.>"
	flags.StringVar(&f.options.URL, "nats", "", "read from this NATS server, `URL` nats://host:port, and not from the socket; $"+urlVariable+" does the same unless --socket is given")
	for _, one := range f.all() {
		flags.StringVar(one.to, one.name, *one.to, one.usage)
	}
}

// source returns where a command reads from. A flag prevails over the variable.
func (f *sourceFlags) source(flags *pflag.FlagSet, c *source.Client, say source.Say) (source.Source, error) {
	if !flags.Changed("nats") && !flags.Changed("socket") {
		f.options.URL = os.Getenv(urlVariable)
	}
	if f.options.URL != "" {
		return source.NewNATS(f.options, f.subject, say), nil
	}
	for _, one := range f.all() {
		if flags.Changed(one.name) {
			return nil, fmt.Errorf("--%s is for a NATS server: name it with --nats or in %s; %w", one.name, urlVariable, errUsage)
		}
	}
	return source.NewSocket(c, say), nil
}
