package main

import (
	"io"
	"strconv"
	"unicode/utf8"
)

// plain passes on text so that a terminal merely shows it: what is neither
// printable nor a newline or tab is written as in a Go string. Interfaces and
// filters may have names with nearly any bytes in them.
type plain struct{ to io.Writer }

// Write implements io.Writer. Each call must end between two characters.
func (p plain) Write(text []byte) (int, error) {
	shown := make([]byte, 0, len(text))
	for rest := text; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			shown = append(shown, `\x`...)
			shown = append(shown, "0123456789abcdef"[rest[0]>>4], "0123456789abcdef"[rest[0]&0xf])
		case r == '\n' || r == '\t' || strconv.IsPrint(r):
			shown = append(shown, rest[:size]...)
		default:
			quoted := strconv.AppendQuoteRuneToASCII(nil, r)
			shown = append(shown, quoted[1:len(quoted)-1]...)
		}
		rest = rest[size:]
	}
	if _, err := p.to.Write(shown); err != nil {
		return 0, err
	}
	return len(text), nil
}
