package outputs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
	"golang.org/x/sys/unix"
)

func newTestStdout(t testing.TB, o StdoutOptions) *Stdout {
	t.Helper()
	o.Host = thisHost
	s, err := NewStdout(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// writes counts how often it is written to.
type writes struct {
	bytes.Buffer
	count int
}

func (w *writes) Write(b []byte) (int, error) { w.count++; return w.Buffer.Write(b) }

func TestStdoutFormats(t *testing.T) {
	events := []*flows.Event{sample(1), refused(2), status("flatd has started")}
	for _, format := range []string{"json", "text"} {
		var got writes
		out := newTestStdout(t, StdoutOptions{Writer: &got, Format: format})
		if tally, err := out.Write(t.Context(), events); err != nil || tally != (Tally{Delivered: 3}) {
			t.Fatalf("%s: %+v, %v", format, tally, err)
		}
		var want []byte
		for _, e := range events {
			if format == "json" {
				want = testHost.AppendJSON(want, e)
			} else {
				want = testHost.AppendLine(want, e, false)
			}
			want = append(want, '\n')
		}
		if got.String() != string(want) || got.count != 1 {
			t.Errorf("%s: %d writes of\n%swant\n%s", format, got.count, got.String(), want)
		}
	}
	if _, err := NewStdout(StdoutOptions{Format: "xml"}); err == nil {
		t.Error("format xml passes")
	}
}

// A write that stops in the middle of a line is continued there.
func TestStdoutCutLine(t *testing.T) {
	want := jsonLines(samples(1, 5))
	line := len(want) / 5
	for _, cut := range []int{0, 1, line - 1, line, line + 1, 2*line + 7, len(want) - 1} {
		writer := &cutWriter{left: []int{cut, 3}}
		out := newTestStdout(t, StdoutOptions{Writer: writer})
		rest := samples(1, 5)
		for range 2 {
			tally, err := out.Write(t.Context(), rest)
			if err == nil && cut+3 < len(want) {
				t.Fatalf("cut at %d: %+v, no error", cut, tally)
			}
			rest = rest[tally.Total():]
		}
		if left := 5 - (cut+3)/line; len(rest) != left {
			t.Errorf("cut at %d: %d left, want %d", cut, len(rest), left)
		}
		if tally, err := out.Write(t.Context(), rest); err != nil || tally.Delivered != len(rest) {
			t.Errorf("cut at %d: %+v, %v", cut, tally, err)
		}
		if got := writer.String(); got != want {
			t.Errorf("cut at %d: got\n%swant\n%s", cut, got, want)
		}
	}
}

// A line that was begun is finished even if its event has been dropped since;
// one that was not begun is not.
func TestStdoutCutLineOfDroppedEvent(t *testing.T) {
	line := len(jsonLines(samples(1, 1)))
	for cut, want := range map[int]string{
		line + 5: jsonLines(samples(1, 2)) + jsonLines(samples(4, 5)),
		line:     jsonLines(samples(1, 1)) + jsonLines(samples(4, 5)),
	} {
		writer := &cutWriter{left: []int{cut}}
		out := newTestStdout(t, StdoutOptions{Writer: writer})
		if tally, err := out.Write(t.Context(), samples(1, 3)); err == nil || tally.Delivered != 1 {
			t.Errorf("%+v, %v", tally, err)
		}
		if tally, err := out.Write(t.Context(), samples(4, 5)); err != nil || tally.Delivered != 2 {
			t.Errorf("%+v, %v", tally, err)
		}
		if got := writer.String(); got != want {
			t.Errorf("cut at %d: got\n%swant\n%s", cut, got, want)
		}
	}
}

func jsonLines(events []*flows.Event) string {
	var lines []byte
	for _, e := range events {
		lines = append(testHost.AppendJSON(lines, e), '\n')
	}
	return string(lines)
}

// cutWriter takes so many bytes in its first writes, then all.
type cutWriter struct {
	bytes.Buffer
	left []int
}

func (w *cutWriter) Write(b []byte) (int, error) {
	if len(w.left) == 0 {
		return w.Buffer.Write(b)
	}
	n := min(w.left[0], len(b))
	w.left = w.left[1:]
	w.Buffer.Write(b[:n])
	return n, errors.New("cut")
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// A reader who stops reading costs one deadline, and then gets every line.
func TestStdoutReaderStalls(t *testing.T) {
	r, w := pipe(t)
	out := newTestStdout(t, StdoutOptions{Writer: w})
	events := samples(1, 500) // more than a pipe holds
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	tally, err := out.Write(ctx, events)
	if !errors.Is(err, os.ErrDeadlineExceeded) || tally.Delivered == len(events) {
		t.Fatalf("%+v, %v", tally, err)
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := out.Write(ctx, events[tally.Delivered:])
		done <- err
	}()
	lines := bufio.NewScanner(r)
	for _, e := range events {
		if !lines.Scan() || lines.Text() != string(testHost.AppendJSON(nil, e)) {
			t.Fatalf("event %d: got %q", e.Sequence, lines.Text())
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The process survives a standard output whose reader is gone, whether that is
// a pipe or a socket, as descriptor 1.
func TestStdoutReaderGone(t *testing.T) {
	if os.Getenv("FLATD_TEST_EPIPE") != "" {
		out := newTestStdout(t, StdoutOptions{Writer: os.Stdout})
		_, err := out.Write(t.Context(), samples(1, 1))
		if !errors.Is(err, unix.EPIPE) {
			t.Errorf("error %v", err)
			os.Exit(3)
		}
		os.Exit(42)
	}
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socketReader, socket := os.NewFile(uintptr(sockets[0]), "reader"), os.NewFile(uintptr(sockets[1]), "socket")
	defer socket.Close()
	pipeReader, pipe := pipe(t)
	for _, c := range []struct {
		kind   string
		reader io.Closer
		stdout *os.File
	}{{"pipe", pipeReader, pipe}, {"socket", socketReader, socket}} {
		c.reader.Close()
		child := exec.Command(os.Args[0], "-test.run=^TestStdoutReaderGone$")
		child.Env = append(os.Environ(), "FLATD_TEST_EPIPE=1")
		child.Stdout = c.stdout
		child.Run()
		if code := child.ProcessState.ExitCode(); code != 42 {
			t.Errorf("%s: the process ended with %v", c.kind, child.ProcessState)
		}
	}
}

// The file that is handed in is shared: closing our own leaves it open and as
// it was.
func TestStdoutLeavesFileAlone(t *testing.T) {
	r, w := pipe(t)
	mode := func() int {
		var flags int
		if err := control(w, func(fd int) (err error) {
			flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return flags
	}
	before := mode()
	out, err := NewStdout(StdoutOptions{Host: thisHost, Writer: w})
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if after := mode(); after != before {
		t.Errorf("flags %#x, before %#x", after, before)
	}
	if _, err := w.WriteString("x"); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestUseColor(t *testing.T) {
	terminal := openTerminal(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		name, noColor, term string
		file                *os.File
		want                bool
	}{
		{"terminal", "", "xterm", terminal, true},
		{"NO_COLOR", "1", "xterm", terminal, false},
		{"dumb terminal", "", "dumb", terminal, false},
		{"unknown terminal", "", "", terminal, false},
		{"file", "", "xterm", file, false},
	} {
		t.Setenv("NO_COLOR", c.noColor)
		t.Setenv("TERM", c.term)
		if got := UseColor(c.file); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// openTerminal opens a pseudo terminal and writes an event to it.
func openTerminal(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		missing(t, "no pseudo terminal: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	var slave *os.File
	err = control(master, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		if err != nil {
			return err
		}
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		missing(t, "no pseudo terminal: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	out := newTestStdout(t, StdoutOptions{Writer: slave, Format: "text", Color: true})
	if _, err := out.Write(t.Context(), samples(1, 1)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(master).ReadString('\n')
	if want := string(testHost.AppendLine(nil, sample(1), true)); err != nil || strings.TrimRight(line, "\r\n") != want {
		t.Errorf("terminal shows %q, %v; want %q", line, err, want)
	}
	return slave
}

func BenchmarkStdout(b *testing.B) {
	for _, format := range []string{"json", "text"} {
		b.Run(format, func(b *testing.B) {
			out := newTestStdout(b, StdoutOptions{Writer: io.Discard, Format: format})
			events := samples(1, 256)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := out.Write(b.Context(), events); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*len(events))/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(len(events)), "events/op")
		})
	}
}
