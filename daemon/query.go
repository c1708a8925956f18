package daemon

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flatd/flatd/flows"
)

// query is what /v1/events is asked for. Each condition narrows; one that is
// absent does not.
type query struct {
	limit  int
	follow bool
	text   bool // lines for people instead of JSON
	color  bool

	kinds, sides, results []string
	peers                 []netip.Prefix // either end
	ports                 []uint16       // either end
	interfaces            []string
	units                 []string
	slower                time.Duration
}

// wordsMax bounds each list: every event is compared with it.
const wordsMax = 64

// parseQuery reads the parameters: limit, follow, format, color, kind, side, result, peer,
// port, interface, unit, slower. Those of which there may be several are repeated or
// separated by commas.
func parseQuery(values url.Values) (query, error) {
	q := query{limit: 100}
	for name, texts := range values {
		var err error
		words := strings.Split(strings.Join(texts, ","), ",")
		if len(words) > wordsMax {
			return q, fmt.Errorf("parameter %q has %d values: at most %d are allowed", name, len(words), wordsMax)
		}
		switch name {
		case "limit":
			q.limit, err = strconv.Atoi(texts[0])
			if err == nil && (q.limit < 0 || q.limit > recentMax) {
				err = fmt.Errorf("must be from 0 to %d", recentMax)
			}
		case "follow":
			q.follow, err = strconv.ParseBool(texts[0])
		case "format":
			_, err = oneOf(texts, "json", "text")
			q.text = texts[0] == "text"
		case "color":
			q.color, err = strconv.ParseBool(texts[0])
		case "kind":
			q.kinds, err = oneOf(words, "tcp", "dns", "udp", "icmp", "status", "summary")
		case "side":
			q.sides, err = oneOf(words, "client", "server")
		case "result":
			q.results = words
		case "interface":
			q.interfaces = words
		case "unit":
			q.units, err = parseAll(words, parseUnit)
		case "peer":
			q.peers, err = parseAll(words, parsePeer)
		case "port":
			q.ports, err = parseAll(words, parsePort)
		case "slower":
			q.slower, err = time.ParseDuration(texts[0])
		default:
			return q, fmt.Errorf("unknown parameter %q: known are limit, follow, format, color, kind, side, result, peer, port, interface, unit, slower", name)
		}
		if err != nil {
			return q, fmt.Errorf("parameter %s=%q: %w", name, strings.Join(texts, ","), err)
		}
	}
	return q, nil
}

func oneOf(words []string, known ...string) ([]string, error) {
	for _, w := range words {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("must be one of %s", strings.Join(known, ", "))
		}
	}
	return words, nil
}

func parseAll[T any](words []string, parse func(string) (T, error)) ([]T, error) {
	all := make([]T, 0, len(words))
	for _, w := range words {
		v, err := parse(w)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func parsePeer(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is neither an address nor a prefix such as 10.0.0.0/8", s)
	}
	return p, nil
}

// parseUnit takes "nginx" for nginx.service, as systemctl does.
func parseUnit(s string) (string, error) {
	for _, name := range []string{s, s + ".service"} {
		if s != "" && flows.OwnerOf("/"+name).Unit == name {
			return name, nil
		}
	}
	return "", fmt.Errorf("%q is not the name of a unit", s)
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port number", s)
	}
	return uint16(n), nil
}

// match reports whether an event meets every condition.
func (q *query) match(e *flows.Event) bool {
	return among(q.kinds, e.Kind.String()) &&
		among(q.sides, e.Side.String()) &&
		among(q.results, e.ResultName()) &&
		among(q.interfaces, e.Interface.Name) &&
		q.matchUnit(e.Owner) &&
		e.Duration >= q.slower &&
		(len(q.ports) == 0 || slices.Contains(q.ports, e.Source.Port()) || slices.Contains(q.ports, e.Destination.Port())) &&
		(len(q.peers) == 0 || slices.ContainsFunc(q.peers, func(p netip.Prefix) bool {
			return p.Contains(e.Source.Addr()) || p.Contains(e.Destination.Addr())
		}))
}

// matchUnit takes a unit of a user's manager for itself, and for that manager.
func (q *query) matchUnit(o *flows.Owner) bool {
	return among(q.units, o.Service()) || o != nil && among(q.units, o.Unit)
}

func among(words []string, word string) bool { return len(words) == 0 || slices.Contains(words, word) }
