package main

// What `flatctl top --once -o json` prints.

import (
	"time"

	"github.com/flatd/flatd/cmd/flatctl/board"
	"github.com/flatd/flatd/flows"
)

// topDocument is what `top --once -o json` prints. Durations are in nanoseconds.
type topDocument struct {
	Hosts    []string      `json:"hosts"` // that answered
	Interval time.Duration `json:"interval"`
	Group    string        `json:"group"`
	Sort     string        `json:"sort"`
	Rows     []topRow      `json:"rows"`
	Others   topCounts     `json:"others"` // of destinations beyond those that have a row
	Total    topCounts     `json:"total"`
	// Events that are lost, and exchanges that never became one because the
	// configuration leaves them out, in this time.
	Lost    uint64 `json:"lost"`
	LeftOut uint64 `json:"left_out"`
}

type topRow struct {
	Kind        string  `json:"kind"`
	Side        string  `json:"side"`
	Destination *topEnd `json:"destination,omitempty"`
	Unit        string  `json:"unit,omitempty"`
	Interface   string  `json:"interface,omitempty"`
	Host        string  `json:"host,omitempty"`
	topCounts
}

type topEnd struct {
	IP   string `json:"ip"`
	Port uint16 `json:"port,omitempty"` // ICMP has none
}

type topCounts struct {
	Exchanges uint64             `json:"exchanges"`
	Failed    uint64             `json:"failed"`
	Timeouts  uint64             `json:"timeouts"`
	Results   map[string]uint64  `json:"results"`
	Durations flows.Distribution `json:"durations"` // of those that were answered
}

func topDocumentOf(s *board.Snapshot, f *feedStatus, a arrangement, limit int) topDocument {
	d := topDocument{
		Hosts: []string{}, Interval: s.Covered, Group: a.group.String(), Sort: a.order.String(), Rows: []topRow{},
		Others: topCountsOf(&s.Others.Counts), Total: topCountsOf(&s.Total.Counts), Lost: f.lost + f.full, LeftOut: f.leftOut,
	}
	for i := range f.hosts {
		if f.hosts[i].Err == nil {
			d.Hosts = append(d.Hosts, f.hosts[i].Host)
		}
	}
	for _, r := range s.Rows {
		if limit > 0 && len(d.Rows) == limit {
			break
		}
		d.Rows = append(d.Rows, topRowOf(a.group, r))
	}
	return d
}

func topRowOf(g board.Group, r *board.Ranked) topRow {
	row := topRow{Kind: r.Key.Kind.String(), Side: r.Key.Side.String(), topCounts: topCountsOf(&r.Counts)}
	switch g {
	case board.ByDestination:
		row.Destination = &topEnd{r.Key.End.Addr().String(), r.Key.End.Port()}
	case board.ByUnit:
		row.Unit = r.Key.Name
	case board.ByInterface:
		row.Interface = r.Key.Name
	case board.ByHost:
		row.Host = r.Key.Name
	}
	return row
}

func topCountsOf(t *board.Counts) topCounts {
	return topCounts{
		Exchanges: t.Count, Failed: t.Failed(), Timeouts: t.Timeouts(), Results: t.ByResult(),
		Durations: t.Histogram.Distribution(),
	}
}
