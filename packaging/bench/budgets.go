package main

import (
	"fmt"
	"regexp"
)

// bound says on which side of its figure a budget is met.
type bound string

const (
	atMost  bound = "at most"
	atLeast bound = "at least"
	under   bound = "under"
)

// budget is what something may cost.
type budget struct {
	name      string
	benchmark string // regular expression; the worst of those that match counts
	metric    string
	bound     bound
	figure    float64
	unit      string
}

// budgets are all there are. "x" is a ratio.
var budgets = []budget{
	{"TCP data packet, against parsing alone", `^Packet/tcp-(data|data-stamped|ack)/`, "x-parse", atMost, 1.25, "x"},
	{"programs per connection, against the least", `^Wire/connections`, "x-minimal", atMost, 1.3, "x"},
	{"programs per UDP exchange, against the least", `^Wire/udp`, "x-minimal", atMost, 1.3, "x"},
	{"connect rate, against nothing", `^Throughput/connections$`, "rate-ratio", atLeast, 0.95, "x"},
	{"median time to connect, against nothing", `^Throughput/connections$`, "connect-ratio", atMost, 1.05, "x"},
	{"bulk throughput, against nothing", `^Throughput/bulk$`, "rate-ratio", atLeast, 0.98, "x"},
	{"small packets, against nothing", `^Throughput/datagrams$`, "rate-ratio", atLeast, 0.95, "x"},
	{"user CPU per 10,000 connections in a storm, NATS", `^Publishing/storm$`, "user-ms/10k", atMost, 30, "ms"},
	{"user CPU per 10,000 connections at 500/s, NATS", `^Publishing/steady$`, "user-ms/10k", atMost, 150, "ms"},
	{"events lost", `^(ConnectionStorm$|Publishing/)`, "events-lost", atMost, 0, ""},
	{"idle CPU", `^Idle$`, "%core", under, 0.1, "% of a core"},
	{"idle resident memory", `^Idle$`, "MiB-resident", atMost, 25, "MiB"},
	{"maps of the kernel's half", `^(Idle$|Publishing/)`, "MiB-maps", atMost, 40, "MiB"},
	{"allocations per event, decode to text", `^HotPath/`, "allocs/op", atMost, 0, ""},
	{"allocations per event, fan-out", `^Publish/`, "allocs/op", atMost, 0, ""},
	{"allocations per event, journald and stdout", `^(Journal$|Stdout/)`, "allocs/event", atMost, 0, ""},
	{"allocations per event, NATS (one is the server's)", `^NATS/core$`, "allocs/event", atMost, 0, ""},
	{"exec to ready, first start", `^Start/interfaces=1$`, "ms-first", atMost, 200, "ms"},
	{"exec to ready, adopting", `^Start/interfaces=1$`, "ms-adopt", atMost, 200, "ms"},
}

// Verdict is whether a budget is met.
type Verdict struct {
	Budget    string  `json:"budget"`
	Bound     string  `json:"bound"`               // in words, with its unit
	Value     float64 `json:"value"`               // the worst
	Benchmark string  `json:"benchmark,omitempty"` // that has it; none if nothing was measured
	Met       bool    `json:"met"`
}

// judge holds the results against the budgets.
func judge(budgets []budget, results []Result) (all []Verdict) {
	for _, b := range budgets {
		all = append(all, b.judge(results))
	}
	return all
}

func (b budget) judge(results []Result) Verdict {
	v := Verdict{Budget: b.name, Bound: fmt.Sprintf("%s %v %s", b.bound, b.figure, b.unit)}
	named := regexp.MustCompile(b.benchmark)
	for _, r := range results {
		value, measured := r.Metrics[b.metric]
		if !measured || !named.MatchString(r.Benchmark) {
			continue
		}
		if v.Benchmark == "" || b.worse(value, v.Value) {
			v.Benchmark, v.Value = r.Benchmark, value
		}
	}
	v.Met = v.Benchmark != "" && b.met(v.Value)
	return v
}

func (b budget) worse(value, than float64) bool {
	if b.bound == atLeast {
		return value < than
	}
	return value > than
}

func (b budget) met(value float64) bool {
	switch b.bound {
	case atLeast:
		return value >= b.figure
	case under:
		return value < b.figure
	default:
		return value <= b.figure
	}
}
