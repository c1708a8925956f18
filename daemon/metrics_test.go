package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/bits"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/control"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
)

// What Prometheus asks for: with native histograms, and without.
const (
	acceptProtobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6," +
		"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3"
	acceptText = "text/plain;version=0.0.4;q=0.6,*/*;q=0.5"
)

// TestMetrics scrapes both formats of a flatd that has seen every kind of
// exchange, and compares them with the kernel's own tables.
func TestMetrics(t *testing.T) {
	client, server := testbed.Pair(t)
	s := newSetup(t, client, testbed.Build(t, "flatd", ""), "measure.timeout = \"1s\"\n")
	p := s.start(t)
	tr := newTraffic(t, client, server)
	for range 3 {
		tr.everything()
	}
	p.waitN("every answer", 3*answeredOfEverything, func(e event) bool { return e.Event.Duration > 0 })
	p.waitN("every timeout", 3*silentOnClient, func(e event) bool { return e.Flatd.Result == "timeout" })
	status := booksBalance(t, p)

	native, classic := p.scrape(acceptProtobuf), p.scrape(acceptText)
	if native.format != expfmt.TypeProtoDelim || classic.format != expfmt.TypeTextPlain {
		t.Fatalf("the formats are %v and %v", native.format, classic.format)
	}
	kernel := kernelHistograms(t, s.pinned("flat_histograms"))
	t.Run("native histograms", func(t *testing.T) { sameHistograms(t, native.histograms(t, nativeCounts), kernel, nativeOfKernel) })
	t.Run("classic histograms beside them", func(t *testing.T) {
		sameHistograms(t, native.histograms(t, classicCounts), kernel, classicOfKernel)
	})
	t.Run("classic histograms", func(t *testing.T) { sameHistograms(t, classic.histograms(t, classicCounts), kernel, classicOfKernel) })
	t.Run("books", func(t *testing.T) { native.checkBooks(t, status) })
	t.Run("lint", func(t *testing.T) { native.lint(t) })
	t.Run("labels", func(t *testing.T) { native.checkLabels(t, p) })
	for _, name := range []string{"flatd_build_info", "flatd_interface_up", "flatd_open_requests", "flatd_ring_bytes", "process_resident_memory_bytes"} {
		if native.families[name] == nil || classic.families[name] == nil {
			t.Errorf("no metric %s", name)
		}
	}
}

// scraped is what a scraper is answered.
type scraped struct {
	format   expfmt.FormatType
	families map[string]*dto.MetricFamily
}

func (p *process) scrape(accept string) scraped {
	p.t.Helper()
	request, err := http.NewRequest(http.MethodGet, "http://flatd/metrics", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	request.Header.Set("Accept", accept)
	client := http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
	}}
	response, err := client.RoundTrip(request)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		p.t.Fatalf("scrape: %s", response.Status)
	}
	format := expfmt.ResponseFormat(response.Header)
	s := scraped{format.FormatType(), make(map[string]*dto.MetricFamily)}
	for decoder := expfmt.NewDecoder(response.Body, format); ; {
		family := new(dto.MetricFamily)
		switch err := decoder.Decode(family); {
		case errors.Is(err, io.EOF):
			return s
		case err != nil:
			p.t.Fatalf("decode the metrics: %v", err)
		}
		s.families[family.GetName()] = family
	}
}

func labelsText(m *dto.Metric) string {
	var text string
	for _, l := range m.Label {
		text += fmt.Sprintf("%s=%s ", l.GetName(), l.GetValue())
	}
	return text
}

