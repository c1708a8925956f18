package packaging_test

import (
	"os"
	"testing"

	"github.com/flatd/flatd/daemon/config"
)

// TestDevConfig: `make run` gets a configuration that is valid, and that keeps
// clear of an installed flatd.
func TestDevConfig(t *testing.T) {
	text, err := os.ReadFile("dev.toml")
	if err != nil {
		t.Fatal(err)
	}
	dev, err := config.Parse(config.File{Name: "dev.toml", Text: string(text)})
	if err != nil {
		t.Fatal(err)
	}
	defaults := config.Defaults()
	if dev.PinPath == defaults.PinPath || dev.Socket == defaults.Socket {
		t.Errorf("pins in %s and listens on %s, as an installed flatd does", dev.PinPath, dev.Socket)
	}
}
