package outputs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/flatd/flatd/flows"
	"golang.org/x/sys/unix"
)

// StdoutOptions configure a Stdout.
type StdoutOptions struct {
	Host   func() *flows.Host // as it is called at the moment
	Writer io.Writer          // os.Stdout as a rule; it stays open
	Format string             // "json" (default) or "text"
	Color  bool               // text only; see UseColor
}

// Stdout writes events as lines: JSON for programs, text for people.
type Stdout struct {
	writer io.Writer
	own    *os.File // what Close closes, or nil
	append func(dst []byte, e *flows.Event) []byte

	lines []byte // reused
	ends  []int  // where the line of each event of a batch ends in lines
	// begun is the line that the last write stopped in, after sent bytes. It is
	// finished first, whether or not its event comes again.
	begun []byte
	sent  int
}

// NewStdout checks the options.
func NewStdout(o StdoutOptions) (*Stdout, error) {
	s := &Stdout{writer: o.Writer}
	switch o.Format {
	case "", "json":
		s.append = func(dst []byte, e *flows.Event) []byte { return append(o.Host().AppendJSON(dst, e), '\n') }
	case "text":
		s.append = func(dst []byte, e *flows.Event) []byte { return append(o.Host().AppendLine(dst, e, o.Color), '\n') }
	default:
		return nil, fmt.Errorf("stdout: format %q: must be %q or %q", o.Format, "json", "text")
	}
	if f, ok := o.Writer.(*os.File); ok {
		own, err := ownFile(f)
		if err != nil {
			return nil, fmt.Errorf("stdout: %w", err)
		}
		s.writer, s.own = own, own
	}
	return s, nil
}

// ownFile makes a file of our own out of f, which may be shared with other
// processes and stays as it is. A pipe or a terminal is opened once more without
// blocking, so that a reader who stops reading cannot hold up a write beyond its
// deadline. Anything else is duplicated: Go ends a process that gets EPIPE on
// descriptor 1 itself (see os/signal).
func ownFile(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var own *os.File
	err = control(f, func(fd int) (err error) {
		if info.Mode()&(os.ModeNamedPipe|os.ModeCharDevice) != 0 {
			path := fmt.Sprintf("/proc/self/fd/%d", fd)
			if own, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
				return nil
			}
		}
		fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
		own = os.NewFile(uintptr(fd), f.Name())
		return nil
	})
	return own, err
}

// control runs use with the descriptor of f and leaves its mode alone, which
// File.Fd does not.
func control(f *os.File, use func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = use(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// Name is "stdout".
func (s *Stdout) Name() string { return "stdout" }

// Write writes the batch at once. A reader that is gone is an error like any
// other (EPIPE).
func (s *Stdout) Write(ctx context.Context, events []*flows.Event) (Tally, error) {
	s.format(events)
	s.limit(ctx)
	n, err := s.writer.Write(s.lines[s.sent:])
	if err == nil && s.sent+n < len(s.lines) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return s.stop(s.sent + n), fmt.Errorf("stdout: %w", explain(err))
	}
	s.begun, s.sent = s.begun[:0], 0
	return Tally{Delivered: len(events)}, nil
}

// format makes the lines, the one that was begun first.
func (s *Stdout) format(events []*flows.Event) {
	s.lines, s.ends = append(s.lines[:0], s.begun...), s.ends[:0]
	for i, e := range events {
		start := len(s.lines)
		s.lines = s.append(s.lines, e)
		if i == 0 && bytes.Equal(s.lines[start:], s.begun) {
			s.lines = s.lines[:start] // it is the one
		}
		s.ends = append(s.ends, len(s.lines))
	}
}

// stop settles a write that ended at position n of s.lines.
func (s *Stdout) stop(n int) (t Tally) {
	start, end := 0, len(s.begun)
	if n >= end {
		start, end = end, len(s.lines)
	}
	for _, next := range s.ends {
		if next > n {
			end = min(end, next)
			break
		}
		start = next
		t.Delivered++
	}
	if start == n {
		end = n // between two lines: nothing is begun
	}
	s.begun, s.sent = append(s.begun[:0], s.lines[start:end]...), n-start
	return t
}

// limit ends the writes at the deadline of ctx where the file can do that.
func (s *Stdout) limit(ctx context.Context) {
	if until, ok := ctx.Deadline(); ok && s.own != nil {
		s.own.SetWriteDeadline(until)
	}
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPIPE):
		return fmt.Errorf("nobody reads it any more: %w", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("its reader does not read: %w", err)
	}
	return err
}

// Close writes nothing more and leaves the options' Writer open.
func (s *Stdout) Close() error {
	if s.own == nil {
		return nil
	}
	return s.own.Close()
}

// UseColor reports whether text on f should be coloured: on a terminal that can
// do it, unless NO_COLOR is set (no-color.org).
func UseColor(f *os.File) bool {
	term := os.Getenv("TERM")
	return os.Getenv("NO_COLOR") == "" && term != "" && term != "dumb" && IsTerminal(f)
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	return control(f, func(fd int) error {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	}) == nil
}
