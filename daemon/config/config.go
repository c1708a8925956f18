// Package config reads the configuration of flatd: its keys, their ranges and defaults, and
// errors that name file, line and key.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// ErrInvalid marks errors of the configuration.
var ErrInvalid = errors.New("bad configuration")

// DefaultPath is where the configuration is, unless the command line says
// otherwise. A host without this file runs on the defaults.
const DefaultPath = "/etc/flatd/flatd.toml"

// fileBytesMax bounds a configuration file. Filters of the greatest size take
// a tenth of it.
const fileBytesMax = 1 << 20

// Config is a valid configuration. Configs that mean the same are equal by
// reflect.DeepEqual: a list is nil rather than empty.
type Config struct {
	Interfaces []string // names, globs, "auto"
	Exclude    []string // names, globs
	Attach     string   // "auto", "tcx" or "clsact"
	PinPath    string
	KeepFor    time.Duration // 0: for ever
	Socket     string

	Measure Measure
	Filter  Filter
	Summary Summary
	Outputs Outputs
}

// Measure says which exchanges are followed, and how.
type Measure struct {
	Kinds       []flows.Kind
	Sides       []flows.Side
	Timeout     time.Duration // a request unanswered for so long has failed
	Slow        time.Duration // an answer that took at least so long is slow
	UDPInterval time.Duration // a UDP flow quiet for so long is new again
	DNSPorts    []uint16
	DNSNames    string // "on", "off" or "hash"
	Match       string // "interface" or "host"
}

// Filter says which exchanges are reported.
type Filter struct {
	// Include and Exclude are the peers, the others this host's own addresses;
	// the most specific prefix decides. They are masked, and IPv4 is not in its
	// mapped form.
	Include, Exclude           []netip.Prefix
	LocalInclude, LocalExclude []netip.Prefix

	Ports       []bpf.PortRange // of the responder; none: all
	Results     []string        // as flatd.result names them; none: all
	MinDuration time.Duration   // faster successes are not reported
	Sample      uint32          // one success in so many is reported
}

// Summary says how often flatd sums up, and how much of it.
type Summary struct {
	Interval     time.Duration // 0: never
	Destinations int           // at most so many busy ones and so many bad ones
}

// Outputs says where events go.
type Outputs struct {
	Journald Journald
	NATS     NATS
	Stdout   Stdout
}

// Journald sets up the output to the journal.
type Journald struct {
	Enabled bool
	Profile string // "budget", "all" or "notable"
	// ObjectUnit has failures and slow exchanges shown with the unit they are
	// about: journalctl -u nginx.
	ObjectUnit bool
	// The budget of events a second, and how many may come at once.
	SuccessesPerSecond, SuccessesBurst int
	FailuresPerSecond, FailuresBurst   int
	Queue                              int // events
}

// NATS sets up the output to NATS. It is off while URL is empty. Credentials,
// NKey, Token, Password and what begins with TLS are the paths of files; an
// empty path means none.
type NATS struct {
	URL     string // one server, or several with commas between
	Subject string // template
	Mode    string // "auto", "core" or "jetstream"
	Service bool   // answer requests, such as for the status

	Credentials, NKey, Token string
	User, Password           string
	TLSCA, TLSCert, TLSKey   string

	Queue int // events
}

// Stdout sets up the output to standard output.
type Stdout struct {
	Enabled bool
	Format  string // "json" or "text"
	Queue   int    // events
}

// Defaults is the configuration of a host that has no file.
func Defaults() Config {
	return Config{
		Interfaces: []string{"auto"},
		Exclude:    []string{"veth*", "docker*", "br-*"},
		Attach:     "auto",
		PinPath:    "/sys/fs/bpf/flatd",
		KeepFor:    10 * time.Minute,
		Socket:     "/run/flatd/control.sock",
		Measure: Measure{
			Kinds:       flows.ExchangeKinds(),
			Sides:       []flows.Side{flows.SideClient, flows.SideServer},
			Timeout:     10 * time.Second,
			Slow:        time.Second,
			UDPInterval: 30 * time.Second,
			DNSPorts:    []uint16{53},
			DNSNames:    "on",
			Match:       "interface",
		},
		Filter:  Filter{Sample: 1},
		Summary: Summary{Interval: time.Minute, Destinations: 20},
		Outputs: Outputs{
			Journald: Journald{
				Enabled:            true,
				Profile:            "budget",
				ObjectUnit:         true,
				SuccessesPerSecond: outputs.DefaultSuccessRate,
				SuccessesBurst:     outputs.DefaultSuccessBurst,
				FailuresPerSecond:  outputs.DefaultFailureRate,
				FailuresBurst:      outputs.DefaultFailureBurst,
				Queue:              8192,
			},
			NATS:   NATS{Subject: outputs.DefaultSubject, Mode: "auto", Service: true, Queue: 65536},
			Stdout: Stdout{Format: "json", Queue: 8192},
		},
	}
}

// Load reads the configuration at path and then, in lexical order, the files
// <path>.d/*.toml, each of which overrides key by key. Only at DefaultPath may
// the file be missing. The error joins everything that is wrong, each with its
// file, line and key, including files of credentials that cannot be read.
func Load(path string) (Config, error) {
	files, err := readFiles(path, path == DefaultPath)
	if err != nil {
		return Config{}, err
	}
	r := parse(files)
	r.checkSecretFiles()
	return r.result()
}

// readFiles reads the main file, which may be missing if it is optional, and its
// drop-ins.
func readFiles(path string, optional bool) ([]File, error) {
	paths := []string{path}
	if _, err := os.Stat(path); optional && errors.Is(err, fs.ErrNotExist) {
		paths = nil
	}
	dropIns, err := dropInsOf(path)
	if err != nil {
		return nil, err
	}

	var files []File
	var problems []error
	for _, p := range append(paths, dropIns...) {
		text, err := readBounded(p)
		if err != nil {
			problems = append(problems, fmt.Errorf("configuration: %w", err))
			continue
		}
		files = append(files, File{Name: p, Text: text})
	}
	return files, errors.Join(problems...)
}

// dropInsOf lists the drop-ins of path in lexical order. Hidden files are left
// out: editors keep unfinished ones under such names.
func dropInsOf(path string) ([]string, error) {
	entries, err := os.ReadDir(path + ".d")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			paths = append(paths, filepath.Join(path+".d", name))
		}
	}
	return paths, nil
}

// masks reports whether path is a link to /dev/null, which stands for an empty file as in the
// directories of systemd.
func masks(path string) bool {
	to, err := filepath.EvalSymlinks(path)
	return err == nil && to == os.DevNull
}

func readBounded(path string) (string, error) {
	if masks(path) {
		return "", nil
	}
	f, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err == nil && len(text) > fileBytesMax {
		err = fmt.Errorf("%s has more than %d bytes", path, fileBytesMax)
	}
	return string(text), err
}
