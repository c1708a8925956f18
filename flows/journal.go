package flows

import (
	"bytes"
	"encoding/binary"
)

// AppendJournal appends the event as one entry of systemd's native journal
// protocol, ready to be sent as a datagram. Within the capacity of dst it
// allocates nothing.
//
// No value can pass for a further field, whatever bytes it has.
func (h *Host) AppendJournal(dst []byte, e *Event) []byte {
	dst = append(dst, "MESSAGE="...)
	start := len(dst)
	dst = endEntry(AppendText(dst, e), start)
	dst = append(dst, "PRIORITY="...)
	dst = append(dst, '0'+byte(e.Priority()), '\n')
	dst = append(dst, "SYSLOG_IDENTIFIER=flatd\n"...)
	if id := e.MessageID(); id != "" {
		dst = append(append(append(dst, "MESSAGE_ID="...), id...), '\n')
	}
	table := formsOf(e)
	for i := range table {
		if f := &table[i]; !f.message {
			dst = f.appendJournal(dst, h, e)
		}
	}
	return dst
}

// appendJournal appends the field: one line for each value, none if it is
// unknown.
func (f *form) appendJournal(dst []byte, h *Host, e *Event) []byte {
	if f.list != nil {
		for _, word := range f.list(e) {
			dst = append(append(dst, f.journal...), word...)
			dst = append(dst, '\n')
		}
		return dst
	}
	mark := len(dst)
	dst = append(dst, f.journal...)
	start := len(dst)
	dst = f.value(dst, h, e)
	switch {
	case len(dst) == start:
		return dst[:mark]
	case f.plain:
		return append(dst, '\n')
	}
	return endEntry(dst, start)
}

// endEntry ends the entry whose value begins at start, behind a "=". A value
// with a newline in it takes the protocol's other form: a newline in place of
// the "=", then its length in 8 bytes, little endian.
func endEntry(dst []byte, start int) []byte {
	if bytes.IndexByte(dst[start:], '\n') >= 0 {
		length := len(dst) - start
		dst[start-1] = '\n'
		dst = binary.LittleEndian.AppendUint64(dst, 0) // room
		copy(dst[start+8:], dst[start:start+length])
		binary.LittleEndian.PutUint64(dst[start:], uint64(length))
	}
	return append(dst, '\n')
}
