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
	AltNames []string // alternative names (`ip link property`)
	Enslaved bool     // a port of a bridge or bond, where its packets are seen again
	Default  bool     // holds a default route
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
		if d.named(interfaces) || chosen(d, interfaces) && !d.matches(exclude) {
			wanted = append(wanted, d)
		}
	}
	return wanted
}

func chosen(d device, interfaces []string) bool {
	if d.Enslaved || d.Name == "lo" {
		return false
	}
	return d.Default && slices.Contains(interfaces, "auto") || d.matches(interfaces)
}

// named reports whether one of the names is the device's.
func (d device) named(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return name == d.Name || slices.Contains(d.AltNames, name) })
}

// matches reports whether one of the globs, which are known to be valid, matches a name
// of the device.
func (d device) matches(globs []string) bool {
	return slices.ContainsFunc(globs, func(glob string) bool {
		does := func(name string) bool { ok, _ := path.Match(glob, name); return ok }
		return does(d.Name) || slices.ContainsFunc(d.AltNames, does)
	})
}

// absent lists the names that are written out but are no device's.
func absent(devices []device, interfaces []string) (names []string) {
	for _, name := range interfaces {
		isName := name != "auto" && !strings.ContainsAny(name, `*?[\`)
		if isName && !slices.ContainsFunc(devices, func(d device) bool { return d.named([]string{name}) }) {
			names = append(names, name)
		}
	}
	return names
}