// values are the samples of a counter or gauge by labels.
func (s scraped) values(name string) map[string]float64 {
	values := make(map[string]float64)
	for _, m := range s.families[name].GetMetric() {
		values[labelsText(m)] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return values
}

// counted is a histogram as numbers: those of a bucket by an index of its own.
type counted struct {
	count   uint64
	sum     float64
	buckets map[int]uint64
}

func (s scraped) histograms(t *testing.T, counts func(*testing.T, *dto.Histogram) map[int]uint64) map[string]counted {
	t.Helper()
	all := make(map[string]counted)
	for _, m := range s.families["flatd_exchange_duration_seconds"].GetMetric() {
		h := m.GetHistogram()
		all[labelsText(m)] = counted{h.GetSampleCount(), h.GetSampleSum(), counts(t, h)}
	}
	return all
}

const zeroBucket = math.MinInt

// nativeCounts are those of the native buckets by index, as the format has them.
func nativeCounts(t *testing.T, h *dto.Histogram) map[int]uint64 {
	t.Helper()
	if h.GetSchema() != 2 || h.GetZeroThreshold() != 1024e-9 || len(h.NegativeSpan) != 0 {
		t.Errorf("schema %d, zero below %g", h.GetSchema(), h.GetZeroThreshold())
	}
	counts := map[int]uint64{zeroBucket: h.GetZeroCount()}
	index, delta, n := 0, 0, int64(0)
	for _, span := range h.PositiveSpan {
		index += int(span.GetOffset())
		for range span.GetLength() {
			n += h.PositiveDelta[delta]
			counts[index] = uint64(n)
			index, delta = index+1, delta+1
		}
	}
	if delta != len(h.PositiveDelta) {
		t.Errorf("spans for %d buckets, counts for %d", delta, len(h.PositiveDelta))
	}
	return counts
}

// classicCounts are those of the classic buckets by the power of two nanoseconds
// below which they end.
func classicCounts(t *testing.T, h *dto.Histogram) map[int]uint64 {
	t.Helper()
	counts := make(map[int]uint64)
	var before uint64
	for _, b := range h.Bucket {
		if math.IsInf(b.GetUpperBound(), 1) {
			continue // in the text only, and the total
		}
		bound := uint64(math.Round(b.GetUpperBound() * 1e9))
		if bits.OnesCount64(bound) != 1 {
			t.Errorf("a bucket ends at %g s", b.GetUpperBound())
		}
		counts[bits.TrailingZeros64(bound)] = b.GetCumulativeCount() - before
		before = b.GetCumulativeCount()
	}
	return counts
}

// nativeOfKernel is the native bucket that the kernel's bucket i belongs into, by
// the definition: a bucket ends at 2^(index/4) seconds.
func nativeOfKernel(i int) int {
	switch i {
	case 0:
		return zeroBucket
	case bpf.HistogramBuckets - 1:
		return nativeOfKernel(i-1) + 1
	}
	index := -200
	for math.Pow(2, float64(index)/4) < bpf.BucketBound(i).Seconds() {
		index++
	}
	return index
}

func classicOfKernel(i int) int { return 10 + (i+3)/4 }

// kernelHistograms reads the kernel's own table, and sums it up by labels.
func kernelHistograms(t *testing.T, pin string) map[string]bpf.Histogram {
	t.Helper()
	table, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	var key struct {
		Ifindex                  uint32
		Kind, Side, Result, IPv6 uint8
		RCode                    uint16
		_                        [3]uint16
	}
	var perCPU []struct {
		Sum     uint64
		Buckets [bpf.HistogramBuckets]uint64
	}
	all := make(map[string]bpf.Histogram)
	entries := table.Iterate()
	for entries.Next(&key, &perCPU) {
		if key.Result == uint8(flows.ResultTimeout) {
			continue
		}
		labels := fmt.Sprintf("family=%s interface=eth0 kind=%s result=%s side=%s ", [...]string{"ipv4", "ipv6"}[key.IPv6],
			flows.Kind(key.Kind), kernelResult(key.Kind, key.Result), [...]string{1: "client", "server"}[key.Side])
		h := all[labels]
		for _, cpu := range perCPU {
			h.Sum += time.Duration(cpu.Sum)
			for i, n := range cpu.Buckets {
				h.Buckets[i] += n
			}
		}
		all[labels] = h
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// kernelResult names the numbers of bpf/record.h.
func kernelResult(kind, result uint8) string {
	const dns = 2
	if kind == dns {
		return "answered"
	}
	return [...]string{1: "established", "answered", "refused", "unreachable"}[result]
}

// sameHistograms wants the scraped histograms to have the kernel's counts, each in
// the bucket that bucketOf says.
func sameHistograms(t *testing.T, got map[string]counted, kernel map[string]bpf.Histogram, bucketOf func(int) int) {
	t.Helper()
	if len(kernel) < 8 {
		t.Errorf("only %d histograms in the kernel", len(kernel))
	}
	for labels, h := range kernel {
		want := make(map[int]uint64)
		for i, n := range h.Buckets[:len(h.Buckets)-1] {
			want[bucketOf(i)] += n
		}
		g := got[labels]
		noZeros := func(counts map[int]uint64) {
			maps.DeleteFunc(counts, func(_ int, n uint64) bool { return n == 0 })
		}
		noZeros(want)
		noZeros(g.buckets)
		if g.count != h.Count() || g.sum != h.Sum.Seconds() || !maps.Equal(g.buckets, want) {
			t.Errorf("%s: %+v, want %d in %s: %v", labels, g, h.Count(), h.Sum, want)
		}
		delete(got, labels)
	}
	for labels := range got {
		t.Errorf("no histogram of the kernel has %s", labels)
	}
}

// checkBooks wants what README says of the metrics to hold.
func (s scraped) checkBooks(t *testing.T, status state) {
	t.Helper()
	var offered float64
	for _, n := range s.values("flatd_events_total") {
		offered += n
	}
	offered -= s.values("flatd_decode_errors_total")[""] + s.values("flatd_takeover_total")["fate=both "]
	var fates float64
	for _, n := range s.values("flatd_output_events_total") {
		fates += n
	}
	queued := s.values("flatd_output_queued_events")["output=stdout "]
	if offered == 0 || offered != fates+queued {
		t.Errorf("%g events offered, and %g disposed of + %g queued", offered, fates, queued)
	}
	kernel := s.values("flatd_kernel_total")
	if got := kernel["counter=requests "]; got == 0 || got != float64(status.Books.Requests) {
		t.Errorf("%g requests, status says %d", got, status.Books.Requests)
	}
}

// lint is what `promtool check metrics` finds.
func (s scraped) lint(t *testing.T) {
	t.Helper()
	problems, err := promlint.NewWithMetricFamilies(slices.Collect(maps.Values(s.families))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// checkLabels wants no label to have a value that packets could bring.
func (s scraped) checkLabels(t *testing.T, p *process) {
	t.Helper()
	var status struct{ Counters map[string]uint64 }
	p.ask("/v1/status", &status)
	allowed := map[string][]string{
		"interface": {"eth0"}, "kind": flows.ExchangeKindNames(), "side": {"client", "server"}, "family": {"ipv4", "ipv6"},
		"result": {"established", "answered", "refused", "unreachable"}, "output": {"stdout"},
		"fate": {"delivered", "withheld", "failed", "dropped", "lost", "left_out", "both"}, "part": {"size", "backlog", "outstanding"},
		"origin":  {"ring", "timeout", "takeover", "own"},
		"counter": slices.Collect(maps.Keys(status.Counters)),
	}
	for name, family := range s.families {
		if name == "flatd_build_info" {
			continue
		}
		for _, m := range family.Metric {
			for _, l := range m.Label {
				if !slices.Contains(allowed[l.GetName()], l.GetValue()) {
					t.Errorf("%s has %s=%q", name, l.GetName(), l.GetValue())
				}
			}
		}
	}
}

// TestNativeHistogramSaysNothingFaster: the native form has a bucket for each of
// the kernel's, side by side, and never counts a duration below what it was.
func TestNativeHistogramSaysNothingFaster(t *testing.T) {
	var h bpf.Histogram
	for i := range h.Buckets {
		h.Buckets[i] = uint64(1 + i*i) // no two alike
	}
	h.Sum = time.Hour
	var m dto.Metric
	if err := control.NewDurations(&h, "eth0", "tcp", "client", "ipv4", "established").Write(&m); err != nil {
		t.Fatal(err)
	}
	counts := nativeCounts(t, m.Histogram)
	if len(counts) != bpf.HistogramBuckets || len(m.Histogram.PositiveSpan) != 1 {
		t.Errorf("%d buckets in %d spans, want %d in one", len(counts), len(m.Histogram.PositiveSpan), bpf.HistogramBuckets)
	}
	for i, n := range h.Buckets {
		index := nativeOfKernel(i)
		if counts[index] != n {
			t.Errorf("bucket %d has %d, and the native %d has %d", i, n, index, counts[index])
		}
		if last := bpf.HistogramBuckets - 1; i == 0 || i == last {
			continue
		}
		moved := math.Pow(2, float64(index)/4) / bpf.BucketBound(i).Seconds()
		if moved < 1.04 || moved > 1.11 {
			t.Errorf("the bound of bucket %d is moved to %.3f of it", i, moved)
		}
	}
}

// A histogram with gaps has a span for each stretch, and an empty one is native
// all the same.
func TestNativeHistogramSpans(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	gaps := new(bpf.Histogram)
	for _, i := range []int{0, 3, 4, 9, 60, 61, 109} {
		gaps.Buckets[i] = uint64(1000 - 7*i)
	}
	registry.MustRegister(constant{control.NewDurations(gaps, "eth0", "tcp", "client", "ipv4", "established"),
		control.NewDurations(new(bpf.Histogram), "eth0", "udp", "client", "ipv4", "answered")})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	s := scraped{families: map[string]*dto.MetricFamily{families[0].GetName(): families[0]}}
	got := s.histograms(t, nativeCounts)
	want := make(map[int]uint64)
	for i, n := range gaps.Buckets {
		if n > 0 {
			want[nativeOfKernel(i)] = n
		}
	}
	if g := got["family=ipv4 interface=eth0 kind=tcp result=established side=client "]; !maps.Equal(g.buckets, want) || g.count != gaps.Count() {
		t.Errorf("%+v, want %v", g, want)
	}
	if g := got["family=ipv4 interface=eth0 kind=udp result=answered side=client "]; g.count != 0 || len(g.buckets) != 1 {
		t.Errorf("of nothing: %+v", g)
	}
}

// constant collects metrics that do not change.
type constant []prometheus.Metric

func (c constant) Describe(to chan<- *prometheus.Desc) { to <- c[0].Desc() }

func (c constant) Collect(to chan<- prometheus.Metric) {
	for _, m := range c {
		to <- m
	}
}
