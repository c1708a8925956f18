package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

// The messages are for people: the tests hold them whole.
func TestProblems(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		// Keys that are not there.
		{"[measure]\ntimout = \"1s\"", `f:2: measure.timout: unknown key; did you mean "timeout"?`},
		{"[measure]\nTimeout = \"1s\"", `f:2: measure.Timeout: unknown key; did you mean "timeout"?`},
		{"measure.udp-interval = \"1s\"", `f:1: measure.udp-interval: unknown key; did you mean "udp_interval"?`},
		{"[mesure]\ntimeout = \"1s\"\nslow = \"1s\"", `f:1: mesure: unknown table; did you mean "measure"?`},
		{"timeout = \"1s\"", `f:1: timeout: unknown key; it belongs to [measure]`},
		{"[measure]\ninterfaces = [\"a\"]", `f:2: measure.interfaces: unknown key; it belongs to the top, above the first [table]`},
		{"[journald]\nenabled = true", `f:1: journald: unknown table; it belongs to [outputs]`},
		{"summary.exclude = []", `f:1: summary.exclude: unknown key; it belongs to the top, above the first [table] or [filter]`},
		{"outputs.nats.enabled = true", `f:1: outputs.nats.enabled: unknown key: this output is on when url is set`},
		{"[outputs.stdout]\n\nbanana = 1", `f:3: outputs.stdout.banana: unknown key: [outputs.stdout] has enabled, format, queue`},
		{"banana = 1", `f:1: banana: unknown key: want one of interfaces, exclude, attach, pin_path, keep_for, socket, measure, filter, summary, outputs`},
		{"\n[a.b]\nc = 1", `f:2: a: unknown table: want one of interfaces, exclude, attach, pin_path, keep_for, socket, measure, filter, summary, outputs`},
		{`"measure.timeout" = "1s"`, `f:1: "measure.timeout": unknown key: want one of interfaces, exclude, attach, pin_path, keep_for, socket, measure, filter, summary, outputs`},
		{"\n[[mesure]]", `f:2: mesure: unknown table; did you mean "measure"?`},

		// Values of another type.
		{"\nmeasure.timeout = 10", `f:2: measure.timeout: 10 has no unit: want a string with a unit, such as "10s"`},
		{"measure.timeout = 0.5", `f:1: measure.timeout: 0.5 has no unit: want a string with a unit, such as "0.5s"`},
		{"measure.timeout = true", `f:1: measure.timeout: true is not a duration: want a string with a unit, such as "10s"`},
		{"measure.timeout = 2026-11-22", `f:1: measure.timeout: a date or time is not a duration: want a string with a unit, such as "10s"`},
		{"interfaces = \"eth0\"", `f:1: interfaces: "eth0" is not a list: want values in brackets, such as ["eth0"]`},
		{"[interfaces]", `f:1: interfaces: a table is not a list: want values in brackets, such as ["a", "b"]`},
		{"interfaces = [1]", `f:1: interfaces: 1 is not a string: want the name of an interface, a glob or "auto"`},
		{"attach = true", `f:1: attach: true is not a string: want "auto", "tcx" or "clsact"`},
		{"socket = 1", `f:1: socket: 1 is not a string: want one in quotes`},
		{"outputs.stdout.enabled = \"yes\"", `f:1: outputs.stdout.enabled: "yes" is not a boolean: want true or false, without quotes`},
		{"outputs.stdout.queue = \"512\"", `f:1: outputs.stdout.queue: "512" is not a whole number: want one from 256 to 1048576, without quotes`},
		{"measure.dns_ports = [\"53\"]", `f:1: measure.dns_ports: "53" is not a port: want a number from 1 to 65535, without quotes`},
		{"filter.include = [10]", `f:1: filter.include: 10 is not a string: want address/bits such as 10.0.0.0/8 or 2001:db8::/32, in quotes`},
		{"filter.ports = [true]", `f:1: filter.ports: true is not a port: want a port or a range, such as "443" or "8000-8999"`},
		{"measure = 3", `f:1: measure: 3 is not a table: want [measure], its keys below it`},
		{"[[measure]]\nslow = \"1s\"", `f:1: measure: a list of tables is not a table: want [measure], its keys below it`},

		// Values out of range.
		{"measure.timeout = \"99ms\"", `f:1: measure.timeout: "99ms" is out of range: want 100ms to 5m`},
		{"measure.timeout = \"10m\"", `f:1: measure.timeout: "10m" is out of range: want 100ms to 5m`},
		{"measure.timeout = \"10\"", `f:1: measure.timeout: "10" has no unit: want one of us, ms, s, m and h, such as "10s"`},
		{"measure.timeout = \"ten\"", `f:1: measure.timeout: "ten" is not a duration: want a number with a unit (us, ms, s, m or h), such as "10s"`},
		{"measure.timeout = \"-1s\"", `f:1: measure.timeout: "-1s" is out of range: want 100ms to 5m`},
		{"measure.slow = \"0s\"", `f:1: measure.slow: "0s" is out of range: want 1µs to 5m`},
		{"keep_for = \"5s\"", `f:1: keep_for: "5s" is out of range: want 10s to 720h, or "0s"`},
		{"filter.sample = 0", `f:1: filter.sample: 0 is out of range: want 1 to 1000000000`},
		{"filter.sample = 4294967297", `f:1: filter.sample: 4294967297 is out of range: want 1 to 1000000000`},
		{"summary.interval = \"5s\"", `f:1: summary.interval: "5s" is out of range: want 10s to 1h, or "0s"`},
		{"summary.destinations = 201", `f:1: summary.destinations: 201 is out of range: want 0 to 200`},
		{"outputs.nats.queue = 255", `f:1: outputs.nats.queue: 255 is out of range: want 256 to 1048576`},
		{"outputs.nats.queue = -1", `f:1: outputs.nats.queue: -1 is out of range: want 256 to 1048576`},
		{"measure.dns_ports = [0]", `f:1: measure.dns_ports: 0 is not a port: want 1 to 65535`},
		{"measure.dns_ports = [1,2,3,4,5,6,7,8,9]", `f:1: measure.dns_ports: has 9 values: want at most 8`},
		{"measure.kinds = []", `f:1: measure.kinds: is empty: want at least 1 value`},
		{"interfaces = []", `f:1: interfaces: is empty: want at least 1 value`},

		// Words.
		{"attach = \"tc\"", `f:1: attach: "tc" is not known: want "auto", "tcx" or "clsact"; did you mean "tcx"?`},
		{"attach = \"xdp-generic\"", `f:1: attach: "xdp-generic" is not known: want "auto", "tcx" or "clsact"`},
		{"measure.kinds = [\"tcp\", \"upd\"]", `f:1: measure.kinds: "upd" is not known: want ` + alternatives(flows.ExchangeKindNames()) + `; did you mean "udp"?`},
		{"measure.kinds = [\"tcp\", \"tcp\"]", `f:1: measure.kinds: "tcp" is listed twice`},
		{"measure.sides = [\"Client\"]", `f:1: measure.sides: "Client" is not known: want "client" or "server"; did you mean "client"?`},

		// Interfaces.
		{"interfaces = [\"a" + strings.Repeat("-", 127) + "\"]", `f:1: interfaces: "a` + strings.Repeat("-", 59) + `…" is too long for an interface: want at most 127 characters`},
		{"interfaces = [\"eth[0\"]", `f:1: interfaces: "eth[0" is not a valid glob: want *, ?, [a-z] or [^a-z], such as "eth*"`},
		{"interfaces = [\"eth0 eth1\"]", `f:1: interfaces: "eth0 eth1" is not the name of an interface: these have no '/', ':' or white space`},
		{"interfaces = [\"\"]", `f:1: interfaces: "" is not the name of an interface`},
		{"interfaces = [\"a\\u001bb\"]", `f:1: interfaces: "a\x1bb" is not the name of an interface: these have no '/', ':' or white space`},
		{"exclude = [\"auto\"]", `f:1: exclude: "auto" chooses interfaces: want names or globs of those to leave out`},

		// Addresses and ports.
		{"\n[filter]\n\n# peers\n\n\ninclude = [\"10.0.0.0/33\"]", `f:7: filter.include: "10.0.0.0/33" is not a CIDR prefix: want address/bits such as 10.0.0.0/8 or 2001:db8::/32`},
		{"filter.include = [\"fe80::1%eth0\"]", `f:1: filter.include: "fe80::1%eth0" is not a CIDR prefix: want address/bits such as 10.0.0.0/8 or 2001:db8::/32`},
		{"filter.include = [\"example.com\"]", `f:1: filter.include: "example.com" is not a CIDR prefix: want address/bits such as 10.0.0.0/8 or 2001:db8::/32`},
		{"filter.include = [\"10.1.2.3/8\"]", `f:1: filter.include: "10.1.2.3/8" has bits beyond its first 8: want "10.0.0.0/8" for the network, or "10.1.2.3" for the host`},
		{"filter.include = [\"2001:db8::1/32\"]", `f:1: filter.include: "2001:db8::1/32" has bits beyond its first 32: want "2001:db8::/32" for the network, or "2001:db8::1" for the host`},
		{"filter.include = [\"10.0.0.1\", \"10.0.0.1/32\"]", `f:1: filter.include: "10.0.0.1/32" is listed twice`},
		{"[filter]\ninclude = [\"10.0.0.0/8\"]\nexclude = [\"10.0.0.0/8\"]", `f:3: filter.exclude: "10.0.0.0/8" is in filter.include too: want it in one of them`},
		{"[filter]\nlocal_include = [\"10.0.0.0/8\"]\nlocal_exclude = [\"10.0.0.0/8\"]", `f:3: filter.local_exclude: "10.0.0.0/8" is in filter.local_include too: want it in one of them`},
		{"filter.results = [\"time-out\"]", `f:1: filter.results: "time-out" is not known: want "established", "answered", "refused", "unreachable", "timeout", "noerror", "formerr", "servfail", "nxdomain", "notimp", "yxdomain", "yxrrset", "nxrrset", "notauth", "notzone", "rcode11", "rcode12", "rcode13", "rcode14", "rcode15", "badvers", "badkey", "badtime", "badmode", "badname", "badalg", "badtrunc" or "badcookie"; did you mean "timeout"?`},
		{"filter.ports = [\"99999\"]", `f:1: filter.ports: "99999" is not a port: want 1 to 65535, or a range such as "8000-8999"`},
		{"filter.ports = [\"0-10\"]", `f:1: filter.ports: "0-10" is not a port: want 1 to 65535, or a range such as "8000-8999"`},
		{"filter.ports = [\"https\"]", `f:1: filter.ports: "https" is not a port: want 1 to 65535, or a range such as "8000-8999"`},
		{"filter.ports = [\"9-8\"]", `f:1: filter.ports: "9-8" ends before it begins: want "8-9"`},
		{"filter.ports = [0]", `f:1: filter.ports: 0 is not a port: want 1 to 65535`},
		{"measure.timeout = \"1s\"\nfilter.min_duration = \"1s\"", `f:2: filter.min_duration: "1s" is not below measure.timeout, "1s": no success would be reported`},

		// Paths.
		{"pin_path = \"flatd\"", `f:1: pin_path: "flatd" is not an absolute path: want one that begins with '/'`},
		{"pin_path = \"/sys/fs/bpf/flatd.d\"", `f:1: pin_path: "/sys/fs/bpf/flatd.d" has a dot in it, which bpffs refuses: want a path such as "/sys/fs/bpf/flatd"`},
		{"pin_path = \"/\"", `f:1: pin_path: "/" is not the plain path of a directory: want one such as "/sys/fs/bpf/flatd"`},
		{"pin_path = \"/sys//fs\"", `f:1: pin_path: "/sys//fs" is not the plain path of a directory: want one such as "/sys/fs/bpf/flatd"`},
		{"socket = \"\"", `f:1: socket: "" is not an absolute path: want one that begins with '/'`},
		{"socket = \"/run/flatd/\"", `f:1: socket: "/run/flatd/" is not the plain path of a file: want one such as "/run/flatd/control.sock"`},

		// NATS. A value that may be a secret is not shown.
		{"outputs.nats.url = \"localhost:4222\"", `f:1: outputs.nats.url: "localhost:4222" has no scheme: want nats://, tls://, ws:// or wss://, a host, and a port if it is not the usual one; did you mean "nats://localhost:4222"?`},
		{"outputs.nats.url = \"http://localhost\"", `f:1: outputs.nats.url: "http://localhost" has scheme "http": want nats://, tls://, ws:// or wss://, a host, and a port if it is not the usual one`},
		{"outputs.nats.url = \"nats://:4222\"", `f:1: outputs.nats.url: "nats://:4222" is not a URL: want nats://, tls://, ws:// or wss://, a host, and a port if it is not the usual one`},
		{"outputs.nats.url = \"nats://localhost:42222222\"", `f:1: outputs.nats.url: "nats://localhost:42222222" has port 42222222: want 1 to 65535`},
		{"outputs.nats.url = \"nats://me:secret@localhost\"", `f:1: outputs.nats.url: has a user or password in it: want these in files, named by user and password, or by token`},
		{"outputs.nats.subject = \"a.{port}\"", `f:1: outputs.nats.subject: subject "a.{port}": has an unknown placeholder {port}: there are {host}, {kind}, {result}, {side} and {interface}`},
		{"outputs.nats.token = \"secret\"", `f:1: outputs.nats.token: is not an absolute path in quotes: want that of a file which holds the secret`},
		{"outputs.nats.token = \"${CREDENTIALS_DIRECTORY}/s3cret\"", `f:1: outputs.nats.token: begins with a variable, and none is filled in: what LoadCredential= of the unit provides is in /run/credentials/flatd.service/`},
		{"outputs.nats.token = 1234", `f:1: outputs.nats.token: is not an absolute path in quotes: want that of a file which holds the secret`},
		{"outputs.nats.tls_cert = \"/cert\"", `f:1: outputs.nats.tls_cert: goes together with outputs.nats.tls_key, which is not set`},
		{"outputs.nats.password = \"/p\"\noutputs.nats.user = \"a\\nb\"", `f:2: outputs.nats.user: "a\nb" is not a user: want a name of at most 255 characters`},
		{"outputs.nats.user = \"me\"", `f:1: outputs.nats.user: goes together with outputs.nats.password, which is not set`},
		{"outputs.nats.password = \"/p\"", `f:1: outputs.nats.password: goes together with outputs.nats.user, which is not set`},
		{"[outputs.nats]\nnkey = \"/n\"\ntoken = \"/t\"", `f:3: outputs.nats.token: nkey is set too: want one way to log in; in a drop-in, nkey = "" unsets it`},
	} {
		if got := strings.Join(configProblems(t, test.text), "\n"); got != test.want {
			t.Errorf("%s\ngot  %s\nwant %s", test.text, got, test.want)
		}
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	got := configProblems(t, `
attach = "none"
measure.kinds = [
	"tpc",
	"dns",
	7,
]
measure.timeout = 10
[outputs.stdout]
enabled = 1
fromat = "json"
[outputs.nats]
user = "me"
`)
	want := []string{"f:2: attach: ", "f:3: measure.kinds: ", "f:3: measure.kinds: ", "f:8: measure.timeout: ",
		"f:10: outputs.stdout.enabled: ", "f:11: outputs.stdout.fromat: ", "f:13: outputs.nats.user: "}
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// Lines come from the TOML parser; these are the forms in which it could go wrong.
func TestLines(t *testing.T) {
	for _, test := range []struct {
		text string
		line int
	}{
		{"nope = 1", 1},
		{"\n\nnope = 1", 3},
		{"\r\n\r\nnope = 1\r\n", 3},
		{"# nope = 0\nnope = 1", 2},
		{"socket = \"\"\"/a\nnope = 1\"\"\"\nnope = 1", 3},
		{"socket = '''/a\nnope = 1'''\nnope = 1", 3},
		{"interfaces = [\n\"a\", # nope\n\"nope\",\n]\nnope = [\n1,\n]", 5},
		{"nope = '''\n\n'''", 1},
		{"nope.a.b = 1", 1},
		{"\n[nope]\na = 1", 2},
		{"\n[nope.a]\nb = 1\n[nope.b]\nc = 1", 2},
		{"\n[outputs]\n\nnope.a = 1", 4},
		{"\n[outputs]\n\nnope = { a = 1 }", 4},
		{"outputs = { stdout = { enabled = true, nope = 1 } }", 1},
		{"\n\"nope\" = 1", 2},
		{"\n'no\\pe' = 1", 2},
		{"\n\"\" = 1", 2},
		{"\n[[nope]]\n[[nope]]", 3},
		{"\n[outputs . 'nope']", 2},
	} {
		got := configProblems(t, test.text)
		if len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprintf("f:%d: ", test.line)) {
			t.Errorf("%q: %q, want line %d", test.text, got, test.line)
		}
	}
}

