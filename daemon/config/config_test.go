package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

func parseConfig(t *testing.T, texts ...string) Config {
	t.Helper()
	var files []File
	for _, text := range texts {
		files = append(files, File{"flatd.toml", text})
	}
	c, err := Parse(files...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// configProblems is what is wrong with a text, a line each.
func configProblems(t *testing.T, text string) []string {
	t.Helper()
	c, err := Parse(File{"f", text})
	if err == nil {
		return nil
	}
	if !reflect.DeepEqual(c, Config{}) {
		t.Error("a Config comes with the error")
	}
	return strings.Split(err.Error(), "\n")
}

func TestParseNothing(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "[measure]\n[outputs]\n[outputs.nats]\n", "\ufeff"} {
		if c := parseConfig(t, text); !reflect.DeepEqual(c, Defaults()) {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

// Keys of every sort, none with its default. Those that the file lacks keep theirs.
func TestParseEverything(t *testing.T) {
	text, err := os.ReadFile("testdata/everything.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Interfaces: []string{"eth0", "wg*", "auto"},
		Exclude:    []string{"wg1"},
		Attach:     "clsact",
		PinPath:    "/sys/fs/bpf/other",
		KeepFor:    90 * time.Minute,
		Socket:     "/run/other.sock",
		Measure: Measure{
			Kinds:       []flows.Kind{flows.KindICMP, flows.KindTCP},
			Sides:       []flows.Side{flows.SideServer},
			Timeout:     2500 * time.Millisecond,
			Slow:        250 * time.Microsecond,
			UDPInterval: time.Hour,
			DNSPorts:    []uint16{53, 5353},
			DNSNames:    "hash",
			Match:       "host",
		},
		Filter: Filter{
			Include: []netip.Prefix{
				netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32"),
				netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::7/128"),
			},
			Exclude:     []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("198.51.100.0/24")},
			Ports:       []bpf.PortRange{{First: 443, Last: 443}, {First: 22, Last: 22}, {First: 8000, Last: 8999}},
			MinDuration: time.Millisecond,
			Sample:      1_000_000_000,
		},
		Summary: Summary{Interval: 0, Destinations: 3},
		Outputs: Outputs{
			Journald: Journald{Profile: "notable", SuccessesPerSecond: 1, SuccessesBurst: 2,
				FailuresPerSecond: 3, FailuresBurst: 4, Queue: 256},
			NATS: NATS{URL: "tls://a.example,ws://[2001:db8::1]:8080", Subject: "net.latency", Mode: "jetstream",
				User: "flatd", Password: "/k/password", TLSCA: "/k/ca", TLSCert: "/k/cert", TLSKey: "/k/key", Queue: 1 << 20},
			Stdout: Stdout{Enabled: true, Format: "text", Queue: 1000},
		},
	}
	got, defaults := parseConfig(t, string(text)), Defaults()
	var values map[string]any
	file, err := toml.Decode(string(text), &values)
	if err != nil {
		t.Fatal(err)
	}
	wanted, untouched := keysOf(&want), keysOf(&defaults)
	for i, k := range keysOf(&got) {
		other := untouched[i]
		if file.IsDefined(strings.Split(k.name, ".")...) {
			other = wanted[i]
		}
		if !reflect.DeepEqual(k.get(), other.get()) {
			t.Errorf("%s: got %v, want %v", k.name, k.get(), other.get())
		}
	}
}

func TestLaterFilesOverrideKeyByKey(t *testing.T) {
	c := parseConfig(t,
		"keep_for = \"1h\"\nexclude = [\"a\", \"b\"]\n[measure]\ntimeout = \"1s\"\nslow = \"2s\"",
		"exclude = [\"c\"]\nmeasure.timeout = \"3s\"",
		"measure = {slow = \"4s\"}\noutputs.nats.token = \"\"")
	want := Defaults()
	want.KeepFor, want.Exclude = time.Hour, []string{"c"}
	want.Measure.Timeout, want.Measure.Slow = 3*time.Second, 4*time.Second
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestAcceptedValues(t *testing.T) {
	for _, test := range []struct {
		text string
		got  func(Config) any
		want any
	}{
		{`exclude = []`, func(c Config) any { return c.Exclude }, []string(nil)},
		{`keep_for = "0"`, func(c Config) any { return c.KeepFor }, time.Duration(0)},
		{`keep_for = "0s"`, func(c Config) any { return c.KeepFor }, time.Duration(0)},
		{`keep_for = "10s"`, func(c Config) any { return c.KeepFor }, 10 * time.Second},
		{`measure.timeout = "100ms"`, func(c Config) any { return c.Measure.Timeout }, 100 * time.Millisecond},
		{`measure.timeout = "5m"`, func(c Config) any { return c.Measure.Timeout }, 5 * time.Minute},
		{`filter.ports = ["1-65535"]`, func(c Config) any { return c.Filter.Ports }, []bpf.PortRange{{First: 1, Last: 65535}}},
		{`filter.ports = []`, func(c Config) any { return c.Filter.Ports }, []bpf.PortRange(nil)},
		{`filter.include = ["::ffff:10.0.0.0/104"]`, func(c Config) any { return c.Filter.Include },
			[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		{`filter.include = ["::ffff:10.0.0.1"]`, func(c Config) any { return c.Filter.Include },
			[]netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}},
		{`filter.include = ["0.0.0.0/0", "::/0"]`, func(c Config) any { return c.Filter.Include },
			[]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}},
		{`filter.local_exclude = ["2001:db8::1"]`, func(c Config) any { return c.Filter.LocalExclude },
			[]netip.Prefix{netip.MustParsePrefix("2001:db8::1/128")}},
		{`filter.results = ["timeout", "nxdomain"]`, func(c Config) any { return c.Filter.Results }, []string{"timeout", "nxdomain"}},
		{`interfaces = ["enp0s31f6np0s15"]`, func(c Config) any { return c.Interfaces }, []string{"enp0s31f6np0s15"}},
		{`interfaces = ["eth0.100", "en[po]*"]`, func(c Config) any { return c.Interfaces }, []string{"eth0.100", "en[po]*"}},
	} {
		if got := test.got(parseConfig(t, test.text)); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %#v, want %#v", test.text, got, test.want)
		}
	}
}

// writeConfigs makes files below a new directory and returns it.
func writeConfigs(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoadDropIns(t *testing.T) {
	dir := writeConfigs(t, map[string]string{
		"flatd.toml":                   "keep_for = \"1m\"\nattach = \"tcx\"",
		"flatd.toml.d/20-b.toml":       "keep_for = \"3m\"",
		"flatd.toml.d/10-a.toml":       "keep_for = \"2m\"\nmeasure.slow = \"7s\"",
		"flatd.toml.d/30-c.toml.old":   "no toml",
		"flatd.toml.d/.40-edited.toml": "no toml",
	})
	want := Defaults()
	want.Attach, want.KeepFor, want.Measure.Slow = "tcx", 3*time.Minute, 7*time.Second
	got, err := Load(filepath.Join(dir, "flatd.toml"))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLoadNamesEveryFile(t *testing.T) {
	dir := writeConfigs(t, map[string]string{
		"flatd.toml":          "attach = \"xdp\"",
		"flatd.toml.d/a.toml": "\nattach = \"tcx\"\n= 3",
		"flatd.toml.d/b.toml": "\n\n[measure]\ntimout = \"1s\"",
	})
	_, err := Load(filepath.Join(dir, "flatd.toml"))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"/flatd.toml:1: attach: ", "/flatd.toml.d/a.toml:3: not valid TOML", "/flatd.toml.d/b.toml:4: measure.timout: ",
	} {
		if !strings.Contains(err.Error(), dir+want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
}

func TestLoadMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flatd.toml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error is %v", err)
	}
}

func TestOptionalFileMayBeMissing(t *testing.T) {
	dir := writeConfigs(t, map[string]string{"flatd.toml.d/a.toml": "attach = \"tcx\""})
	files, err := readFiles(filepath.Join(dir, "flatd.toml"), true)
	if err != nil || len(files) != 1 || files[0].Text != "attach = \"tcx\"" {
		t.Errorf("%q, %v", files, err)
	}
	if files, err := readFiles(filepath.Join(dir, "none.toml"), true); err != nil || files != nil {
		t.Errorf("%q, %v", files, err)
	}
}

// What is no file is refused, not read: a FIFO has nothing to say, and a device no end.
func TestLoadOddFiles(t *testing.T) {
	for name, c := range map[string]struct {
		make func(path string) error
		want string // in the error; "": none
	}{
		"a FIFO":           {func(path string) error { return unix.Mkfifo(path, 0o600) }, "not a regular file"},
		"an endless file":  {func(path string) error { return os.Symlink("/dev/zero", path) }, "not a regular file"},
		"a directory":      {func(path string) error { return os.Mkdir(path, 0o700) }, "not a regular file"},
		"a dangling link":  {func(path string) error { return os.Symlink("/nonexistent", path) }, "no such file"},
		"a link to itself": {func(path string) error { return os.Symlink("50.toml", path) }, "too many levels"},
		"a mask":           {func(path string) error { return os.Symlink(os.DevNull, path) }, ""},
	} {
		dir := writeConfigs(t, map[string]string{"flatd.toml": "", "flatd.toml.d/10.toml": ""})
		if err := c.make(filepath.Join(dir, "flatd.toml.d", "50.toml")); err != nil {
			t.Fatal(err)
		}
		_, err := Load(filepath.Join(dir, "flatd.toml"))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "50.toml")) {
			t.Errorf("%s: error is %v, want %q", name, err, c.want)
		}
	}
}

func TestExposed(t *testing.T) {
	for name, c := range map[string]struct {
		path string // below the directory
		mode os.FileMode
		uid  int
		want string
	}{
		"nothing":                         {"", 0o755, 0, ""},
		"a file that all can write to":    {"flatd.toml", 0o666, 0, "chmod go-w"},
		"a file of a group":               {"flatd.toml.d/10.toml", 0o664, 0, "chmod go-w"},
		"a directory":                     {"", 0o777, 0, "chmod go-w"},
		"a directory of drop-ins":         {"flatd.toml.d", 0o775, 0, "chmod go-w"},
		"a directory like /tmp":           {"", 0o777 | os.ModeSticky, 0, ""},
		"a file of somebody":              {"flatd.toml.d/10.toml", 0o644, 12345, "chown root:root"},
		"a file that all can write\x1bto": {"flatd.toml.d/2\x1b.toml", 0o666, 0, `2\x1b.toml`},
	} {
		dir := writeConfigs(t, map[string]string{"flatd.toml": "", "flatd.toml.d/10.toml": "", "flatd.toml.d/2\x1b.toml": ""})
		path := filepath.Join(dir, c.path)
		if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, c.mode), os.Chown(path, c.uid, -1)); err != nil {
			t.Skipf("%v; run as root", err)
		}
		got := Exposed(filepath.Join(dir, "flatd.toml"))
		if c.want == "" && got != nil || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want) || strings.Contains(got[0], "\x1b")) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestLoadTooLarge(t *testing.T) {
	dir := writeConfigs(t, map[string]string{"flatd.toml": strings.Repeat("#\n", fileBytesMax)})
	if _, err := Load(filepath.Join(dir, "flatd.toml")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("error is %v", err)
	}
}

