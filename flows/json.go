package flows

import (
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// AppendJSON appends the event as one JSON object without a newline. Within
// the capacity of dst it allocates nothing.
//
// The bytes are printable, also on a terminal: whatever is not, such as an
// interface name with control characters, is escaped.
func (h *Host) AppendJSON(dst []byte, e *Event) []byte {
	table := formsOf(e)
	dst = append(dst, '{')
	begin := len(dst)
	open := 0   // objects that we are in
	shared := 0 // those of them that the next field is in, too
	for i := range table {
		f := &table[i]
		shared = min(shared, int(f.shared))
		mark := len(dst)
		dst = closeObjects(dst, open-shared)
		if mark > begin {
			dst = append(dst, ',')
		}
		dst = append(dst, f.names[f.starts[shared]:]...)
		start := len(dst)
		dst = f.appendJSON(dst, h, e)
		if len(dst) == start {
			dst = dst[:mark]
			continue
		}
		open, shared = int(f.depth), int(f.depth)
	}
	return append(closeObjects(dst, open), '}')
}

func closeObjects(dst []byte, n int) []byte {
	for range n {
		dst = append(dst, '}')
	}
	return dst
}

// appendJSON appends the value, nothing if it is unknown.
func (f *form) appendJSON(dst []byte, h *Host, e *Event) []byte {
	if f.list != nil {
		return appendList(dst, f.list(e))
	}
	if f.bare {
		return f.value(dst, h, e)
	}
	dst = append(dst, '"')
	start := len(dst)
	dst = f.value(dst, h, e)
	if len(dst) == start {
		return dst[:start-1]
	}
	if !f.plain {
		dst = escapeJSON(dst, start)
	}
	return append(dst, '"')
}

// appendList appends an array of words that need no escape.
func appendList(dst []byte, words []string) []byte {
	for i, word := range words {
		separator := byte(',')
		if i == 0 {
			separator = '['
		}
		dst = append(append(append(dst, separator, '"'), word...), '"')
	}
	if len(words) == 0 {
		return dst
	}
	return append(dst, ']')
}

// escapeJSON escapes, in place, what stands in dst from start on. Nearly always
// there is nothing to do.
func escapeJSON(dst []byte, start int) []byte {
	for start < len(dst) && plainJSON(dst[start]) {
		start++
	}
	end := len(dst)
	for i := start; i < end; {
		r, size := utf8.DecodeRune(dst[i:end])
		dst = appendJSONRune(dst, r)
		i += size
	}
	// The escaped form is behind the plain one, and not shorter.
	n := copy(dst[start:], dst[end:])
	return dst[:start+n]
}

func plainJSON(b byte) bool {
	return ' ' <= b && b < 0x7f && b != '"' && b != '\\'
}

func appendJSONRune(dst []byte, r rune) []byte {
	switch {
	case r == '"' || r == '\\':
		return append(dst, '\\', byte(r))
	case printable(r):
		return utf8.AppendRune(dst, r)
	}
	return appendUnicode(dst, r)
}

// printable reports whether a terminal merely shows r.
func printable(r rune) bool { return unicode.IsPrint(r) }

// appendUnicode appends r as \u and four hex digits, beyond 16 bits as the two
// halves of its surrogate pair (RFC 8259, 7).
func appendUnicode(dst []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
		return appendUnicode(appendUnicode(dst, high), low)
	}
	return append(dst, '\\', 'u', digits[r>>12&0xf], digits[r>>8&0xf], digits[r>>4&0xf], digits[r&0xf])
}
