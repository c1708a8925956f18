// Package top counts what has happened lately, by destination, unit, interface
// and host, for a view like that of top(1).
//
// The package opens nothing and looks at no clock: it is told of events, and what
// time it is.
package top

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

// Key tells the rows of a group apart. Durations of another kind mean something
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

// Tally is what exchanges came to.
type Tally struct {
	Count   uint64
	Results [resultsMax]uint64 // by resultOf
	// Histogram has those that were answered, whatever the answer: a timeout has
	// no duration.
	Histogram flows.Histogram
}

const resultsMax = 32

var (
	resultNames = flows.ResultNames()
	resultIndex = func() map[string]uint8 {
		index := make(map[string]uint8, len(resultNames))
		for i, name := range resultNames {
			index[name] = uint8(i)
		}
		return index
	}()
	resultOther   = uint8(len(resultNames)) // a response code of DNS without a name
	resultTimeout = resultIndex["timeout"]
	successes     = []uint8{resultIndex["established"], resultIndex["answered"], resultIndex["noerror"]}
)

// resultOf is the index of an exchange's result in flows.ResultNames, or
// resultOther.
func resultOf(e *flows.Event) uint8 {
	if i, ok := resultIndex[e.ResultName()]; ok {
		return i
	}
	return resultOther
}

// Failed is how many did not end as the initiator hoped, timeouts among them.
func (t *Tally) Failed() uint64 {
	n := t.Count
	for _, i := range successes {
		n -= t.Results[i]
	}
	return n
}

// Timeouts is how many never got an answer.
func (t *Tally) Timeouts() uint64 { return t.Results[resultTimeout] }

// ByResult has the results that there were, and how many of each.
func (t *Tally) ByResult() map[string]uint64 {
	counts := make(map[string]uint64)
	for i, name := range resultNames {
		if t.Results[i] > 0 {
			counts[name] = t.Results[i]
		}
	}
	if n := t.Results[resultOther]; n > 0 {
		counts["other"] = n
	}
	return counts
}
