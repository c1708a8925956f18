package board

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/flatd/flatd/flows"
)

// Group says what the exchanges of one row have in common, beside kind and side.
type Group uint8

// The groups.
const (
	ByDestination Group = iota
	ByUnit
	ByInterface
	ByHost
	groups
)

var groupNames = [groups]string{"destination", "unit", "interface", "host"}

// String returns the group's name.
func (g Group) String() string { return groupNames[g] }

// Groups are the names of all groups, in their order.
func Groups() []string { return slices.Clone(groupNames[:]) }

// ParseGroup is the inverse of Group.String.
func ParseGroup(name string) (Group, error) {
	i, err := indexOf(groupNames[:], name)
	return Group(i), err
}

// Next is the group after this one, and after the last the first.
func (g Group) Next() Group { return (g + 1) % groups }

func indexOf(names []string, name string) (int, error) {
	i := slices.Index(names, name)
	if i < 0 {
		return 0, fmt.Errorf("no %q: there are %s", name, names)
	}
	return i, nil
}

// Key distinguishes the rows of a group. Durations of another kind mean something
// else, and on the server's side they are this host's part alone; so neither are
// counted together.
type Key struct {
	Kind flows.Kind
	Side flows.Side
	End  netip.AddrPort // ByDestination: who was asked
	Name string         // of the others; "" if it is not known
}

// keyOf is the key of the row that an event of a host belongs to.
func (g Group) keyOf(host string, e *flows.Event) Key {
	k := Key{Kind: e.Kind, Side: e.Side}
	switch g {
	case ByDestination:
		k.End = e.Destination
	case ByUnit:
		k.Name = e.Owner.Service()
	case ByInterface:
		k.Name = e.Interface.Name
	case ByHost:
		k.Name = host
	}
	return k
}
