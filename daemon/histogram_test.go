package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
)

// TestHistogramBuckets: those of events are the kernel's.
func TestHistogramBuckets(t *testing.T) {
	if flows.HistogramBuckets != bpf.HistogramBuckets {
		t.Fatalf("%d buckets, the kernel has %d", flows.HistogramBuckets, bpf.HistogramBuckets)
	}
	for i := range bpf.HistogramBuckets - 1 {
		if _, upper := flows.BucketBounds(i); upper != bpf.BucketBound(i) {
			t.Errorf("bucket %d ends at %d, the kernel's at %d", i, upper, bpf.BucketBound(i))
		}
	}
}

// histogramLabels are those of a histogram.
type histogramLabels struct{ iface, kind, side, family, result string }

// TestHistogram: what /v1/histogram says is, for every label and each
// selection, what the events say, bucket by bucket.
func TestHistogram(t *testing.T) {
	client, server := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), fmt.Sprintf("measure.dns_ports = [%d, %d]\n", dnsPort, closedPort)).start(t)
	tr := newTraffic(t, client, server)
	for range 3 {
		tr.everything()
	}
	tr.askNobody(server.V4)
	p.wait("the ICMP error", func(e event) bool { return e.Event.Dataset == "flatd.dns" && e.Flatd.Result == "unreachable" })
	p.waitN("the answers", 3*answeredOfEverything+1, func(e event) bool { return e.Event.Duration > 0 })
	var got api.Histograms
	p.ask("/v1/histogram", &got)
	want := p.histograms()
	if len(got.Parts) != len(want) || len(want) < 2*(2+1+1+1) {
		t.Errorf("%d histograms, want %d: %+v", len(got.Parts), len(want), got.Parts)
	}
	var total flows.Histogram
	for _, part := range got.Parts {
		labels := histogramLabels{part.Interface, part.Kind, part.Side, part.Family, part.Result}
		sameDistribution(t, strings.Join([]string{part.Kind, part.Side, part.Family, part.Result}, " "), part.Distribution, want[labels])
		total.Merge(want[labels])
	}
	sameDistribution(t, "the total", got.Total, &total)

	for query, chosen := range map[string]func(histogramLabels) bool{
		"kind=dns":                           func(l histogramLabels) bool { return l.kind == "dns" },
		"kind=tcp,udp&family=ipv6":           func(l histogramLabels) bool { return (l.kind == "tcp" || l.kind == "udp") && l.family == "ipv6" },
		"result=refused&side=client":         func(l histogramLabels) bool { return l.result == "refused" },
		"interface=eth0&kind=icmp":           func(l histogramLabels) bool { return l.kind == "icmp" },
		"kind=dns&result=unreachable":        func(l histogramLabels) bool { return l.kind == "dns" && l.result == "unreachable" },
		"interface=eth1":                     func(histogramLabels) bool { return false },
		"side=server":                        func(histogramLabels) bool { return false },
		"result=answered&result=established": func(l histogramLabels) bool { return l.result == "answered" || l.result == "established" },
	} {
		var total flows.Histogram
		parts := 0
		for labels, h := range want {
			if chosen(labels) {
				total.Merge(h)
				parts++
			}
		}
		var got api.Histograms
		p.ask("/v1/histogram?"+query, &got)
		sameDistribution(t, query, got.Total, &total)
		if len(got.Parts) != parts {
			t.Errorf("%s: %d histograms, want %d", query, len(got.Parts), parts)
		}
	}
	p.end(syscall.SIGTERM)
}

// askNobody sends a DNS query to a port that an ICMP error answers for.
func (tr *traffic) askNobody(address string) {
	tr.t.Helper()
	conn, err := dial(tr.client, "udp", join(address, closedPort))
	if err != nil {
		tr.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01")); err != nil {
		tr.t.Fatal(err)
	}
}

// histograms are those that the events make.
func (p *process) histograms() map[histogramLabels]*flows.Histogram {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[histogramLabels]*flows.Histogram)
	for _, e := range p.events {
		if e.Event.Duration == 0 {
			continue
		}
		labels := histogramLabels{
			iface: e.Observer.Interface.Name, kind: strings.TrimPrefix(e.Event.Dataset, "flatd."), side: e.Flatd.Side,
			family: "ipv4", result: e.Flatd.Result,
		}
		if strings.Contains(e.Source.IP, ":") {
			labels.family = "ipv6"
		}
		if e.DNS.Code != "" {
			labels.result = "answered"
		}
		if all[labels] == nil {
			all[labels] = new(flows.Histogram)
		}
		all[labels].Add(time.Duration(e.Event.Duration))
	}
	return all
}

func sameDistribution(t *testing.T, what string, got flows.Distribution, want *flows.Histogram) {
	t.Helper()
	if want == nil {
		want = new(flows.Histogram)
	}
	w := want.Distribution()
	if got.Count != w.Count || got.Sum != w.Sum || got.P50 != w.P50 || got.P90 != w.P90 || got.P99 != w.P99 ||
		got.MaxBound != w.MaxBound || !slices.Equal(got.Buckets, w.Buckets) {
		t.Errorf("%s:\nis   %+v\nwant %+v", what, got, w)
	}
}

// A bad parameter is refused with what there is to choose from.
func TestHistogramRefuses(t *testing.T) {
	client, _ := testbed.Pair(t)
	p := newSetup(t, client, testbed.Build(t, "flatd", ""), "").start(t)
	for query, want := range map[string]string{
		"kind=sctp":   "must be one of tcp, dns, udp, icmp",
		"colour=blue": `unknown parameter "colour": known are kind, side, interface, family, result`,
		"kind=%zz":    "not of the form name=value",
	} {
		response, err := p.get(http.MethodGet, "/v1/histogram?"+query)
		if err != nil {
			t.Fatal(err)
		}
		var refusal struct{ Error string }
		err = json.NewDecoder(response.Body).Decode(&refusal)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusBadRequest || !strings.Contains(refusal.Error, want) {
			t.Errorf("%s: %s, %v, %q; want %q", query, response.Status, err, refusal.Error, want)
		}
	}
	var empty api.Histograms
	p.ask("/v1/histogram?kind=icmp", &empty)
	if empty.Total.Count != 0 || empty.Total.Buckets == nil || empty.Parts == nil || empty.Host == "" || empty.Time.IsZero() {
		t.Errorf("of nothing: %+v", empty)
	}
}
