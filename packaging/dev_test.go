package packaging_test

import (
	"os"
	"testing"

	"github.com/flatd/flatd/daemon"
)

// TestDevConfig: `make run` gets a configuration that is valid, and that keeps
// clear of an installed flatd.
func TestDevConfig(t *testing.T) {
	text, err := os.ReadFile("dev.toml")
	if err != nil {
		t.Fatal(err)
	}
	config, err := daemon.Parse(daemon.File{Name: "dev.toml", Text: string(text)})
	if err != nil {
		t.Fatal(err)
	}
	defaults := daemon.Defaults()
	if config.PinPath == defaults.PinPath || config.Socket == defaults.Socket {
		t.Errorf("pins in %s and listens on %s, as an installed flatd does", config.PinPath, config.Socket)
	}
}
