package control

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

// Histograms reads those of the kernel's histograms that q chooses.
func (c *Control) Histograms(q api.HistogramQuery) (api.Histograms, error) {
	all, err := c.daemon.Finished()
	if err != nil {
		return api.Histograms{}, err
	}
	h := api.Histograms{Host: c.host().Name, Time: time.Now(), Parts: []api.HistogramPart{}}
	var total flows.Histogram
	for labels, kernel := range mergeHistograms(all, c.pipeline.Names()) {
		part := api.HistogramPart{Interface: labels.iface, Kind: labels.kind, Side: labels.side, Family: labels.family, Result: labels.result}
		if !q.Match(&part) {
			continue
		}
		durations := flows.Histogram{Sum: kernel.Sum, Buckets: kernel.Buckets} // the buckets are the same
		total.Merge(&durations)
		part.Distribution = durations.Distribution()
		h.Parts = append(h.Parts, part)
	}
	h.Total = total.Distribution()
	slices.SortFunc(h.Parts, func(a, b api.HistogramPart) int {
		return cmp.Or(strings.Compare(a.Interface, b.Interface), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Side, b.Side),
			strings.Compare(a.Family, b.Family), strings.Compare(a.Result, b.Result))
	})
	return h, nil
}

func (c *Control) serveHistogram(w http.ResponseWriter, r *http.Request) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		refuse(w, http.StatusBadRequest, errors.New("the parameters are not of the form name=value&name=value"))
		return
	}
	q, err := api.ParseHistogramQuery(values)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	histograms, err := c.Histograms(q)
	answer(w, histograms, err)
}
