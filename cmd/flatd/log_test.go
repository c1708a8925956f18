package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"
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

// Whoever does not read diagnostics holds up nothing; what was dropped is said once it can be.
func TestDiagnosticsHoldUpNothing(t *testing.T) {
	reader, writer := io.Pipe()
	d := newDiagnostics(writer, nil)
	const lines = 3 * diagnosticsRoom
	for i := range lines {
		fmt.Fprintf(d, "<6>line %d\n", i)
	}
	d.flush(10 * time.Millisecond) // in vain
	go func() {
		d.flush(time.Minute)
		fmt.Fprintln(d, "<6>last")
		d.flush(time.Minute)
		writer.Close()
	}()
	read, dropped := 0, 0
	for text := bufio.NewScanner(reader); text.Scan(); {
		var lost int
		if n, _ := fmt.Sscanf(text.Text(), "<6>flatd: %d lines of diagnostics were dropped here", &lost); n == 0 {
			read++
		}
		dropped += lost
	}
	if dropped == 0 || read+dropped != lines+1 {
		t.Errorf("%d lines read and %d dropped, want %d", read, dropped, lines+1)
	}
}

// A line that standard error does not take any more goes to the journal's socket.
func TestDiagnosticsFindAnotherWay(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	reader.Close()
	var got []string
	d := newDiagnostics(writer, func(line []byte) { got = append(got, string(line)) })
	fmt.Fprintln(d, "<4>still here")
	d.flush(time.Minute)
	if !slices.Equal(got, []string{"<4>still here\n"}) {
		t.Errorf("%q", got)
	}
}