func TestSyntaxErrors(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"\nattach = auto", "f:2: not valid TOML: "},
		{"attach = \"auto\"\n\nattach = \"tcx\"", "f:3: not valid TOML: "},
		{"attach = \"auto", "f:1: not valid TOML: "},
		{"[measure", "f:1: not valid TOML: "},
		{"a\x00b", "f:1: not valid TOML: "},
	} {
		if got := configProblems(t, test.text); len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
			t.Errorf("%q: %q, want %q", test.text, got, test.want)
		}
	}
}

func TestTooManyPrefixes(t *testing.T) {
	prefixes := func(first, n int) string {
		var quoted []string
		for i := range n {
			quoted = append(quoted, fmt.Sprintf("\"10.%d.%d.%d\"", first, i>>8, i&255))
		}
		return "[" + strings.Join(quoted, ",") + "]"
	}
	for _, test := range []struct {
		include, exclude int
		want             string
	}{
		{bpf.MaxNets, 0, ""},
		{bpf.MaxNets - 10, 10, ""},
		{bpf.MaxNets + 1, 0, "f:1: filter.include: has 1025 values: want at most 1024"},
		{bpf.MaxNets - 10, 11, "f:2: filter.exclude: makes 1025 prefixes together with filter.include: want at most 1024"},
	} {
		text := "filter.include = " + prefixes(1, test.include) + "\nfilter.exclude = " + prefixes(2, test.exclude)
		if got := strings.Join(configProblems(t, text), "\n"); got != test.want {
			t.Errorf("%d and %d: %q, want %q", test.include, test.exclude, got, test.want)
		}
	}
}

