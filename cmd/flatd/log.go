package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
)

// logger writes diagnostics to standard error. Where that is the journal, each
// line begins with its priority (sd-daemon(3)), so that journalctl -p finds it,
// and the time is left to the journal. The service manager asks for details
// with DEBUG_INVOCATION (systemd.exec(5)). The caller flushes what it returns
// before the process ends.
func logger() (*slog.Logger, *diagnostics) {
	// Go ends a process that writes to a broken standard error (os/signal).
	signal.Ignore(syscall.SIGPIPE)
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if os.Getenv("DEBUG_INVOCATION") != "" {
		options.Level = slog.LevelDebug
	}
	if under, err := journal.StderrIsJournalStream(); err != nil || !under {
		d := newDiagnostics(os.Stderr, nil)
		return slog.New(slog.NewTextHandler(d, options)), d
	}
	d := newDiagnostics(os.Stderr, toJournal)
	return slog.New(newJournalHandler(d, options)), d
}

// journalHandler puts the priority before what a text handler writes.
type journalHandler struct {
	text   slog.Handler // writes into line
	shared *journalLine
}

type journalLine struct {
	mu   sync.Mutex
	line bytes.Buffer
	to   io.Writer
}

func newJournalHandler(to io.Writer, options *slog.HandlerOptions) *journalHandler {
	shared := &journalLine{to: to}
	untimed := *options
	untimed.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}
	return &journalHandler{text: slog.NewTextHandler(&shared.line, &untimed), shared: shared}
}

// Enabled implements slog.Handler.
func (h *journalHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.text.Enabled(ctx, level)
}

// Handle implements slog.Handler: one write a record.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.shared.mu.Lock()
	defer h.shared.mu.Unlock()
	h.shared.line.Reset()
	h.shared.line.WriteString(priority(r.Level))
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.shared.to.Write(h.shared.line.Bytes())
	return err
}

// WithAttrs implements slog.Handler.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{text: h.text.WithAttrs(attrs), shared: h.shared}
}

// WithGroup implements slog.Handler.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{text: h.text.WithGroup(name), shared: h.shared}
}

// priority is the prefix of syslog(3)'s level.
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<3>"
	case level >= slog.LevelWarn:
		return "<4>"
	case level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}
