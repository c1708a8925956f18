package main

import (
	"context"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/outputs"
)

// terminal is what the one can show who reads the output.
type terminal struct {
	color bool
	utf8  bool
	width int // in characters
}

const usualWidth = 80

// terminalOf looks at what is written to. Without a terminal there are 80 columns
// and no colour; which characters there are the locale says, as for any program.
func terminalOf(w io.Writer) terminal {
	t := terminal{utf8: speaksUTF8(os.Getenv), width: usualWidth}
	f, ok := w.(*os.File)
	if !ok {
		return t
	}
	t.color = outputs.UseColor(f)
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		t.width = int(size.Col)
	}
	return t
}

// speaksUTF8 reports whether the locale's characters are in UTF-8 (locale(7)).
func speaksUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := getenv(name); value != "" {
			value = strings.ToUpper(value)
			return strings.Contains(value, "UTF-8") || strings.Contains(value, "UTF8")
		}
	}
	return false
}

// text is text in characters that the terminal has. Colours remain.
func (t terminal) text(s string) string {
	if t.utf8 {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == 'µ':
			return 'u'
		case r > '~':
			return '?'
		}
		return r
	}, s)
}

// duration is a duration for people: 1.23 ms.
func (t terminal) duration(d time.Duration) string {
	return t.text(string(flows.AppendDuration(nil, d)))
}

// short has three digits.
func short(n float64) string {
	for _, unit := range []string{"", "k", "M", "G"} {
		switch {
		case n < 9.995 && n > 0:
			return strconv.FormatFloat(n, 'f', 2, 64) + unit
		case n < 99.95 && n > 0:
			return strconv.FormatFloat(n, 'f', 1, 64) + unit
		case n < 999.5:
			return strconv.FormatFloat(n, 'f', 0, 64) + unit
		}
		n /= 1000
	}
	return ">1T"
}

// inFolds prints lines of columns. Those that a terminal is too narrow for are
// broken between words; files and pipes get them whole.
func inFolds(to io.Writer, print func(io.Writer) error) error {
	var text strings.Builder
	err := print(&text)
	shown := text.String()
	if f, ok := to.(*os.File); ok && outputs.IsTerminal(f) {
		shown = fold(shown, terminalOf(f).width)
	}
	if _, failed := io.WriteString(to, shown); failed != nil {
		return failed
	}
	return err
}

// hanging is what the rest of a broken line stands to the right of: a name, after
// a mark of doctor's too, or the arrow before a remedy.
var hanging = regexp.MustCompile(`^(?: *-> |(?:(?:ok|note|BAD) +)? *\S.*?\S {2,})`)

func fold(text string, width int) string {
	var folded strings.Builder
	for line := range strings.Lines(text) {
		begin := hanging.FindString(line)
		indent := ansi.StringWidth(begin)
		if ansi.StringWidth(line) > width && indent <= width/2 {
			rest := ansi.Wordwrap(line[len(begin):], width-indent, "")
			line = begin + strings.ReplaceAll(strings.TrimSuffix(rest, "\n"), "\n", "\n"+strings.Repeat(" ", indent)) + "\n"
		}
		folded.WriteString(line)
	}
	return folded.String()
}

// untilClosed ends ctx when nobody reads f any more, because it is a pipe into
// head, say. Otherwise only the next write would fail.
func untilClosed(ctx context.Context, w io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	f, ok := w.(*os.File)
	if !ok {
		return ctx, cancel
	}
	go func() {
		fds := []unix.PollFd{{Fd: int32(f.Fd())}} // poll(2) reports errors unasked
		for ctx.Err() == nil {
			n, err := unix.Poll(fds, -1)
			if n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 {
				cancel()
			}
			if err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	return ctx, cancel
}
