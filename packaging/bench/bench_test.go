package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const said = `goos: linux
cpu: some
BenchmarkPacket/tcp-data/ipv4/open=1/egress-2   	       1	        34.26 ns-empty	        42.0 ns-flat	         1.2 x-parse	 512 B/op	 9 allocs/op
BenchmarkPacket/tcp-data/ipv6/open=1/egress-2   	       1	         1.3 x-parse
BenchmarkNATS/core-2      	     100	   256000 ns/op	    256 events/op	    1024 allocs/op
BenchmarkHotPath/Decode   	 1000000	      50 ns/op	       0 B/op	       0 allocs/op
    bench_test.go:1: BenchmarkNothing
--- FAIL: BenchmarkBroken
PASS
`

func TestParse(t *testing.T) {
	results := parse(said)
	if len(results) != 4 {
		t.Fatalf("%d results, want 4: %v", len(results), results)
	}
	packet, nats, decode := results[0], results[2], results[3]
	if packet.Benchmark != "Packet/tcp-data/ipv4/open=1/egress" || packet.Metrics["x-parse"] != 1.2 {
		t.Errorf("%+v", packet)
	}
	if _, told := packet.Metrics["allocs/op"]; told {
		t.Errorf("what the benchmark itself allocates is told: %+v", packet)
	}
	if nats.Metrics["allocs/event"] != 4 || nats.Metrics["ns/event"] != 1000 {
		t.Errorf("%+v", nats)
	}
	if allocs, told := decode.Metrics["allocs/op"]; !told || allocs != 0 {
		t.Errorf("%+v", decode)
	}
}

func TestTheWorstIsJudged(t *testing.T) {
	results := parse(said)
	for _, c := range []struct {
		name string
		budget
		met, measured bool
		value         float64
	}{
		{"too much", budget{benchmark: "^Packet/", metric: "x-parse", bound: atMost, figure: 1.25}, false, true, 1.3},
		{"just so", budget{benchmark: "^Packet/", metric: "x-parse", bound: atMost, figure: 1.3}, true, true, 1.3},
		{"not under", budget{benchmark: "^Packet/", metric: "x-parse", bound: under, figure: 1.3}, false, true, 1.3},
		{"too little", budget{benchmark: "^Packet/", metric: "x-parse", bound: atLeast, figure: 1.25}, false, true, 1.2},
		{"nothing", budget{benchmark: "^HotPath/", metric: "allocs/op", bound: atMost, figure: 0}, true, true, 0},
		{"not measured", budget{benchmark: "^Absent", metric: "x-parse", bound: atMost, figure: 9}, false, false, 0},
	} {
		v := c.budget.judge(results)
		if v.Met != c.met || (v.Benchmark != "") != c.measured || v.Value != c.value {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

func TestReportNamesMachineAndVerdicts(t *testing.T) {
	r := Report{Machine: thisMachine(), Results: parse(said)}
	r.Verdicts = judge(budgets, r.Results)
	var text strings.Builder
	if err := r.print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{r.Machine.Kernel, r.Machine.Commit, "not met", "not measured", "tcp-data/ipv6/open=1/egress"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

// A budget for a benchmark or a figure that nobody makes is never met, and
// nobody would know why.
func TestBudgetsAreOfWhatIsMeasured(t *testing.T) {
	var sources strings.Builder
	for _, s := range suites {
		files, err := filepath.Glob(filepath.Join("../..", s.Package, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	for _, b := range budgets {
		function := regexp.MustCompile(`[A-Z]\w+`).FindString(b.benchmark)
		if !strings.Contains(sources.String(), "func Benchmark"+function+"(") {
			t.Errorf("%s: there is no Benchmark%s", b.name, function)
		}
		ending := b.metric[strings.Index(b.metric, "-")+1:] // the rest may be put together
		if !strings.HasPrefix(b.metric, "allocs/") && !strings.Contains(sources.String(), ending+`"`) {
			t.Errorf("%s: no benchmark reports %s", b.name, b.metric)
		}
	}
}