func TestSocketPathMustFit(t *testing.T) {
	path := "/" + strings.Repeat("s", socketPathMax-1)
	if got := configProblems(t, "socket = \""+path+"\""); got != nil {
		t.Errorf("%d bytes: %q", len(path), got)
	}
	if got := configProblems(t, "socket = \""+path+"s\""); len(got) != 1 || !strings.HasSuffix(got[0], "at most 107") {
		t.Errorf("%d bytes: %q", len(path)+1, got)
	}
}

func TestCredentialIsUnsetByEmptyString(t *testing.T) {
	c := parseConfig(t, "outputs.nats.token = \"/t\"", "outputs.nats.token = \"\"\noutputs.nats.nkey = \"/n\"")
	if c.Outputs.NATS.Token != "" || c.Outputs.NATS.NKey != "/n" {
		t.Errorf("%+v", c.Outputs.NATS)
	}
}

func TestSlips(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "ab", 2}, {"ab", "", 2}, {"tcp", "tcp", 0},
		{"timout", "timeout", 1}, {"timeoutt", "timeout", 1}, {"tineout", "timeout", 1}, {"tmieout", "timeout", 1},
		{"kitten", "sitting", 3}, {"ca", "abc", 3},
	} {
		if got := slips(test.a, test.b); got != test.want {
			t.Errorf("slips(%q, %q) is %d, want %d", test.a, test.b, got, test.want)
		}
		if got := slips(test.b, test.a); got != test.want {
			t.Errorf("slips(%q, %q) is %d, want %d", test.b, test.a, got, test.want)
		}
	}
}
