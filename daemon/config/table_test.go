package config

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// What table says is a configuration again, and the same.
func TestTableIsTheFile(t *testing.T) {
	everything, err := os.ReadFile("testdata/everything.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", string(everything)} {
		c := parseConfig(t, text)
		var b strings.Builder
		if err := toml.NewEncoder(&b).Encode(c.Table()); err != nil {
			t.Fatal(err)
		}
		if got := parseConfig(t, b.String()); !reflect.DeepEqual(got, c) {
			t.Errorf("got  %+v\nwant %+v\nfrom\n%s", got, c, b.String())
		}
	}
}

// An empty list is shown as one.
func TestTableAsJSON(t *testing.T) {
	text, err := json.Marshal(Defaults().Table())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"include":[]`, `"kinds":["tcp","dns","udp",`, `"keep_for":"10m"`, `"min_duration":"0s"`, `"dns_ports":[53]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
}
