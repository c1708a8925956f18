// Package systemd holds flatd's units and what belongs to them. It has no code,
// only tests: that the files agree with the code, and that flatd works as a
// service of a real systemd, booted for the test by bed.sh.
package systemd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/daemon/control"
	"github.com/flatd/flatd/flows"
)

// catalogEntry is what a message catalog says of one MESSAGE_ID.
type catalogEntry struct {
	subject    string
	paragraphs []string // what happened, then what to do
}

func readCatalog(t *testing.T) map[string]catalogEntry {
	t.Helper()
	catalog := make(map[string]catalogEntry)
	for _, text := range strings.Split("\n"+read(t, "flatd.catalog"), "\n-- ")[1:] {
		id, rest, _ := strings.Cut(text, "\n")
		header, body, _ := strings.Cut(rest, "\n\n")
		if _, twice := catalog[id]; twice {
			t.Errorf("message %s has two entries", id)
		}
		entry := catalogEntry{paragraphs: strings.Split(strings.TrimSpace(body), "\n\n")}
		for _, line := range strings.Split(header, "\n") {
			if subject, found := strings.CutPrefix(line, "Subject: "); found {
				entry.subject = subject
			}
		}
		catalog[id] = entry
	}
	return catalog
}

// unit is a unit file: the values of each setting, by "Section.Name".
type unit map[string][]string

func readUnit(t *testing.T, name string) unit {
	t.Helper()
	u, section := make(unit), ""
	for _, line := range strings.Split(read(t, name), "\n") {
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		} else if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			u[section+"."+key] = append(u[section+"."+key], value)
		}
	}
	return u
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// want compares a setting that stands once.
func (u unit) want(t *testing.T, setting, value string) {
	t.Helper()
	if got := u[setting]; len(got) != 1 || got[0] != value {
		t.Errorf("%s is %q, want %q once", setting, got, value)
	}
}

func TestCatalogExplainsEveryMessage(t *testing.T) {
	catalog := readCatalog(t)
	for _, message := range flows.Messages {
		entry, ok := catalog[message.ID]
		delete(catalog, message.ID)
		switch {
		case !ok:
			t.Errorf("no entry for message %s (%s)", message.ID, message.Name)
		case entry.subject != message.Title:
			t.Errorf("message %s (%s) has the subject %q, want %q", message.ID, message.Name, entry.subject, message.Title)
		case len(entry.paragraphs) < 2:
			t.Errorf("message %s (%s) should say what happened, then what to do", message.ID, message.Name)
		}
	}
	for id := range catalog {
		t.Errorf("entry %s explains a message that flatd does not write", id)
	}
	if len(flows.Messages) == 0 {
		t.Error("flows.Messages is empty")
	}
}

func TestCatalogIsNarrow(t *testing.T) {
	for i, line := range strings.Split(read(t, "flatd.catalog"), "\n") {
		if len(line) > 76 {
			t.Errorf("line %d is %d columns wide, want 76 at most", i+1, len(line))
		}
	}
}

func TestUnitsAgreeWithTheCode(t *testing.T) {
	defaults := config.Defaults()

	service := readUnit(t, "flatd.service")
	service.want(t, "Service.ReadWritePaths", "-"+defaults.PinPath)
	service.want(t, "Service.RuntimeDirectory", filepath.Base(filepath.Dir(defaults.Socket)))
	service.want(t, "Install.Also", "flatd.socket")

	socket := readUnit(t, "flatd.socket")
	socket.want(t, "Socket.ListenStream", defaults.Socket)
	socket.want(t, "Socket.FileDescriptorName", control.SocketName)
	socket.want(t, "Socket.SocketGroup", api.ControlGroup)

	metrics := readUnit(t, "flatd-metrics.socket")
	metrics.want(t, "Socket.FileDescriptorName", control.MetricsSocketName)
	metrics.want(t, "Socket.Service", "flatd.service")

	if line := "\ng " + api.ControlGroup + " - -\n"; !strings.Contains(read(t, "flatd.sysusers"), line) {
		t.Errorf("flatd.sysusers does not make the group %s", api.ControlGroup)
	}
	if line := "\nd " + defaults.PinPath + " 0700 root root -\n"; !strings.Contains(read(t, "flatd.tmpfiles"), line) {
		t.Errorf("flatd.tmpfiles does not make %s", defaults.PinPath)
	}
}

// TestHardeningIsSorted keeps the list easy to compare with systemd.exec(5).
func TestHardeningIsSorted(t *testing.T) {
	_, list, found := strings.Cut(read(t, "flatd.service"), "\nCapabilityBoundingSet=")
	if !found {
		t.Fatal("flatd.service has no CapabilityBoundingSet=")
	}
	list, _, _ = strings.Cut("CapabilityBoundingSet="+list, "\n[")
	last := ""
	for _, line := range strings.Split(list, "\n") {
		key, _, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if key < last {
			t.Errorf("%s= stands after %s=", key, last)
		}
		last = key
	}
}
