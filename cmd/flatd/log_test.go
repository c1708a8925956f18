package main

import (
	"bytes"
	"log/slog"
	"testing"
)

func TestJournalLinesBeginWithTheirPriority(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newJournalHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	log.Info("hello", "a", 1)
	log.With("b", 2).Warn("careful")
	log.WithGroup("g").Error("broken", "c", "x y")
	log.Debug("detail")
	const want = "<6>msg=hello a=1\n<4>msg=careful b=2\n<3>msg=broken g.c=\"x y\"\n<7>msg=detail\n"
	if out.String() != want {
		t.Errorf("wrote %q, want %q", out.String(), want)
	}
}
