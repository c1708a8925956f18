package links

import (
	"path"
	"slices"
	"strings"

	"github.com/flatd/flatd/bpf"
)

// device is what the choice of interfaces needs to know of one.
type device struct {
	bpf.Interface
	Enslaved bool // a port of a bridge or bond, where its packets are seen again
	Default  bool // holds a default route
	// Translating: NAT acts between its two hooks, so that an answer may have other
	// addresses than its request.
	Translating bool
	// Unsupported is the link type of a device whose packets begin with
	// neither an Ethernet nor an IP header, otherwise "".
	Unsupported string
}

// desired chooses the interfaces to measure. A name that is written out wins over
// everything; a glob or "auto" takes no excluded one, no port of another
// interface and not lo.
func desired(devices []device, interfaces, exclude []string) []device {
	var wanted []device
	for _, d := range devices {
		if slices.Contains(interfaces, d.Name) || chosen(d, interfaces) && !matches(d.Name, exclude) {
			wanted = append(wanted, d)
		}
	}
	return wanted
}

func chosen(d device, interfaces []string) bool {
	if d.Enslaved || d.Name == "lo" {
		return false
	}
	return d.Default && slices.Contains(interfaces, "auto") || matches(d.Name, interfaces)
}

// matches reports whether one of the globs, which are known to be valid,
// matches name.
func matches(name string, globs []string) bool {
	return slices.ContainsFunc(globs, func(glob string) bool {
		ok, _ := path.Match(glob, name)
		return ok
	})
}

// absent lists the names that are written out but are no device's.
func absent(devices []device, interfaces []string) (names []string) {
	for _, name := range interfaces {
		isName := name != "auto" && !strings.ContainsAny(name, `*?[\`)
		if isName && !slices.ContainsFunc(devices, func(d device) bool { return d.Name == name }) {
			names = append(names, name)
		}
	}
	return names
}
