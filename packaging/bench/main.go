// Command bench runs flatd's benchmarks, prints what they found as a table,
// writes it as JSON, and says which budgets are met. It fails if a benchmark
// does, never for a figure.
//
//	go run ./packaging/bench [-o file] [-only package] [-- flags of go test]
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// suite is the benchmarks of one package.
type suite struct {
	Package string
	Time    string // of each, for go test's -benchtime; 1x: they have rounds of their own
}

// The daemon's come last and are most of the five minutes that all take.
var suites = []suite{
	{"./flows", "100ms"},
	{"./daemon/cgroups", "100ms"},
	{"./outputs", "300ms"},
	{"./bpf", "1x"},
	{"./daemon", "1x"},
}

func main() {
	out := flag.String("o", "bin/bench.json", "write the figures to this `file`")
	only := flag.String("only", "", "run the benchmarks of this `package` alone, such as ./bpf")
	flag.Parse()
	if err := run(*out, *only, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(out, only string, testFlags []string) error {
	report := Report{Machine: thisMachine()}
	var failed []string
	for _, s := range suites {
		if only != "" && only != s.Package {
			continue
		}
		results, err := s.run(testFlags)
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s (%v)", s.Package, err))
		}
		report.Results = append(report.Results, results...)
	}
	report.Verdicts = judge(budgets, report.Results)
	if err := write(out, report); err != nil {
		return err
	}
	if err := report.print(os.Stdout); err != nil {
		return err
	}
	fmt.Printf("\nThe same as JSON: %s\n", out)
	if len(failed) > 0 {
		return fmt.Errorf("these benchmarks failed: %s; what they said is above", strings.Join(failed, ", "))
	}
	return nil
}

// run runs the suite, and shows what go test says while it does.
func (s suite) run(testFlags []string) ([]Result, error) {
	args := []string{"test", "-run", "^$", "-bench", ".", "-benchmem", "-benchtime", s.Time, "-timeout", "20m"}
	args = append(append(args, testFlags...), s.Package)
	test := exec.Command("go", args...)
	var said bytes.Buffer
	test.Stdout = io.MultiWriter(&said, os.Stderr)
	test.Stderr = os.Stderr
	err := test.Run()
	return parse(said.String()), err
}

func write(path string, report Report) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
