package flows

import (
	"bytes"
	"strings"
	"testing"
)

func nameOf(d DNS) string { return string(d.AppendName(nil)) }

func TestName(t *testing.T) {
	tests := []struct {
		labels []string
		want   string
	}{
		{nil, "."},
		{[]string{"example", "com"}, "example.com"},
		{[]string{"ExAmPle"}, "ExAmPle"},
		{[]string{"_dmarc", "xn--bcher-kva", "example"}, "_dmarc.xn--bcher-kva.example"},
		{[]string{"a.b", `c\d`}, `a\.b.c\\d`},
		{[]string{"\x00\t \x7f\xff"}, `\000\009\032\127\255`},
		{[]string{"\x1b[31m", "\r\n"}, `\027[31m.\013\010`},
		{[]string{`"*`}, `"*`},
	}
	for _, test := range tests {
		if got := nameOf(dnsOf(0, 0, question(1, test.labels...))); got != test.want {
			t.Errorf("%q: got %s, want %s", test.labels, got, test.want)
		}
	}
}

func TestSetQuestionLimits(t *testing.T) {
	label := strings.Repeat("x", 63)
	longest := question(1, label, label, label, strings.Repeat("y", 61)) // 255 bytes of name
	tests := []struct {
		name    string
		section []byte
		ok      bool
	}{
		{"longest name", longest, true},
		{"type and no class", question(1, "a")[:5], true},
		{"second question", append(question(1, "a"), question(2, "b")...), true},
		{"name too long", question(1, label, label, label, strings.Repeat("y", 62)), false},
		{"label too long", append(append([]byte{64}, strings.Repeat("x", 64)...), 0, 0, 1), false},
		{"compressed", []byte{1, 'a', 0xc0, 0x0c, 0, 1, 0, 1}, false},
		{"compressed at once", []byte{0xc0, 0x0c, 0, 1, 0, 1}, false},
		{"no end", []byte{3, 'a', 'b', 'c'}, false},
		{"label cut short", []byte{3, 'a', 'b'}, false},
		{"no type", []byte{1, 'a', 0}, false},
		{"half a type", []byte{1, 'a', 0, 0}, false},
		{"nothing", nil, false},
	}
	for _, test := range tests {
		d := dnsOf(0, 0, question(28, "before"))
		if got := d.SetQuestion(test.section); got != test.ok || d.HasQuestion() != test.ok {
			t.Errorf("%s: %v, question %v", test.name, got, d.HasQuestion())
		}
		if !test.ok && (nameOf(d) != "" || string(d.AppendType(nil)) != "" || d.Type != 0) {
			t.Errorf("%s: left %q %q", test.name, d.AppendType(nil), nameOf(d))
		}
	}
	d := dnsOf(0, 0, append(question(15, "a"), question(2, "b")...))
	if nameOf(d) != "a" || d.Type != 15 {
		t.Errorf("of two questions: %s %d", nameOf(d), d.Type)
	}
}

func TestType(t *testing.T) {
	for qtype, want := range map[uint16]string{1: "A", 28: "AAAA", 65: "HTTPS", 255: "ANY", 0: "TYPE0", 65280: "TYPE65280"} {
		d := dnsOf(0, 0, question(qtype, "x"))
		if got := string(d.AppendType(nil)); got != want {
			t.Errorf("%d: %s", qtype, got)
		}
	}
}

// Each response code has one name, and nothing else is read as one.
func TestRCodeNames(t *testing.T) {
	for code := range uint16(rcodeMask + 1) {
		if got, ok := rcodeOf(rcodeName(code)); !ok || got != code {
			t.Errorf("%d is %s, which is %d, %t", code, rcodeName(code), got, ok)
		}
	}
	for _, name := range []string{"", "established", "rcode", "rcode0", "rcode16", "rcode024", "rcode+30", "rcode4096", "30", "RCODE30"} {
		if code, ok := rcodeOf(name); ok {
			t.Errorf("%q is %d", name, code)
		}
	}
}

func TestHashNames(t *testing.T) {
	hash := func(labels ...string) string {
		d := dnsOf(0, 0, question(1, labels...))
		d.HashNames = true
		return nameOf(d)
	}
	// FNV-1a of "\x07example\x03com\x00".
	if got := hash("eXample", "COM"); got != "hash:951df47018d51fc6" {
		t.Errorf("got %s", got)
	}
	if hash("a", "b") == hash("a.b") || hash("[") == hash("{") {
		t.Error("different names have the same hash")
	}
	if hash() == "." {
		t.Error("the root is not hashed")
	}
	if d := (DNS{HashNames: true}); nameOf(d) != "" {
		t.Errorf("no name became %q", nameOf(d))
	}
}

// unescape is the inverse of AppendName, back to wire form.
func unescape(name string) []byte {
	if name == "." {
		return []byte{0}
	}
	var wire, label []byte
	flush := func() { wire, label = append(append(wire, byte(len(label))), label...), nil }
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.':
			flush()
		case c != '\\':
			label = append(label, c)
		case name[i+1] == '.' || name[i+1] == '\\':
			i++
			label = append(label, name[i])
		default:
			label = append(label, (name[i+1]-'0')*100+(name[i+2]-'0')*10+name[i+3]-'0')
			i += 3
		}
	}
	flush()
	return append(wire, 0)
}

// A name is either refused or told so that nothing of it is lost and nothing
// but printable ASCII is shown.
func FuzzQuestion(f *testing.F) {
	f.Add(question(1, "example", "com"))
	f.Add(question(1, "a.b", "\x1b\n\\", "\xff"))
	f.Add(question(1))
	f.Add([]byte{1, 'a', 0xc0, 0x0c, 0, 1})
	f.Fuzz(func(t *testing.T, section []byte) {
		var d DNS
		if !d.SetQuestion(section) {
			if nameOf(d) != "" {
				t.Errorf("refused, but %q", nameOf(d))
			}
			return
		}
		name := nameOf(d)
		for i := range len(name) {
			if name[i] <= ' ' || name[i] > '~' {
				t.Errorf("byte %#x in %q", name[i], name)
			}
		}
		if wire := unescape(name); !bytes.HasPrefix(section, wire) || len(wire) != int(d.length) {
			t.Errorf("%q is %q on the wire, not %q", name, wire, section)
		}
	})
}
