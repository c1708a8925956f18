package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/flatd/flatd/flows"
)

// EventFilter chooses events. Each condition narrows; one that is absent does
// not, so the zero value takes all. It is the same for those who ask the control
// socket and for those who read a NATS server.
type EventFilter struct {
	kinds, sides, results []string
	peers, from, to       []netip.Prefix // either end, source, destination
	ports                 []uint16       // either end
	interfaces            []string
	units                 []string
	slower                time.Duration
	since                 time.Time
}

// EventFilterNames are the conditions that Set knows.
func EventFilterNames() []string {
	return []string{"kind", "side", "result", "from", "to", "peer", "port", "interface", "unit", "slower", "since"}
}

// Sides are the names of the sides of an exchange.
func Sides() []string { return []string{flows.SideClient.String(), flows.SideServer.String()} }

// Set sets a condition. Those of which one of several values must match may have
// them separated by commas, too. An error says what is allowed, but not of what.
func (f *EventFilter) Set(name string, texts []string) error {
	list, err := words(texts)
	if err != nil {
		return err
	}
	switch name {
	case "kind":
		f.kinds, err = oneOf(list, flows.KindNames()...)
	case "side":
		f.sides, err = oneOf(list, Sides()...)
	case "result":
		f.results, err = oneOf(list, flows.ResultNames()...)
	case "interface":
		f.interfaces = list
	case "unit":
		f.units, err = parseAll(list, parseUnit)
	case "peer":
		f.peers, err = parseAll(list, parsePrefix)
	case "from":
		f.from, err = parseAll(list, parsePrefix)
	case "to":
		f.to, err = parseAll(list, parsePrefix)
	case "port":
		f.ports, err = parseAll(list, parsePort)
	case "slower":
		f.slower, err = parsePositive(texts[0])
	case "since":
		f.since, err = parseSince(texts[0])
	default:
		err = errUnknown
	}
	return err
}

func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		addr = addr.Unmap().WithZone("") // as events have them
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is neither an address nor a prefix such as 10.0.0.0/8", s)
	}
	return p, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port number", s)
	}
	return uint16(n), nil
}

func parsePositive(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration such as 250ms or 10m", s)
	}
	return d, nil
}

// parseSince takes a time, or a duration for so long ago.
func parseSince(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	d, err := parsePositive(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a duration such as 10m nor a time such as 2026-11-22T16:09:19Z", s)
	}
	return time.Now().Add(-d), nil
}

// Since is the time before which no event matches, zero if there is none.
func (f *EventFilter) Since() time.Time { return f.since }

// Match reports whether an event meets every condition.
func (f *EventFilter) Match(e *flows.Event) bool {
	return among(f.kinds, e.Kind.String()) &&
		among(f.sides, e.Side.String()) &&
		among(f.results, e.ResultName()) &&
		among(f.interfaces, e.Interface.Name) &&
		f.matchUnit(e.Owner) &&
		e.Duration >= f.slower &&
		!e.Time.Before(f.since) &&
		(len(f.ports) == 0 || slices.Contains(f.ports, e.Source.Port()) || slices.Contains(f.ports, e.Destination.Port())) &&
		within(f.from, e.Source.Addr()) &&
		within(f.to, e.Destination.Addr()) &&
		(within(f.peers, e.Source.Addr()) || within(f.peers, e.Destination.Addr()))
}

// matchUnit takes a unit of a user's manager for itself, and for that manager.
func (f *EventFilter) matchUnit(o *flows.Owner) bool {
	return among(f.units, o.Service()) || o != nil && among(f.units, o.Unit)
}

// within reports whether one of the prefixes, if there are any, has the address.
func within(prefixes []netip.Prefix, addr netip.Addr) bool {
	return len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}
