package packaging_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/flatd/flatd"

// mayImport has who may import whom, and why. What has no line here imports nothing of
// the project; tests may import what they like.
var mayImport = map[string]map[string]string{
	"outputs": {
		"flows": "an output writes events",
	},
	"daemon/cgroups": {
		"flows": "the owner of a cgroup is a part of an event",
	},
	"daemon/api": {
		"bpf":   "how programs were found and are attached",
		"flows": "which kinds, sides and results there are, and distributions",
	},
	"daemon/config": {
		"bpf":     "limits of the programs' settings",
		"flows":   "which kinds, sides and results there are",
		"outputs": "which subjects are valid",
	},
	"daemon/links": {
		"bpf":           "it attaches the programs",
		"daemon/config": "it says which interfaces",
		"flows":         "what becomes of an interface is an event",
	},
	"daemon/pipeline": {
		"bpf":            "it reads what the programs report, and sets what they measure",
		"daemon/api":     "it gives account",
		"daemon/cgroups": "it names who asked",
		"daemon/config":  "what to measure and to report",
		"flows":          "it makes events of records",
		"outputs":        "it hands events to them",
	},
	"daemon/control": {
		"bpf":             "the kernel's histograms",
		"daemon/api":      "it answers so",
		"daemon/config":   "it shows it",
		"daemon/pipeline": "the events that it remembers",
		"flows":           "it writes events",
	},
	"daemon": {
		"bpf":             "it opens the state in the kernel",
		"daemon/api":      "it says how it is",
		"daemon/cgroups":  "it names who asked",
		"daemon/control":  "it answers",
		"daemon/config":   "it does as it says",
		"daemon/links":    "it has the programs where they belong",
		"daemon/pipeline": "it reads, and hands on",
		"flows":           "what happens to it is an event",
		"outputs":         "it opens them",
	},
	"cmd/flatd": {
		"daemon":        "it is one",
		"daemon/config": "it checks a configuration without running",
	},
	"cmd/flatctl/source": {
		"daemon/api": "what the control socket and the service on NATS answer",
		"flows":      "it reads events",
		"outputs":    "it connects to NATS as flatd does",
	},
	"cmd/flatctl/board": {
		"flows": "it counts events",
	},
	"cmd/flatctl": {
		"bpf":                "detach and the doctor work without a daemon",
		"cmd/flatctl/board":  "what top shows",
		"cmd/flatctl/source": "where commands get their data from",
		"daemon/api":         "what a status says, and which conditions there are",
		"daemon/config":      "it checks and shows it, and finds the socket",
		"flows":              "it prints events",
		"outputs":            "the options of NATS are flags, and it knows a terminal as flatd does",
		"packaging":          "it prints the configuration file that is installed",
	},
	"packaging/testbed/exact": {
		"packaging/testbed": "its load is between hosts of the testbed",
	},
	"packaging/testbed/tshark": {
		"packaging/testbed": "it captures on hosts of the testbed",
	},
	"packaging/testbed/wild": {
		"packaging/testbed": "its captures are replayed on hosts of the testbed",
	},
}

// flows is to be of use to others: beside the standard library it has what asks for the clocks.
var flowsMayImport = []string{"golang.org/x/sys/unix"}

func TestImports(t *testing.T) {
	list := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	used := make(map[[2]string]bool)
	for packages := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := packages.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		room := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, path := range p.Imports {
			other, ours := strings.CutPrefix(path, module+"/")
			switch {
			case ours && mayImport[room][other] == "":
				t.Errorf("%s imports %s, which the table does not allow", room, other)
			case ours:
				used[[2]string{room, other}] = true
			case room == "flows" && strings.Contains(strings.Split(path, "/")[0], ".") && !slices.Contains(flowsMayImport, path):
				t.Errorf("flows imports %s, and is to get by with the standard library", path)
			}
		}
	}
	for room, others := range mayImport {
		for other := range others {
			if !used[[2]string{room, other}] {
				t.Errorf("%s does not import %s: the table is to forget it", room, other)
			}
		}
	}
}
