package config

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// Config is a valid configuration. Configs that mean the same are equal by
// reflect.DeepEqual: a list is nil rather than empty.
type Config struct {
	Interfaces []string // names, globs, "auto"
	Exclude    []string // names, globs
	Attach     string   // "auto", "tcx" or "clsact"
	PinPath    string
	KeepFor    time.Duration // 0: for ever
	Socket     string

	Measure Measure
	Filter  Filter
	Summary Summary
	Outputs Outputs
}

// Measure says which exchanges are followed, and how.
type Measure struct {
	Kinds       []flows.Kind
	Sides       []flows.Side
	Timeout     time.Duration // a request unanswered for so long has failed
	Slow        time.Duration // an answer that took at least so long is slow
	UDPInterval time.Duration // a UDP flow quiet for so long is new again
	DNSPorts    []uint16
	DNSNames    string // "on", "off" or "hash"
	Match       string // "interface" or "host"
}

// Filter says which exchanges are reported.
type Filter struct {
	// Include and Exclude are the peers, the others this host's own addresses;
	// the most specific prefix decides. They are masked, and IPv4 is not in its
	// mapped form.
	Include, Exclude           []netip.Prefix
	LocalInclude, LocalExclude []netip.Prefix

	Ports       []bpf.PortRange // of the responder; none: all
	Results     []string        // as flatd.result names them; none: all
	MinDuration time.Duration   // faster successes are not reported
	Sample      uint32          // one success in so many is reported
}

// Summary says how often flatd sums up, and how much of it.
type Summary struct {
	Interval     time.Duration // 0: never
	Destinations int           // at most so many busy ones and so many bad ones
}

// Outputs says where events go.
type Outputs struct {
	Journald Journald
	NATS     NATS
	Stdout   Stdout
}

// Journald sets up the output to the journal.
type Journald struct {
	Enabled bool
	Profile string // "budget", "all" or "notable"
	// ObjectUnit has failures and slow exchanges shown with the unit they are
	// about: journalctl -u nginx.
	ObjectUnit bool
	// The budget of events a second, and how many may come at once.
	SuccessesPerSecond, SuccessesBurst int
	FailuresPerSecond, FailuresBurst   int
	Queue                              int // events
}

// NATS sets up the output to NATS. It is off while URL is empty. Credentials,
// NKey, Token, Password and what begins with TLS are the paths of files; an
// empty path means none.
type NATS struct {
	URL     string // one server, or several with commas between
	Subject string // template
	Mode    string // "auto", "core" or "jetstream"
	Service bool   // answer requests, such as for the status

	Credentials, NKey, Token string
	User, Password           string
	TLSCA, TLSCert, TLSKey   string

	Queue int // events
}

// Stdout sets up the output to standard output.
type Stdout struct {
	Enabled bool
	Format  string // "json" or "text"
	Queue   int    // events
}

// Defaults is the configuration of a host that has no file.
func Defaults() Config {
	return Config{
		Interfaces: []string{"auto"},
		Exclude:    []string{"veth*", "docker*", "br-*"},
		Attach:     "auto",
		PinPath:    "/sys/fs/bpf/flatd",
		KeepFor:    10 * time.Minute,
		Socket:     "/run/flatd/control.sock",
		Measure: Measure{
			Kinds:       flows.ExchangeKinds(),
			Sides:       []flows.Side{flows.SideClient, flows.SideServer},
			Timeout:     10 * time.Second,
			Slow:        time.Second,
			UDPInterval: 30 * time.Second,
			DNSPorts:    []uint16{53},
			DNSNames:    "on",
			Match:       "interface",
		},
		Filter:  Filter{Sample: 1},
		Summary: Summary{Interval: time.Minute, Destinations: 20},
		Outputs: Outputs{
			Journald: Journald{
				Enabled:            true,
				Profile:            "budget",
				ObjectUnit:         true,
				SuccessesPerSecond: outputs.DefaultSuccessRate,
				SuccessesBurst:     outputs.DefaultSuccessBurst,
				FailuresPerSecond:  outputs.DefaultFailureRate,
				FailuresBurst:      outputs.DefaultFailureBurst,
				Queue:              8192,
			},
			NATS:   NATS{Subject: outputs.DefaultSubject, Mode: "auto", Service: true, Queue: 65536},
			Stdout: Stdout{Format: "json", Queue: 8192},
		},
	}
}

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
