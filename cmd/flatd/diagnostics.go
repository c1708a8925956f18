package main

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// diagnostics writes lines from a goroutine: a standard error that nobody reads holds up
// nothing. Lines for which there is no room are dropped, and counted in a line that follows.
type diagnostics struct {
	to      io.Writer
	again   func(line []byte) // takes a line that could not be written, nil: nobody does
	lines   chan []byte
	flushed chan chan struct{}
	dropped atomic.Uint64
}

const (
	diagnosticsRoom = 256 // lines
	// diagnosticsPatience is how long the end of flatd waits for lines to be written.
	diagnosticsPatience = time.Second
)

func newDiagnostics(to io.Writer, again func(line []byte)) *diagnostics {
	d := &diagnostics{to: to, again: again, lines: make(chan []byte, diagnosticsRoom), flushed: make(chan chan struct{})}
	go d.run()
	return d
}

// Write implements io.Writer. It takes a whole line, and never fails.
func (d *diagnostics) Write(line []byte) (int, error) {
	select {
	case d.lines <- bytes.Clone(line):
	default:
		d.dropped.Add(1)
	}
	return len(line), nil
}

func (d *diagnostics) run() {
	for {
		select {
		case line := <-d.lines:
			d.write(line)
		case done := <-d.flushed:
			for len(d.lines) > 0 {
				d.write(<-d.lines)
			}
			close(done)
		}
	}
}

func (d *diagnostics) write(line []byte) {
	if n := d.dropped.Swap(0); n > 0 {
		d.write(fmt.Appendf(nil, "%sflatd: %d lines of diagnostics were dropped here: nobody read them\n", prefixOf(line), n))
	}
	if _, err := d.to.Write(line); err != nil && d.again != nil {
		d.again(line)
	}
}

// flush waits until all lines are written, but not for ever.
func (d *diagnostics) flush(patience time.Duration) {
	limit := time.After(patience)
	done := make(chan struct{})
	select {
	case d.flushed <- done:
	case <-limit:
		return
	}
	select {
	case <-done:
	case <-limit:
	}
}

// prefixOf is the priority that a line for the journal begins with, "" for any other.
func prefixOf(line []byte) []byte {
	if len(line) > 3 && line[0] == '<' && line[2] == '>' {
		return line[:3]
	}
	return nil
}

// toJournal sends a line to the journal's own socket: the stream that is standard error
// breaks when journald is stopped.
func toJournal(line []byte) {
	priority := journal.PriInfo
	if p := prefixOf(line); p != nil {
		priority, line = journal.Priority(p[1]-'0'), line[3:]
	}
	_ = journal.Send(string(bytes.TrimSpace(line)), priority, map[string]string{"SYSLOG_IDENTIFIER": "flatd"}) // there is no other way
}
