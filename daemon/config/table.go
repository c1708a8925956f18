package config

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/flatd/flatd/flows"
)

// Table is the configuration as tables and keys, each value in the form it has
// in the file. Secrets are not in it: their keys hold paths.
func (c Config) Table() map[string]any {
	return map[string]any{
		"interfaces": each(c.Interfaces, asIs),
		"exclude":    each(c.Exclude, asIs),
		"attach":     c.Attach,
		"pin_path":   c.PinPath,
		"keep_for":   humanDuration(c.KeepFor),
		"socket":     c.Socket,
		"measure":    c.Measure.table(),
		"filter":     c.Filter.table(),
		"summary":    c.Summary.table(),
		"outputs": map[string]any{
			"journald": c.Outputs.Journald.table(),
			"nats":     c.Outputs.NATS.table(),
			"stdout":   c.Outputs.Stdout.table(),
		},
	}
}

func (m Measure) table() map[string]any {
	return map[string]any{
		"kinds":        each(m.Kinds, flows.Kind.String),
		"sides":        each(m.Sides, flows.Side.String),
		"timeout":      humanDuration(m.Timeout),
		"slow":         humanDuration(m.Slow),
		"udp_interval": humanDuration(m.UDPInterval),
		"dns_ports":    each(m.DNSPorts, asIs),
		"dns_names":    m.DNSNames,
		"match":        m.Match,
	}
}

func (f Filter) table() map[string]any {
	return map[string]any{
		"include":       each(f.Include, netip.Prefix.String),
		"exclude":       each(f.Exclude, netip.Prefix.String),
		"local_include": each(f.LocalInclude, netip.Prefix.String),
		"local_exclude": each(f.LocalExclude, netip.Prefix.String),
		"ports":         each(f.Ports, PortRange.String),
		"results":       each(f.Results, asIs),
		"min_duration":  humanDuration(f.MinDuration),
		"sample":        f.Sample,
	}
}

func (s Summary) table() map[string]any {
	return map[string]any{"interval": humanDuration(s.Interval), "destinations": s.Destinations}
}

func (j Journald) table() map[string]any {
	return map[string]any{
		"enabled":              j.Enabled,
		"profile":              j.Profile,
		"object_unit":          j.ObjectUnit,
		"successes_per_second": j.SuccessesPerSecond,
		"successes_burst":      j.SuccessesBurst,
		"failures_per_second":  j.FailuresPerSecond,
		"failures_burst":       j.FailuresBurst,
		"queue":                j.Queue,
	}
}

func (n NATS) table() map[string]any {
	return map[string]any{
		"url":         n.URL,
		"subject":     n.Subject,
		"mode":        n.Mode,
		"service":     n.Service,
		"credentials": n.Credentials,
		"nkey":        n.NKey,
		"token":       n.Token,
		"user":        n.User,
		"password":    n.Password,
		"tls_ca":      n.TLSCA,
		"tls_cert":    n.TLSCert,
		"tls_key":     n.TLSKey,
		"queue":       n.Queue,
	}
}

func (s Stdout) table() map[string]any {
	return map[string]any{"enabled": s.Enabled, "format": s.Format, "queue": s.Queue}
}

// String is the range as the file has it: "443" or "8000-8999".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func asIs[T any](v T) T { return v }

// each gives what form makes of the values: a list, even if it is empty.
func each[T, F any](values []T, form func(T) F) []F {
	list := make([]F, 0, len(values))
	for _, v := range values {
		list = append(list, form(v))
	}
	return list
}
