package outputs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/flatd/flatd/flows"
)

// DefaultSubject is the template of NATS subjects.
const DefaultSubject = "flatd.v1.{host}.{kind}.{result}"

// subjectMax bounds a template, in bytes.
const subjectMax = 255

// Subject is a compiled template of NATS subjects, such as DefaultSubject or a
// fixed one. See ParseSubject.
type Subject struct {
	parts []subjectPart
}

// subjectPart is either text as it stands or a value of the event.
type subjectPart struct {
	text  string
	value func(*flows.Host, *flows.Event) string
}

// The placeholders. Addresses are not among them: their number has no bound.
var subjectValues = map[string]func(*flows.Host, *flows.Event) string{
	"host":      func(h *flows.Host, _ *flows.Event) string { return h.Name },
	"kind":      func(_ *flows.Host, e *flows.Event) string { return e.Kind.String() },
	"result":    subjectResult,
	"side":      subjectSide,
	"interface": func(_ *flows.Host, e *flows.Event) string { return e.Interface.Name },
}

// subjectResult is the result, or for flatd's own events what they are about.
func subjectResult(_ *flows.Host, e *flows.Event) string {
	switch {
	case e.Status != nil:
		return string(e.Status.Action)
	case e.Summary != nil:
		return string(e.Summary.Scope)
	}
	return e.ResultName()
}

func subjectSide(_ *flows.Host, e *flows.Event) string {
	if e.Side == 0 {
		return ""
	}
	return e.Side.String()
}

// ParseSubject compiles a template: tokens separated by dots, in which {host},
// {kind}, {result}, {side} and {interface} stand for values of the event. The
// error says what is wrong and what would be right.
func ParseSubject(template string) (Subject, error) {
	s, err := parseSubject(template)
	if err != nil {
		return Subject{}, fmt.Errorf("subject %q: %w", template, err)
	}
	return s, nil
}

func parseSubject(template string) (s Subject, err error) {
	if template == "" {
		return s, errors.New("is empty")
	}
	if len(template) > subjectMax {
		return s, fmt.Errorf("has %d bytes: at most %d are allowed", len(template), subjectMax)
	}
	if template[0] == '$' {
		return s, errors.New("subjects that begin with $ belong to the server")
	}
	for token := range strings.SplitSeq(template, ".") {
		if token == "" {
			return s, errors.New("has an empty token: a dot may stand only between two tokens")
		}
	}
	for rest := template; rest != ""; {
		var part subjectPart
		if part, rest, err = nextSubjectPart(rest); err != nil {
			return s, err
		}
		s.parts = append(s.parts, part)
	}
	return s, nil
}

// nextSubjectPart takes one part, a placeholder or the text up to the next.
func nextSubjectPart(s string) (part subjectPart, rest string, err error) {
	if s[0] != '{' {
		end := strings.IndexByte(s, '{')
		if end < 0 {
			end = len(s)
		}
		return subjectPart{text: s[:end]}, s[end:], checkSubjectText(s[:end])
	}
	name, rest, closed := strings.Cut(s[1:], "}")
	if !closed {
		return part, "", errors.New("has a { without a }")
	}
	value, known := subjectValues[name]
	if !known {
		return part, "", fmt.Errorf("has an unknown placeholder {%s}: there are {host}, {kind}, {result}, {side} and {interface}", name)
	}
	return subjectPart{value: value}, rest, nil
}

func checkSubjectText(text string) error {
	for _, c := range text {
		switch {
		case c == '*' || c == '>':
			return fmt.Errorf("has the wildcard %q: events are published to one subject each", c)
		case c == '}':
			return errors.New("has a } without a {")
		case c <= ' ' || c >= 0x7f:
			return fmt.Errorf("has the character %q: only printable ASCII without spaces is allowed", c)
		}
	}
	return nil
}

// Append appends the subject of e. Values are made safe: whatever is not a
// letter, a digit, "-" or "_" becomes "_", and nothing becomes "none".
func (s Subject) Append(dst []byte, h *flows.Host, e *flows.Event) []byte {
	for _, p := range s.parts {
		if p.value == nil {
			dst = append(dst, p.text...)
			continue
		}
		dst = appendToken(dst, p.value(h, e))
	}
	return dst
}

func appendToken(dst []byte, value string) []byte {
	if value == "" {
		return append(dst, "none"...)
	}
	for i := range len(value) {
		c := value[i]
		if !tokenByte(c) {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

func tokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
