package api

import (
	"net/url"
	"time"

	"github.com/flatd/flatd/flows"
)

// HistogramQuery chooses among the kernel's histograms. Each condition narrows;
// one that is absent does not, so the zero value takes all.
type HistogramQuery struct {
	kinds, sides, interfaces, families, results []string
}

// HistogramQueryNames are the conditions that Set knows.
func HistogramQueryNames() []string { return []string{"kind", "side", "interface", "family", "result"} }

// Families are the names of the address families.
func Families() []string { return []string{"ipv4", "ipv6"} }

// ParseHistogramQuery reads the parameters that HistogramQueryNames has, each
// repeated or separated by commas. An error says what is allowed.
func ParseHistogramQuery(values url.Values) (HistogramQuery, error) {
	var q HistogramQuery
	err := setAll(q.Set, values, HistogramQueryNames())
	return q, err
}

// Set sets a condition. An error says what is allowed, but not of what.
func (q *HistogramQuery) Set(name string, texts []string) error {
	list, err := words(texts)
	if err != nil {
		return err
	}
	switch name {
	case "kind":
		q.kinds, err = oneOf(list, flows.ExchangeKindNames()...)
	case "side":
		q.sides, err = oneOf(list, Sides()...)
	case "interface":
		q.interfaces = list
	case "family":
		q.families, err = oneOf(list, Families()...)
	case "result":
		q.results, err = oneOf(list, flows.HistogramResults()...)
	default:
		err = errUnknown
	}
	return err
}

// Match reports whether a part meets every condition.
func (q *HistogramQuery) Match(p *HistogramPart) bool {
	return among(q.kinds, p.Kind) && among(q.sides, p.Side) && among(q.interfaces, p.Interface) &&
		among(q.families, p.Family) && among(q.results, p.Result)
}

// Histograms are the kernel's histograms of finished exchanges, those that never
// became events too, since the pins were made, as /v1/histogram has them.
type Histograms struct {
	Host  string             `json:"host"`
	Time  time.Time          `json:"time"` // when they were read
	Total flows.Distribution `json:"total"`
	Parts []HistogramPart    `json:"histograms"` // what the total is the sum of
}

// HistogramPart is the histogram of the exchanges that have all this in common.
type HistogramPart struct {
	Interface string `json:"interface"` // the index of one whose name is not known
	Kind      string `json:"kind"`
	Side      string `json:"side"`
	Family    string `json:"family"`
	Result    string `json:"result"` // by flows.HistogramResult
	flows.Distribution
}
