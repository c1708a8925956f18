package outputs

import (
	"bufio"
	"context"
	"runtime"
	"strings"
	"testing"
)

// A reader that stops, then goes on, gets whole lines: those that the queue had
// room for, in order.
func TestStdoutFullPipe(t *testing.T) {
	t.Parallel()
	r, w := pipe(t)
	tr := newTrial(t, newTestStdout(t, StdoutOptions{Writer: w}), 1000)
	const events = 5000
	tr.publish(events)
	s := tr.await("the outage", isDown)
	if s.Dropped == 0 || s.Queued == 0 || tr.told() != 1 {
		t.Errorf("while nobody reads, told %d times: %+v", tr.told(), s)
	}
	lines := make(chan int)
	go func() {
		n := 0
		for scanner := bufio.NewScanner(r); scanner.Scan(); n++ {
			if line := scanner.Text(); !strings.HasPrefix(line, `{"@timestamp"`) || !strings.HasSuffix(line, "}}") {
				t.Errorf("line %d is %s", n, line)
			}
		}
		lines <- n
	}()
	s = tr.end()
	w.Close()
	// A line that was begun is finished, even if its event was dropped meanwhile.
	if n := uint64(<-lines); n < s.Delivered || n > s.Delivered+1 || s.Delivered+s.Dropped != events {
		t.Errorf("%d lines: %+v", n, s)
	}
}

// A reader that is gone for good is an outage for good: told once, the newest
// events are kept, and at the end all are accounted for.
func TestStdoutClosedPipe(t *testing.T) {
	t.Parallel()
	r, w := pipe(t)
	tr := newTrial(t, newTestStdout(t, StdoutOptions{Writer: w}), 1000)
	r.Close()
	tr.publish(5000)
	s := tr.await("the outage", isDown)
	if !strings.Contains(s.LastError, "nobody reads it any more") {
		t.Errorf("the error is %q", s.LastError)
	}
	tr.publish(5000)
	if s = tr.stats(); s.Queued != 1000 || s.Dropped != 9000 || tr.told() != 1 {
		t.Errorf("told %d times: %+v", tr.told(), s)
	}
	for tr.fanout.Queue("well").Stats().Queued > 0 {
		runtime.Gosched()
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tr.fanout.Drain(ended); err != nil {
		t.Error(err)
	}
	if s = tr.stats(); s.Dropped != 10000 || s.Queued != 0 {
		t.Errorf("at the end: %+v", s)
	}
	if n := len(tr.well.sequences()); n != 10000 {
		t.Errorf("the output that is well got %d events", n)
	}
}
