package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is all that a run has found.
type Report struct {
	Machine  Machine   `json:"machine"`
	Verdicts []Verdict `json:"verdicts"`
	Results  []Result  `json:"results"`
}

// Machine is where and of what the figures are.
type Machine struct {
	Time   time.Time `json:"time"`
	CPU    string    `json:"cpu"`
	CPUs   int       `json:"cpus"`
	Kernel string    `json:"kernel"`
	Go     string    `json:"go"`
	Commit string    `json:"commit"`
	Load   string    `json:"load"` // averages of 1, 5 and 15 minutes before the run
}

func thisMachine() Machine {
	return Machine{
		Time: time.Now().UTC().Truncate(time.Second), CPU: cpuModel(), CPUs: runtime.NumCPU(),
		Kernel: line("/proc/sys/kernel/osrelease"), Go: runtime.Version(), Commit: commit(),
		Load: strings.Join(firstFields(line("/proc/loadavg"), 3), " "),
	}
}

// line is what a file says, or "unknown".
func line(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

func firstFields(s string, n int) []string {
	fields := strings.Fields(s)
	return fields[:min(n, len(fields))]
}

func cpuModel() string {
	for l := range strings.Lines(line("/proc/cpuinfo")) {
		if key, value, _ := strings.Cut(l, ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// commit is as `git describe` has it, "unknown" outside a checkout.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// print writes the report for people: the figures, and the budgets last.
func (r Report) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "\nflatd %s on %s (%d CPUs), Linux %s, %s, %s\nload before the run: %s\n",
		m.Commit, m.CPU, m.CPUs, m.Kernel, m.Go, m.Time.Format(time.RFC3339), m.Load)
	for _, family := range families(r.Results) {
		if err := printFamily(w, family); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nBudgets\n")
	t := table(w)
	for _, v := range r.Verdicts {
		verdict := "not met"
		value := formatted(v.Value)
		switch {
		case v.Benchmark == "":
			verdict, value = "not measured", "-"
		case v.Met:
			verdict = "met"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t\n", v.Budget, v.Bound, value, verdict, v.Benchmark)
	}
	return t.Flush()
}

// families are the results of each benchmark function, in the order of the run.
func families(results []Result) (all [][]Result) {
	name := func(r Result) string { head, _, _ := strings.Cut(r.Benchmark, "/"); return head }
	for _, r := range results {
		last := len(all) - 1
		if last >= 0 && name(all[last][0]) == name(r) {
			all[last] = append(all[last], r)
			continue
		}
		all = append(all, []Result{r})
	}
	return all
}

// printFamily has a line for each result, or for each figure of the only one.
func printFamily(w io.Writer, family []Result) error {
	head, _, _ := strings.Cut(family[0].Benchmark, "/")
	fmt.Fprintf(w, "\n%s\n", head)
	units := make(map[string]bool)
	for _, r := range family {
		for unit := range r.Metrics {
			units[unit] = true
		}
	}
	columns := slices.Sorted(maps.Keys(units))
	t := table(w)
	if len(family) == 1 {
		for _, unit := range columns {
			fmt.Fprintf(t, "%s\t%s\t\n", unit, formatted(family[0].Metrics[unit]))
		}
		return t.Flush()
	}
	fmt.Fprintf(t, "\t%s\t\n", strings.Join(columns, "\t"))
	for _, r := range family {
		_, part, _ := strings.Cut(r.Benchmark, "/")
		fmt.Fprintf(t, "%s\t", part)
		for _, unit := range columns {
			if value, ok := r.Metrics[unit]; ok {
				fmt.Fprint(t, formatted(value))
			}
			fmt.Fprint(t, "\t")
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// formatted has three digits that mean something, more of large numbers.
func formatted(value float64) string {
	switch {
	case value >= 100 || value == 0 || value <= -100:
		return strconv.FormatFloat(value, 'f', 0, 64)
	default:
		return strconv.FormatFloat(value, 'g', 3, 64)
	}
}
