package config

import (
	"slices"
	"strings"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

// Limits of what a queue keeps, in events.
const (
	queueEventsMin = 256
	queueEventsMax = 1 << 20
)

// interfacesMax bounds each list of interfaces.
const interfacesMax = 256

// keepForMax is thirty days: who wants longer wants 0.
const keepForMax = 720 * time.Hour

// summaryDestinationsMax bounds what one interval adds to the journal: with as
// many bad destinations as busy ones, half a megabyte.
const summaryDestinationsMax = 200

// journalRateMax bounds the journal's budgets, in events and events a second.
const journalRateMax = 1_000_000

// configKey is one key that a file may have.
type configKey struct {
	name string // with its tables: "measure.timeout"
	setting
}

// keysOf lists every key there is, each with its place in c.
func keysOf(c *Config) []configKey {
	return slices.Concat(
		[]configKey{
			{"interfaces", list(&c.Interfaces, 1, interfacesMax, interfaceWanted)},
			{"exclude", list(&c.Exclude, 0, interfacesMax, interfaceUnwanted)},
			{"attach", word(&c.Attach, "auto", "tcx", "clsact")},
			{"pin_path", text(&c.PinPath, pinPath)},
			{"keep_for", durationOrZero(&c.KeepFor, 10*time.Second, keepForMax)},
			{"socket", text(&c.Socket, socketPath)},
		},
		measureKeys(&c.Measure),
		filterKeys(&c.Filter),
		[]configKey{
			{"summary.interval", durationOrZero(&c.Summary.Interval, 10*time.Second, time.Hour)},
			{"summary.destinations", integer(&c.Summary.Destinations, 0, summaryDestinationsMax)},
		},
		journaldKeys(&c.Outputs.Journald),
		natsKeys(&c.Outputs.NATS),
		[]configKey{
			{"outputs.stdout.enabled", boolean(&c.Outputs.Stdout.Enabled)},
			{"outputs.stdout.format", word(&c.Outputs.Stdout.Format, "json", "text")},
			{"outputs.stdout.queue", integer(&c.Outputs.Stdout.Queue, queueEventsMin, queueEventsMax)},
		},
	)
}

func measureKeys(m *Measure) []configKey {
	return []configKey{
		{"measure.kinds", list(&m.Kinds, 1, len(flows.ExchangeKinds()), named(flows.ExchangeKinds()))},
		{"measure.sides", list(&m.Sides, 1, 2, named([]flows.Side{flows.SideClient, flows.SideServer}))},
		{"measure.timeout", duration(&m.Timeout, 100*time.Millisecond, 5*time.Minute)},
		{"measure.slow", duration(&m.Slow, time.Microsecond, 5*time.Minute)},
		{"measure.udp_interval", duration(&m.UDPInterval, time.Second, time.Hour)},
		{"measure.dns_ports", list(&m.DNSPorts, 1, bpf.MaxDNSPorts, port)},
		{"measure.dns_names", word(&m.DNSNames, "on", "off", "hash")},
		{"measure.match", word(&m.Match, "interface", "host")},
	}
}

func filterKeys(f *Filter) []configKey {
	return []configKey{
		{"filter.include", list(&f.Include, 0, bpf.MaxNets, prefix)},
		{"filter.exclude", list(&f.Exclude, 0, bpf.MaxNets, prefix)},
		{"filter.local_include", list(&f.LocalInclude, 0, bpf.MaxNets, prefix)},
		{"filter.local_exclude", list(&f.LocalExclude, 0, bpf.MaxNets, prefix)},
		{"filter.ports", list(&f.Ports, 0, bpf.MaxPortRanges, portRange)},
		{"filter.results", list(&f.Results, 0, len(flows.ResultNames()), wordOf(flows.ResultNames()))},
		{"filter.min_duration", durationOrZero(&f.MinDuration, time.Microsecond, 5*time.Minute)},
		{"filter.sample", integer(&f.Sample, 1, 1_000_000_000)},
	}
}

func journaldKeys(j *Journald) []configKey {
	return []configKey{
		{"outputs.journald.enabled", boolean(&j.Enabled)},
		{"outputs.journald.profile", word(&j.Profile, "budget", "all", "notable")},
		{"outputs.journald.object_unit", boolean(&j.ObjectUnit)},
		{"outputs.journald.successes_per_second", integer(&j.SuccessesPerSecond, 1, journalRateMax)},
		{"outputs.journald.successes_burst", integer(&j.SuccessesBurst, 1, journalRateMax)},
		{"outputs.journald.failures_per_second", integer(&j.FailuresPerSecond, 1, journalRateMax)},
		{"outputs.journald.failures_burst", integer(&j.FailuresBurst, 1, journalRateMax)},
		{"outputs.journald.queue", integer(&j.Queue, queueEventsMin, queueEventsMax)},
	}
}

func natsKeys(n *NATS) []configKey {
	return []configKey{
		{"outputs.nats.url", text(&n.URL, natsURL)},
		{"outputs.nats.subject", text(&n.Subject, subject)},
		{"outputs.nats.mode", word(&n.Mode, "auto", "core", "jetstream")},
		{"outputs.nats.service", boolean(&n.Service)},
		{"outputs.nats.credentials", secretFile(&n.Credentials)},
		{"outputs.nats.nkey", secretFile(&n.NKey)},
		{"outputs.nats.token", secretFile(&n.Token)},
		{"outputs.nats.user", text(&n.User, userName)},
		{"outputs.nats.password", secretFile(&n.Password)},
		{"outputs.nats.tls_ca", secretFile(&n.TLSCA)},
		{"outputs.nats.tls_cert", secretFile(&n.TLSCert)},
		{"outputs.nats.tls_key", secretFile(&n.TLSKey)},
		{"outputs.nats.queue", integer(&n.Queue, queueEventsMin, queueEventsMax)},
	}
}

// isTable reports whether there are keys in a table of this name.
func isTable(keys []configKey, name string) bool {
	return slices.ContainsFunc(keys, func(k configKey) bool { return strings.HasPrefix(k.name, name+".") })
}
