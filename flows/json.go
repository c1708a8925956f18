package flows

import (
	"strconv"
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
	return h.appendObject(dst, seenShapes.forms(e), e)
}

// appendObject appends an object of those of the fields that the event has.
func (h *Host) appendObject(dst []byte, table []form, e *Event) []byte {
	dst = append(dst, '{')
	begin := len(dst)
	open := 0   // objects that we are in
	shared := 0 // those of them that the next field is in, too
	for i := range table {
		f := &table[i]
		shared = min(shared, int(f.shared))
		number, known := f.numberOf(e)
		if !known {
			continue
		}
		mark := len(dst)
		dst = closeObjects(dst, open-shared)
		if mark > begin {
			dst = append(dst, ',')
		}
		dst = append(dst, f.names[f.starts[shared]:]...)
		start := len(dst)
		switch {
		case f.number != nil:
			dst = strconv.AppendUint(dst, number, 10)
		case !f.constant():
			if dst = f.appendJSON(dst, h, e); len(dst) == start {
				dst = dst[:mark]
				continue
			}
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

// numberOf returns the number and whether it is known. What has another value is
// judged by that.
func (f *form) numberOf(e *Event) (n uint64, known bool) {
	if f.number == nil {
		return 0, true
	}
	return f.number(e)
}

// appendJSON appends the value and its closing quote, nothing if it is unknown.
func (f *form) appendJSON(dst []byte, h *Host, e *Event) []byte {
	if f.list != nil {
		return appendList(dst, f.list(e))
	}
	start := len(dst)
	dst = f.value(dst, h, e)
	if f.bare || len(dst) == start {
		return dst
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
	for i, b := range dst[start:] {
		if !plainJSON[b] {
			return escapeJSONFrom(dst, start+i)
		}
	}
	return dst
}

func escapeJSONFrom(dst []byte, start int) []byte {
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

// plainJSON has the bytes that need no escape.
var plainJSON = func() (plain [256]bool) {
	for b := byte(' '); b < 0x7f; b++ {
		plain[b] = b != '"' && b != '\\'
	}
	return plain
}()

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
