package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf"
)

// check looks at what no key shows alone: values that contradict each other.
// It complains of keys that are set, never of a default.
func (r *configReader) check() {
	r.checkPrefixes()
	f, m := &r.config.Filter, &r.config.Measure
	if f.MinDuration >= m.Timeout {
		r.complain("filter.min_duration", "%q is not below measure.timeout, %q: no success would be reported",
			humanDuration(f.MinDuration), humanDuration(m.Timeout))
	}
	r.checkLogin()
}

func (r *configReader) checkPrefixes() {
	f := &r.config.Filter
	r.checkEnd("filter.include", f.Include, "filter.exclude", f.Exclude)
	r.checkEnd("filter.local_include", f.LocalInclude, "filter.local_exclude", f.LocalExclude)
	peers, local := len(f.Include)+len(f.Exclude), len(f.LocalInclude)+len(f.LocalExclude)
	if peers <= bpf.MaxNets && local <= bpf.MaxNets && peers+local > bpf.MaxNets {
		r.complain("filter.local_include", "and filter.local_exclude make %d prefixes together with those of the peers: want at most %d",
			peers+local, bpf.MaxNets)
	}
}

// checkEnd looks at the prefixes for one end of an exchange.
func (r *configReader) checkEnd(includeKey string, include []netip.Prefix, excludeKey string, exclude []netip.Prefix) {
	if n := len(include) + len(exclude); n > bpf.MaxNets {
		r.complain(excludeKey, "makes %d prefixes together with %s: want at most %d", n, includeKey, bpf.MaxNets)
	}
	for _, p := range exclude {
		if slices.Contains(include, p) {
			r.complain(excludeKey, "%q is in %s too: want it in one of them", p, includeKey)
		}
	}
}

// checkLogin sees to it that there is one way to log in, and that it is whole.
func (r *configReader) checkLogin() {
	ways := []string{"credentials", "nkey", "token", "user"}
	ways = slices.DeleteFunc(ways, func(w string) bool { return !r.isSet("outputs.nats." + w) })
	if len(ways) > 1 {
		for _, w := range ways[1:] {
			r.complain("outputs.nats."+w, "%s is set too: want one way to log in; in a drop-in, %[1]s = \"\" unsets it", ways[0])
		}
	}
	r.checkPair("outputs.nats.user", "outputs.nats.password")
	r.checkPair("outputs.nats.tls_cert", "outputs.nats.tls_key")
}

// checkPair sees to it that both keys are set, or neither.
func (r *configReader) checkPair(a, b string) {
	if r.isSet(b) {
		a, b = b, a
	}
	if r.isSet(a) && !r.isSet(b) {
		r.complain(a, "goes together with %s, which is not set", b)
	}
}

// checkSecretFiles opens the files that an output would read.
func (r *configReader) checkSecretFiles() {
	for _, k := range r.keys {
		if k.file == nil || *k.file == "" || !present(*k.file) {
			continue
		}
		if err := readable(*k.file); err != nil {
			r.complain(k.name, "%v", err)
		}
	}
}

// present is false for what systemd provides to units (LoadCredential=, see
// systemd.exec(5)) when flatd does not run as one: it is there only while the
// unit runs, so that a check in a terminal cannot see it.
func present(path string) bool {
	own := os.Getenv("CREDENTIALS_DIRECTORY")
	return !strings.HasPrefix(path, "/run/credentials/") || own != "" && strings.HasPrefix(path, own+"/")
}

// openRegular opens a file. Others than regular ones are refused, since a named pipe would
// hold up the caller, and a device has no end.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return os.Open(path)
}

// readable tries to read from a file.
func readable(path string) error {
	f, err := openRegular(path)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w; try again as root", err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 1))
	if err == io.EOF {
		return fmt.Errorf("%s is empty", path)
	}
	return err
}

// Exposed lists which of the files and directories of a configuration others can write to, with
// the way out: they decide what is measured, and where events go.
func Exposed(path string) (warnings []string) {
	dropIns, _ := dropInsOf(path) // Load reports the error
	for _, p := range append([]string{filepath.Dir(path), path, path + ".d"}, dropIns...) {
		var stat unix.Stat_t
		switch err := unix.Stat(p, &stat); {
		case err != nil, masks(p):
		case stat.Mode&0o022 != 0 && stat.Mode&unix.S_ISVTX == 0:
			warnings = append(warnings, fmt.Sprintf("others can write to %s, mode %#o; `chmod go-w %[1]s`", printable(p), stat.Mode&0o7777))
		case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
			warnings = append(warnings, fmt.Sprintf("%s belongs to uid %d, who can change it; `chown root:root %[1]s`", printable(p), stat.Uid))
		}
	}
	return warnings
}

func (r *configReader) isSet(key string) bool {
	_, ok := r.places[key]
	return ok
}

// complain notes what is wrong with a key where it was set last.
func (r *configReader) complain(key, format string, args ...any) {
	r.problems = append(r.problems, configProblem{r.places[key], key, fmt.Sprintf(format, args...)})
}
