package daemon

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

// metricsHandler serves the kernel's counters and histograms and the outputs'
// books to Prometheus. No label comes from the wire: interfaces, kinds, sides
// and results are few.
func (d *Daemon) metricsHandler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{d})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

var (
	buildMetric     = prometheus.NewDesc("flatd_build_info", "The version at work.", []string{"version"}, nil)
	interfaceMetric = prometheus.NewDesc("flatd_interface_up", "1 if the interface is measured, 0 if it should be.", []string{"interface"}, nil)
	counterMetric   = prometheus.NewDesc("flatd_kernel_total", "The kernel's counters by what they count.", []string{"counter"}, nil)
	openMetric      = prometheus.NewDesc("flatd_open_requests", "Requests waiting for their answer.", []string{"side"}, nil)
	readMetric      = prometheus.NewDesc("flatd_records_read_total", "Records read from the ring.", nil, nil)
	decodeMetric    = prometheus.NewDesc("flatd_decode_errors_total", "Records that were not understood.", nil, nil)
	outputMetric    = prometheus.NewDesc("flatd_output_events_total", "Events offered to an output, by what became of them.", []string{"output", "fate"}, nil)
	queuedMetric    = prometheus.NewDesc("flatd_output_queued_events", "Events waiting for an output.", []string{"output"}, nil)
	outputUpMetric  = prometheus.NewDesc("flatd_output_up", "1 unless the output's last write failed.", []string{"output"}, nil)
	durationMetric  = prometheus.NewDesc("flatd_exchange_duration_seconds", "First request packet to answer, of every finished exchange.",
		[]string{"interface", "kind", "side", "family", "result"}, nil)
)

// collector asks for everything anew at each scrape.
type collector struct{ d *Daemon }

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range []*prometheus.Desc{buildMetric, interfaceMetric, counterMetric, openMetric, readMetric,
		decodeMetric, outputMetric, queuedMetric, outputUpMetric, durationMetric} {
		to <- m
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	status, err := c.d.Status()
	if err != nil {
		to <- prometheus.NewInvalidMetric(counterMetric, err)
		return
	}
	gauge(buildMetric, 1, status.Version)
	for name, up := range interfacesUp(status.Interfaces) {
		gauge(interfaceMetric, truth(up), name)
	}
	for name, v := range status.Counters {
		count(counterMetric, v, name)
	}
	gauge(openMetric, float64(c.d.pipeline.open[0].Load()), "client")
	gauge(openMetric, float64(c.d.pipeline.open[1].Load()), "server")
	count(readMetric, status.Books.Read)
	count(decodeMetric, status.Books.DecodeErrors)
	for _, o := range status.Outputs {
		for fate, v := range map[string]uint64{"delivered": o.Delivered, "withheld": o.Withheld, "failed": o.Failed, "dropped": o.Dropped} {
			count(outputMetric, v, o.Name, fate)
		}
		gauge(queuedMetric, float64(o.Queued), o.Name)
		gauge(outputUpMetric, truth(!o.Down), o.Name)
	}
	c.collectHistograms(to)
}

// interfacesUp says of each name whether it is measured as it should be. One
// that is measured in an older way, because the wanted one fails, is there twice.
func interfacesUp(all []InterfaceStatus) map[string]bool {
	up := make(map[string]bool, len(all))
	for _, i := range all {
		name := interfaceLabel(i.Name)
		known, ok := up[name]
		up[name] = i.Error == "" && (known || !ok)
	}
	return up
}

// interfaceLabel is a name as Prometheus takes it. The kernel lets interfaces
// have names of nearly any bytes, labels are UTF-8.
func interfaceLabel(name string) string { return strings.ToValidUTF8(name, "\uFFFD") }

func (c *collector) collectHistograms(to chan<- prometheus.Metric) {
	histograms, err := c.d.state.Histograms()
	if err != nil {
		to <- prometheus.NewInvalidMetric(durationMetric, err)
		return
	}
	// An interface that was made anew has another index and the same name.
	merged := make(map[histogramLabels]*bpf.Histogram)
	names := *c.d.pipeline.names.Load()
	for i := range histograms {
		h := &histograms[i]
		labels := labelsOf(h, names)
		sum, ok := merged[labels]
		if !ok {
			merged[labels] = h
			continue
		}
		sum.Sum += h.Sum
		for b, n := range h.Buckets {
			sum.Buckets[b] += n
		}
	}
	for l, h := range merged {
		to <- prometheus.MustNewConstHistogram(durationMetric, h.Count(), h.Sum.Seconds(), classicBuckets(h),
			l.iface, l.kind, l.side, l.family, l.result)
	}
}

type histogramLabels struct{ iface, kind, side, family, result string }

func labelsOf(h *bpf.Histogram, names map[int]string) histogramLabels {
	l := histogramLabels{
		iface: strconv.Itoa(h.Ifindex), kind: flows.Kind(h.Kind).String(), side: flows.Side(h.Side).String(),
		family: "ipv4", result: "answered", // a DNS answer, whatever its response code
	}
	if name, ok := names[h.Ifindex]; ok {
		l.iface = interfaceLabel(name)
	}
	if h.IPv6 {
		l.family = "ipv6"
	}
	if e := (flows.Event{Kind: flows.Kind(h.Kind), Result: flows.Result(h.Result)}); e.Kind != flows.KindDNS {
		l.result = e.ResultName()
	}
	return l
}

// classicBuckets are cumulative counts by upper bound in seconds, one bucket
// for each power of two.
func classicBuckets(h *bpf.Histogram) map[float64]uint64 {
	buckets := make(map[float64]uint64)
	var sum uint64
	for i, n := range h.Buckets {
		sum += n
		if i%4 == 0 && i < len(h.Buckets)-1 {
			buckets[bpf.BucketBound(i).Seconds()] = sum
		}
	}
	return buckets
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
