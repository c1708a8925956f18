// Package man has the manual pages, and what keeps the parts of them that the
// code decides equal to it. Everything else in them is written by hand, in the
// macros of man(7). Only tests import it.
package man

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// Keep wants a part of a page to be what the code makes, and with update writes
// it so. A part stands between the comments
//
//	.\" NAME: made by …
//	.\" /NAME
func Keep(t testing.TB, page, part, want string, update bool) {
	t.Helper()
	path := Path(page)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := regexp.MustCompile(`(?s)\n\.\\" ` + part + `: [^\n]*\n(.*?)\.\\" /` + part + `\n`).FindSubmatchIndex(text)
	switch {
	case at == nil:
		t.Fatalf(`%s has no part between .\" %s: … and .\" /%s`, page, part, part)
	case string(text[at[2]:at[3]]) == want:
	case !update:
		t.Errorf("the part %s of %s is not what the code says; the comment above it has the command that writes it anew", part, page)
	default:
		text = []byte(string(text[:at[2]]) + want + string(text[at[3]:]))
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Path returns where a page of the source tree is.
func Path(page string) string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), page)
}

// Escape has text stand as it is, hyphens as the minus signs that options and
// keys begin with.
func Escape(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch {
		case r == '\\':
			out.WriteString(`\e`)
		case r == '-':
			out.WriteString(`\-`)
		case r > 0x7e:
			fmt.Fprintf(&out, `\[u%04X]`, r)
		default:
			out.WriteRune(r)
		}
	}
	return guard(out.String())
}

// guard keeps what begins like a request from being taken for one.
func guard(line string) string {
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		return `\&` + line
	}
	return line
}

// Bold is text in the face of what is to be typed.
func Bold(text string) string { return `\fB` + Escape(text) + `\fR` }

// Italic is text in the face of what is to be replaced.
func Italic(text string) string { return `\fI` + Escape(text) + `\fR` }

// Prose is running text, in which `code` is bold. Each sentence begins a line,
// as roff wants it, and no line is wider than an editor.
func Prose(text string) string {
	var out strings.Builder
	for _, line := range strings.Split(sentence.ReplaceAllString(strings.Join(strings.Fields(text), " "), "$1\n$2"), "\n") {
		width := 0
		for _, word := range strings.Fields(faces(line)) {
			switch {
			case width == 0:
			case width+len(word) < lineWidth:
				out.WriteByte(' ')
			default:
				out.WriteByte('\n')
				width = 0
			}
			if width == 0 {
				word = guard(word)
			}
			out.WriteString(word)
			width += len(word) + 1
		}
		out.WriteByte('\n')
	}
	return out.String()
}

const lineWidth = 79

var sentence = regexp.MustCompile(`([a-z0-9)"` + "`" + `]{2}[.:]) +([A-Z"(])`)

// faces sets every other piece between backquotes in bold; only there a hyphen
// is a minus sign.
func faces(line string) string {
	pieces := strings.Split(line, "`")
	for i, piece := range pieces {
		if i%2 == 1 {
			pieces[i] = Bold(piece)
		} else {
			pieces[i] = strings.ReplaceAll(Escape(piece), `\-`, "-")
		}
	}
	return strings.Join(pieces, "")
}

// Item is an entry of a list of terms.
func Item(tag, text string) string { return ".TP\n" + tag + "\n" + text }

// Literal is text that stands line by line, indented.
func Literal(lines ...string) string {
	out := ".RS 4\n.EX\n"
	for _, line := range lines {
		out += Escape(line) + "\n"
	}
	return out + ".EE\n.RE\n"
}
