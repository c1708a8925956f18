package pipeline

import (
	"slices"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/flows"
)

// Settings are those of the programs for a configuration.
func Settings(c config.Config) bpf.Settings {
	return bpf.Settings{
		UDPIdle:     c.Measure.UDPInterval,
		Timeout:     c.Measure.Timeout,
		MinDuration: c.Filter.MinDuration,
		Sample:      c.Filter.Sample,
		MatchHost:   c.Measure.Match == "host",
		DNSPorts:    c.Measure.DNSPorts,
		Remote:      bpf.Nets{Include: c.Filter.Include, Exclude: c.Filter.Exclude},
		Local:       bpf.Nets{Include: c.Filter.LocalInclude, Exclude: c.Filter.LocalExclude},
		Ports:       c.Filter.Ports,
		SkipKinds:   without(flows.ExchangeKinds(), c.Measure.Kinds),
		SkipSides:   without([]flows.Side{flows.SideClient, flows.SideServer}, c.Measure.Sides),
		SkipResults: unwantedResults(c.Filter.Results),
	}
}

// unwantedResults are those that the kernel is to leave out: all but the wanted,
// or none if nothing is said.
func unwantedResults(wanted []string) (skip []bpf.Result) {
	if len(wanted) == 0 {
		return nil
	}
	leaveOut := func(e flows.Event, r bpf.Result) {
		if !slices.Contains(wanted, e.ResultName()) {
			skip = append(skip, r)
		}
	}
	for r := flows.ResultEstablished; r <= flows.ResultTimeout; r++ {
		leaveOut(flows.Event{Kind: flows.KindTCP, Result: r}, bpf.Result(r))
	}
	for rcode := range uint16(bpf.RCodeLast + 1) {
		leaveOut(flows.Event{Kind: flows.KindDNS, Result: flows.ResultAnswered, DNS: flows.DNS{RCode: rcode}}, bpf.DNSResult(rcode))
	}
	return skip
}

// without returns those of all that are not wanted, as the kernel names them.
func without[T flows.Kind | flows.Side](all, wanted []T) (rest []uint8) {
	for _, v := range all {
		if !slices.Contains(wanted, v) {
			rest = append(rest, uint8(v))
		}
	}
	return rest
}
