package pipeline

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/flatd/flatd/flows"
)

// destinationsMax bounds the table of destinations: as a rule 3 MB when it is
// full, and 20 MB if each had answers of every duration there is.
const destinationsMax = 4096

// destination is whom this host asked for what. ICMP has no port.
type destination struct {
	end  netip.AddrPort
	kind flows.Kind
}

// destinations is a table with the counts of each destination of an interval.
// Once it is full, exchanges with further destinations are counted together:
// so the numbers of those that are in it are exact. Those that are asked often
// come early and are in it; who scans networks may miss some.
type destinations struct {
	places map[destination]int // in counts
	counts []*counts           // those beyond len(places) wait to be used again
	others uint64              // exchanges that found no place
}

func (d *destinations) add(e *flows.Event) {
	key := destination{e.Destination, e.Kind}
	place, known := d.places[key]
	if !known {
		place = len(d.places)
		if place == destinationsMax {
			d.others++
			return
		}
		d.places[key] = place
		if place == len(d.counts) {
			d.counts = append(d.counts, newCounts(hdrhistogram.NewPacked(durationLeast, durationMost, 1)))
		}
		d.counts[place].destination = e.Destination
	}
	d.counts[place].add(e)
}

// reset empties the table and keeps its memory.
func (d *destinations) reset() {
	for _, t := range d.counts[:len(d.places)] {
		t.reset()
	}
	clear(d.places)
	d.others = 0
}

// outstanding returns the n busiest destinations and then, of the others, the
// n with the most troubles, as far as they have any.
func (d *destinations) outstanding(n int) []*counts {
	used := slices.Clone(d.counts[:len(d.places)])
	slices.SortFunc(used, func(a, b *counts) int {
		return cmp.Or(cmp.Compare(b.sum.Count, a.sum.Count), byDestination(a, b))
	})
	n = min(n, len(used))
	busiest, rest := used[:n:n], used[n:]
	slices.SortFunc(rest, func(a, b *counts) int {
		return cmp.Or(cmp.Compare(b.troubles(), a.troubles()), cmp.Compare(b.sum.Max, a.sum.Max), byDestination(a, b))
	})
	for _, t := range rest[:min(n, len(rest))] {
		if t.troubles() > 0 {
			busiest = append(busiest, t)
		}
	}
	return busiest
}

// byDestination orders what is otherwise equal.
func byDestination(a, b *counts) int {
	return cmp.Or(a.destination.Compare(b.destination), cmp.Compare(a.sum.Kind, b.sum.Kind))
}
