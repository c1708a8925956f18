package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/outputs"
)

// interfaceNameMax is ALTIFNAMSIZ without the NUL: an interface may have alternative names,
// which may be longer than its name (IFNAMSIZ).
const interfaceNameMax = 127

// interfaceWanted takes "auto", a name or a glob.
func interfaceWanted(value any) (string, error) {
	s, ok := value.(string)
	if !ok {
		return "", fmt.Errorf("%s is not a string: want the name of an interface, a glob or \"auto\"", show(value))
	}
	isGlob := strings.ContainsAny(s, `*?[\`)
	switch {
	case s == "" || s == "." || s == "..":
		return "", fmt.Errorf("%s is not the name of an interface", show(s))
	case strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r) }):
		return "", fmt.Errorf("%s is not the name of an interface: these have no '/', ':' or white space", show(s))
	case !isGlob && len(s) > interfaceNameMax:
		return "", fmt.Errorf("%s is too long for an interface: want at most %d characters", show(s), interfaceNameMax)
	}
	if _, err := path.Match(s, ""); err != nil || len(s) > 2*interfaceNameMax {
		return "", fmt.Errorf("%s is not a valid glob: want *, ?, [a-z] or [^a-z], such as \"eth*\"", show(s))
	}
	return s, nil
}

func interfaceUnwanted(value any) (string, error) {
	if value == "auto" {
		return "", errors.New("\"auto\" chooses interfaces: want names or globs of those to leave out")
	}
	return interfaceWanted(value)
}

// prefix takes an address with its bits, or an address alone.
func prefix(value any) (netip.Prefix, error) {
	const want = "want address/bits such as 10.0.0.0/8 or 2001:db8::/32"
	s, ok := value.(string)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%s is not a string: %s, in quotes", show(value), want)
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s is not a CIDR prefix: %s", show(s), want)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has bits beyond its first %d: want %q for the network, or %q for the host",
			show(s), p.Bits(), p.Masked(), p.Addr())
	}
	return p, nil
}

func port(value any) (uint16, error) {
	n, ok := value.(int64)
	if !ok {
		return 0, fmt.Errorf("%s is not a port: want a number from 1 to 65535, without quotes", show(value))
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("%d is not a port: want 1 to 65535", n)
	}
	return uint16(n), nil
}

// portRange takes 443, "443" or "8000-8999".
func portRange(value any) (bpf.PortRange, error) {
	if n, ok := value.(int64); ok {
		p, err := port(n)
		return bpf.PortRange{First: p, Last: p}, err
	}
	s, ok := value.(string)
	if !ok {
		return bpf.PortRange{}, fmt.Errorf("%s is not a port: want a port or a range, such as \"443\" or \"8000-8999\"", show(value))
	}
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	first, err1 := strconv.ParseUint(strings.TrimSpace(from), 10, 16)
	last, err2 := strconv.ParseUint(strings.TrimSpace(to), 10, 16)
	if err1 != nil || err2 != nil || first == 0 || last == 0 {
		return bpf.PortRange{}, fmt.Errorf("%s is not a port: want 1 to 65535, or a range such as \"8000-8999\"", show(s))
	}
	if first > last {
		return bpf.PortRange{}, fmt.Errorf("%s ends before it begins: want \"%d-%d\"", show(s), last, first)
	}
	return bpf.PortRange{First: uint16(first), Last: uint16(last)}, nil
}

// natsURL checks one server, or several with commas between; "" is none.
func natsURL(s string) error {
	if s == "" {
		return nil
	}
	var problems []error
	for server := range strings.SplitSeq(s, ",") {
		problems = append(problems, natsServer(strings.TrimSpace(server)))
	}
	return errors.Join(problems...)
}

func natsServer(s string) error {
	const want = "want nats://, tls://, ws:// or wss://, a host, and a port if it is not the usual one"
	if strings.Contains(s, "@") { // not shown: it may hold the password
		return errors.New("has a user or password in it: want these in files, named by user and password, or by token")
	}
	scheme, _, ok := strings.Cut(s, "://")
	if !ok {
		return fmt.Errorf("%s has no scheme: %s; did you mean %q?", show(s), want, "nats://"+s)
	}
	u, err := url.Parse(s)
	switch {
	case !slices.Contains(outputs.NATSSchemes, scheme):
		return fmt.Errorf("%s has scheme %q: %s", show(s), scheme, want)
	case err != nil || u.Hostname() == "":
		return fmt.Errorf("%s is not a URL: %s", show(s), want)
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && err != nil {
		return fmt.Errorf("%s has port %s: want 1 to 65535", show(s), u.Port())
	}
	return nil
}

// userName checks a name to log in with; "" is none.
func userName(s string) error {
	if strings.ContainsFunc(s, unicode.IsControl) || len(s) > 255 {
		return fmt.Errorf("%s is not a user: want a name of at most 255 characters", show(s))
	}
	return nil
}

func subject(s string) error {
	_, err := outputs.ParseSubject(s)
	return err
}
