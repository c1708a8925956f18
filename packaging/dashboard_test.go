package packaging_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// metric is what daemon/control/metrics.go says of one.
var metric = regexp.MustCompile(`prometheus\.NewDesc\(\s*"(\w+)",\s*"[^"]*",\s*(?:nil|\[\]string\{([^}]*)\})`)

// counterName is a counter of bpf/counters.h.
var counterName = regexp.MustCompile(`(?m)^\tCOUNT_(\w+),`)

// TestDashboard: the Grafana dashboard asks for metrics, labels and counters that
// there are, and for each metric.
func TestDashboard(t *testing.T) {
	labels := map[string]bool{"instance": true, "le": true} // Prometheus' own
	unused := make(map[string]bool)
	for _, m := range metric.FindAllStringSubmatch(readFile(t, "../daemon/control/metrics.go"), -1) {
		unused[m[1]] = true
		for _, label := range strings.Split(m[2], ",") {
			labels[strings.Trim(label, ` "`)] = true
		}
	}
	known := make(map[string]bool)
	for name := range unused {
		for _, suffix := range []string{"", "_bucket", "_count", "_sum"} {
			known[name+suffix] = true
		}
	}
	var counters []string
	for _, m := range counterName.FindAllStringSubmatch(readFile(t, "../bpf/counters.h"), -1) {
		counters = append(counters, strings.ToLower(m[1]))
	}

	queries := dashboardQueries(t)
	if len(queries) < 20 || len(unused) < 10 || len(counters) < 20 {
		t.Fatalf("found %d queries, %d metrics, %d counters", len(queries), len(unused), len(counters))
	}
	for _, query := range queries {
		for _, name := range regexp.MustCompile(`\bflatd_\w+`).FindAllString(query, -1) {
			if !known[name] {
				t.Errorf("no metric %s, in %s", name, query)
			}
			delete(unused, regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, ""))
		}
		for _, m := range regexp.MustCompile(`by \(([^)]*)\)|(\w+)=~?"([^"]*)"`).FindAllStringSubmatch(query, -1) {
			for _, label := range strings.Split(m[1]+m[2], ",") {
				if !labels[strings.TrimSpace(label)] {
					t.Errorf("no label %q, in %s", label, query)
				}
			}
			for _, value := range strings.Split(m[3], "|") {
				if m[2] == "counter" && !slices.Contains(counters, value) {
					t.Errorf("no counter %q, in %s", value, query)
				}
			}
		}
	}
	for name := range unused {
		t.Errorf("no panel shows %s", name)
	}
}

// dashboardQueries are those of all panels.
func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, "grafana-dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries = append(queries, target.Expr)
		}
	}
	return queries
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
