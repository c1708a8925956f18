package daemon

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/flatd/flatd/bpf"
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
	for name, texts := range values {
		if err := q.Set(name, texts); err != nil {
			return q, parameterError(name, texts, err, HistogramQueryNames())
		}
	}
	return q, nil
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

func (q *HistogramQuery) match(l histogramLabels) bool {
	return among(q.kinds, l.kind) && among(q.sides, l.side) && among(q.interfaces, l.iface) &&
		among(q.families, l.family) && among(q.results, l.result)
}

// Histograms are the kernel's histograms of finished exchanges, those that never
// became events too, since the pins were made, as /v1/histogram tells them.
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

// Histograms reads those of the kernel's histograms that q chooses.
func (d *Daemon) Histograms(q HistogramQuery) (Histograms, error) {
	all, err := d.answered()
	if err != nil {
		return Histograms{}, err
	}
	h := Histograms{Host: d.host.Name, Time: time.Now(), Parts: []HistogramPart{}}
	var total flows.Histogram
	for labels, kernel := range mergeHistograms(all, *d.pipeline.names.Load()) {
		if !q.match(labels) {
			continue
		}
		part := flowsHistogram(kernel)
		total.Merge(&part)
		h.Parts = append(h.Parts, HistogramPart{
			Interface: labels.iface, Kind: labels.kind, Side: labels.side, Family: labels.family, Result: labels.result,
			Distribution: part.Distribution(),
		})
	}
	h.Total = total.Distribution()
	slices.SortFunc(h.Parts, func(a, b HistogramPart) int {
		return cmp.Or(strings.Compare(a.Interface, b.Interface), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Side, b.Side),
			strings.Compare(a.Family, b.Family), strings.Compare(a.Result, b.Result))
	})
	return h, nil
}

// answered are the kernel's histograms of exchanges that had an answer.
func (d *Daemon) answered() ([]bpf.Histogram, error) {
	all, err := d.state.Histograms()
	return slices.DeleteFunc(all, func(h bpf.Histogram) bool { return h.Result == uint8(flows.ResultTimeout) }), err
}

// flowsHistogram takes a histogram as it is: the buckets are the same.
func flowsHistogram(h *bpf.Histogram) flows.Histogram {
	return flows.Histogram{Sum: h.Sum, Buckets: h.Buckets}
}

func (d *Daemon) serveHistogram(w http.ResponseWriter, r *http.Request) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, http.StatusBadRequest, errors.New("the parameters are not of the form name=value&name=value"))
		return
	}
	q, err := ParseHistogramQuery(values)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	histograms, err := d.Histograms(q)
	answer(w, histograms, err)
}
