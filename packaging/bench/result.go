package main

import (
	"regexp"
	"strconv"
	"strings"
)

// Result is what one benchmark reported.
type Result struct {
	Benchmark string             `json:"benchmark"` // without "Benchmark" and the number of CPUs
	Metrics   map[string]float64 `json:"metrics"`   // by unit, as in "ns-flat"
}

// benchmarkLine is the format of Go's benchmark results: a name, how often it
// ran, then pairs of value and unit.
var benchmarkLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// parse finds the results in what go test says.
func parse(output string) (all []Result) {
	for line := range strings.Lines(output) {
		m := benchmarkLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		r := Result{Benchmark: m[1], Metrics: make(map[string]float64)}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			if value, err := strconv.ParseFloat(fields[i], 64); err == nil {
				r.Metrics[fields[i+1]] = value
			}
		}
		r.perEvent()
		all = append(all, r)
	}
	return all
}

// perEvent says what an event costs, where a benchmark handles many at once.
// Memory is told there alone: what else a benchmark allocates is its own.
func (r *Result) perEvent() {
	_, timed := r.Metrics["ns/op"]
	if events := r.Metrics["events/op"]; events > 0 {
		r.Metrics["allocs/event"] = r.Metrics["allocs/op"] / events
		r.Metrics["ns/event"] = r.Metrics["ns/op"] / events
		delete(r.Metrics, "ns/op")
	} else if timed {
		return
	}
	for _, unit := range []string{"events/op", "allocs/op", "B/op"} {
		delete(r.Metrics, unit)
	}
}
