package links

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/flatd/flatd/daemon/config"
)

// A reload that comes together with the end of flatd must not hold it up.
func TestConfigureEndsWithRun(t *testing.T) {
	l := New(nil, nil, config.Defaults(), 0, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		l.Configure(context.Background(), config.Defaults())
		close(done)
	}()
	close(l.ended) // as Run does
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Configure waits for a Run that has ended")
	}
}
