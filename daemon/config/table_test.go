package config

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
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

func TestTableHasEveryKey(t *testing.T) {
	var got, want []string
	var walk func(prefix string, table map[string]any)
	walk = func(prefix string, table map[string]any) {
		for name, value := range table {
			if below, ok := value.(map[string]any); ok {
				walk(prefix+name+".", below)
				continue
			}
			got = append(got, prefix+name)
		}
	}
	walk("", Defaults().Table())
	for _, k := range newConfigReader().keys {
		want = append(want, k.name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// An empty list is shown as one.
func TestTableAsJSON(t *testing.T) {
	text, err := json.Marshal(Defaults().Table())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"include":[]`, `"kinds":["tcp","dns","udp","icmp"]`, `"keep_for":"10m"`, `"min_duration":"0s"`, `"dns_ports":[53]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
}
