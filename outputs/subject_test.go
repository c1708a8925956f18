package outputs

import (
	"strings"
	"testing"

	"github.com/flatd/flatd/flows"
)

func TestSubject(t *testing.T) {
	odd := sample(1)
	odd.Interface.Name = "eth0.7 *>ü"
	nameless := refused(2)
	nameless.Interface.Name = ""
	for _, c := range []struct {
		template string
		event    *flows.Event
		want     string
	}{
		{DefaultSubject, sample(1), "flatd.v1.web1_example_com.tcp.established"},
		{DefaultSubject, summary(), "flatd.v1.web1_example_com.summary.exchanges"},
		{"{side}", summary(), "client"},
		{DefaultSubject, status("x"), "flatd.v1.web1_example_com.status.start"},
		{"net.latency", sample(1), "net.latency"},
		{"a.{interface}", odd, "a.eth0_7_____"},
		{"a.{interface}", nameless, "a.none"},
		{"{side}-{kind}.x{result}y", nameless, "client-tcp.xrefusedy"},
		{"{side}", status("x"), "none"},
	} {
		s, err := ParseSubject(c.template)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := string(s.Append(nil, testHost, c.event)); got != c.want {
			t.Errorf("%s: %s, want %s", c.template, got, c.want)
		}
	}
}

func TestSubjectErrors(t *testing.T) {
	for template, want := range map[string]string{
		"":                       "is empty",
		".":                      "empty token",
		"a..b":                   "empty token",
		"a.b.":                   "empty token",
		"$SYS.x":                 "belong to the server",
		"a.*.b":                  "wildcard",
		"a.>":                    "wildcard",
		"a b":                    "character",
		"a.\n":                   "character",
		"größe":                  "character",
		"a.{kind":                "{ without a }",
		"a.kind}":                "} without a {",
		"a.{source}":             "unknown placeholder {source}",
		"a.{Kind}":               "unknown placeholder",
		strings.Repeat("a", 256): "at most 255",
	} {
		if _, err := ParseSubject(template); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", template, err, want)
		}
	}
}

func FuzzSubjectTokensAreSafe(f *testing.F) {
	f.Add("a.b", "eth0")
	f.Fuzz(func(t *testing.T, host, name string) {
		s, err := ParseSubject("x.{host}.{interface}")
		if err != nil {
			t.Fatal(err)
		}
		e := sample(1)
		e.Interface.Name = name
		tokens := strings.Split(string(s.Append(nil, &flows.Host{Name: host}, e)), ".")
		if len(tokens) != 3 {
			t.Fatalf("%q", tokens)
		}
		for _, token := range tokens {
			if token == "" || strings.IndexFunc(token, func(r rune) bool { return r > 0x7f || !tokenByte(byte(r)) }) >= 0 {
				t.Errorf("unsafe token %q", token)
			}
		}
	})
}
