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
	table := fieldsOf(e)
	last := -1 // the field before, of those that are known
	dst = append(dst, '{')
	for i := range table {
		mark := len(dst)
		dst = append(dst, joints[last+1][i]...)
		start := len(dst)
		dst = table[i].appendJSON(dst, h, e)
		if len(dst) == start {
			dst = dst[:mark]
			continue
		}
		last = i
	}
	if last >= 0 {
		dst = closeObjects(dst, len(table[last].objects))
	}
	return append(dst, '}')
}

// joints holds what stands between the value of one field and that of another:
// the ends of the objects that only the first is in, the starts of those that
// only the second is in, and its name. The first index is that of the field
// before plus one, 0 for none.
var joints = func() [][]string {
	all := make([][]string, len(fields)+1)
	for before := range all {
		all[before] = make([]string, len(fields))
		for i := max(before-1, 0); i < len(fields); i++ {
			all[before][i] = string(fields[i].appendKey(nil, before))
		}
	}
	return all
}()

// appendKey leaves the objects of the field before that this one is not in,
// enters those that it is in, and writes its name.
func (f *Field) appendKey(dst []byte, before int) []byte {
	var open []string
	if before > 0 {
		open = fields[before-1].objects
	}
	shared := 0
	for shared < len(open) && shared < len(f.objects) && open[shared] == f.objects[shared] {
		shared++
	}
	dst = closeObjects(dst, len(open)-shared)
	if before > 0 {
		dst = append(dst, ',')
	}
	for _, name := range f.objects[shared:] {
		dst = append(append(append(dst, '"'), name...), `":{`...)
	}
	return append(dst, f.key...)
}

func closeObjects(dst []byte, n int) []byte {
	for range n {
		dst = append(dst, '}')
	}
	return dst
}

// appendJSON appends the value, nothing if it is unknown.
func (f *Field) appendJSON(dst []byte, h *Host, e *Event) []byte {
	switch f.Type {
	case TypeLong, TypeBoolean:
		return f.value(dst, h, e)
	case TypeList:
		return appendList(dst, f.list(e))
	}
	dst = append(dst, '"')
	start := len(dst)
	dst = f.value(dst, h, e)
	if len(dst) == start {
		return dst[:start-1]
	}
	return append(escapeJSON(dst, start), '"')
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