func TestLoadReadsCredentials(t *testing.T) {
	dir := writeConfigs(t, map[string]string{"token": "secret", "empty": ""})
	for _, test := range []struct{ path, want string }{
		{dir + "/token", ""},
		{dir + "/nothing", "no such file"},
		{dir + "/empty", "is empty"},
		{dir, "is not a regular file"},
		{"/run/credentials/flatd.service/token", ""}, // there only while the unit runs
	} {
		file := filepath.Join(t.TempDir(), "flatd.toml")
		text := "\n[outputs.nats]\ntoken = \"" + test.path + "\"\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(file)
		switch {
		case test.want == "" && err != nil:
			t.Error(err)
		case test.want == "":
		case err == nil:
			t.Errorf("%s: no error", test.path)
		case !strings.Contains(err.Error(), file+":3: outputs.nats.token: ") ||
			!strings.Contains(err.Error(), test.path) || !strings.Contains(err.Error(), test.want):
			t.Errorf("%s: error is %v", test.path, err)
		}
	}
}

// No file is forgotten: of every key that a file may stand in, Load says that
// the file is missing.
func TestLoadReadsEveryCredential(t *testing.T) {
	var text, names []string
	for _, k := range newConfigReader().keys {
		if _, key, _ := strings.Cut(k.name, "outputs.nats."); k.set("/no/such/file") == nil && key != "" && key != "user" && key != "subject" {
			names = append(names, k.name)
			text = append(text, k.name+" = \"/no/such/file\"")
		}
	}
	dir := writeConfigs(t, map[string]string{"flatd.toml": strings.Join(text, "\n")})
	_, err := Load(dir + "/flatd.toml")
	if err == nil || len(names) != 7 {
		t.Fatalf("%q: error is %v", names, err)
	}
	for i, name := range names {
		want := fmt.Sprintf("%s/flatd.toml:%d: %s: stat /no/such/file: no such file or directory", dir, i+1, name)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
}

func TestLoadReadsCredentialsOfItsUnit(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/flatd.service")
	dir := writeConfigs(t, map[string]string{
		"flatd.toml": `outputs.nats.token = "/run/credentials/flatd.service/no-such-token"`,
	})
	if _, err := Load(filepath.Join(dir, "flatd.toml")); err == nil || !strings.Contains(err.Error(), "no-such-token") {
		t.Errorf("error is %v", err)
	}
}

func TestCredentialNeedsRight(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read every file")
	}
	dir := writeConfigs(t, map[string]string{"token": "secret"})
	if err := os.Chmod(dir+"/token", 0); err != nil {
		t.Fatal(err)
	}
	if err := readable(dir + "/token"); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("error is %v", err)
	}
}
