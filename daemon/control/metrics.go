package control

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

// metricsHandler serves the kernel's counters and histograms and the outputs'
// books to Prometheus. No label comes from the wire: interfaces, kinds, sides
// and results are few.
func (c *Control) metricsHandler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{c}, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

var (
	buildMetric     = prometheus.NewDesc("flatd_build_info", "The version at work, and of Go that built it.", []string{"version", "goversion"}, nil)
	interfaceMetric = prometheus.NewDesc("flatd_interface_up", "1 if the interface is measured, 0 if it should be.", []string{"interface"}, nil)
	counterMetric   = prometheus.NewDesc("flatd_kernel_total", "The kernel's counters by what they count.", []string{"counter"}, nil)
	openMetric      = prometheus.NewDesc("flatd_open_requests", "Requests waiting for their answer.", []string{"side"}, nil)
	ringMetric      = prometheus.NewDesc("flatd_ring_bytes", "The ring of finished exchanges: its size, what is not read yet, and what is read but kept until the outputs have it.", []string{"part"}, nil)
	atRiskMetric    = prometheus.NewDesc("flatd_at_risk_events", "Events that only the outputs' queues hold: a restart or a crash of flatd would lose them.", nil, nil)
	eventMetric     = prometheus.NewDesc("flatd_events_total", "Events of this daemon by origin: records from the ring, timeouts, exchanges of older programs, and events about flatd itself.", []string{"origin"}, nil)
	takeOverMetric  = prometheus.NewDesc("flatd_takeover_total", "Exchanges at a take-over from programs of another layout that are not reported: lost, left out by the settings, or of both layouts, which are reported once.", []string{"fate"}, nil)
	decodeMetric    = prometheus.NewDesc("flatd_decode_errors_total", "Records from the ring that were not understood.", nil, nil)
	outputMetric    = prometheus.NewDesc("flatd_output_events_total", "Events offered to an output, by what became of them.", []string{"output", "fate"}, nil)
	queuedMetric    = prometheus.NewDesc("flatd_output_queued_events", "Events waiting for an output.", []string{"output"}, nil)
	outputUpMetric  = prometheus.NewDesc("flatd_output_up", "1 unless the output's last write failed.", []string{"output"}, nil)
	durationMetric  = prometheus.NewDesc("flatd_exchange_duration_seconds", "First request packet to answer, of every finished exchange.",
		[]string{"interface", "kind", "side", "family", "result"}, nil)
)

// collector asks for everything anew at each scrape.
type collector struct{ *Control }

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range []*prometheus.Desc{buildMetric, interfaceMetric, counterMetric, openMetric, ringMetric, atRiskMetric, eventMetric,
		takeOverMetric, decodeMetric, outputMetric, queuedMetric, outputUpMetric, durationMetric} {
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
	status, err := c.daemon.Status()
	if err != nil {
		to <- prometheus.NewInvalidMetric(counterMetric, err)
		return
	}
	gauge(buildMetric, 1, status.Version, runtime.Version())
	for name, up := range interfacesUp(status.Interfaces) {
		gauge(interfaceMetric, truth(up), name)
	}
	for name, v := range status.Counters {
		count(counterMetric, v, name)
	}
	ours, theirs := c.pipeline.Open()
	gauge(openMetric, float64(ours), "client")
	gauge(openMetric, float64(theirs), "server")
	ring, books := status.Ring, status.Books
	for part, v := range map[string]int{"size": ring.Size, "backlog": ring.Backlog, "outstanding": ring.Outstanding} {
		gauge(ringMetric, float64(v), part)
	}
	gauge(atRiskMetric, float64(ring.AtRisk))
	for origin, v := range map[string]uint64{"ring": books.Read - books.TimeoutsSeen, "timeout": books.TimeoutsSeen, "takeover": books.TakenOver, "own": books.Own} {
		count(eventMetric, v, origin)
	}
	for fate, v := range map[string]uint64{"lost": books.TakenOverLost, "left_out": books.TakenOverOut, "both": books.TakenOverBoth} {
		count(takeOverMetric, v, fate)
	}
	count(decodeMetric, books.DecodeErrors)
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
func interfacesUp(all []api.InterfaceStatus) map[string]bool {
	up := make(map[string]bool, len(all))
	for _, i := range all {
		name := interfaceLabel(i.Name)
		known, ok := up[name]
		up[name] = i.Error == "" && (known || !ok)
	}
	return up
}

// interfaceLabel is a name as Prometheus takes it, and as a terminal may show it. The kernel
// lets interfaces have names of nearly any bytes, labels are UTF-8.
func interfaceLabel(name string) string { return string(flows.AppendPrintable(nil, name)) }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
