package outputs

import (
	"bytes"
	"context"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flatd/flatd/flows"
)

// FuzzJournalEntry sends an event with hostile strings to a socket and reads it
// as journald does: every field is one that an event without them has, once,
// and what was sent comes out of them unchanged.
func FuzzJournalEntry(f *testing.F) {
	path := filepath.Join(f.TempDir(), "socket")
	conn := listener(f, path)
	j := newTestJournal(f, JournalOptions{Socket: path, Profile: ProfileAll})
	f.Add("eth0", "/system.slice/nginx.service")
	f.Add("a\nPRIORITY=0\n_UID=0", "/x\nOBJECT_SYSTEMD_UNIT=sshd.service\n.service")
	f.Add("\n\x05\x00\x00\x00\x00\x00\x00\x00", "/user.slice/user-0.slice/user@0.service/\n.service")
	buffer := make([]byte, 1<<18)
	f.Fuzz(func(t *testing.T, iface, cgroup string) {
		if len(iface)+len(cgroup) > 1<<12 {
			return // an interface's name has 15 bytes, a path 4096
		}
		e := refused(1)
		e.Interface.Name, e.Owner = iface, flows.OwnerOf(cgroup)
		if tally, err := j.Write(context.Background(), []*flows.Event{e}); err != nil || tally.Delivered != 1 {
			t.Fatalf("%+v, %v", tally, err)
		}
		n, err := conn.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		entry := readEntry(t, buffer[:n])
		if got := entry["OBSERVER_INTERFACE_NAME"]; got != iface {
			t.Errorf("interface %q has become %q", iface, got)
		}
		if got := entry["PRIORITY"]; got != "5" {
			t.Errorf("priority %q", got)
		}
		for name := range entry {
			if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" || name[0] == '_' {
				t.Errorf("field %q", name)
			}
		}
	})
}

// readEntry takes a datagram of the journal's native protocol apart. Of fields
// that may be there several times it keeps one.
func readEntry(t *testing.T, datagram []byte) map[string]string {
	t.Helper()
	lists := map[string]bool{"EVENT_CATEGORY": true, "EVENT_TYPE": true}
	entry := make(map[string]string)
	for len(datagram) > 0 {
		line, rest, whole := bytes.Cut(datagram, []byte("\n"))
		name, value, text := bytes.Cut(line, []byte("="))
		if !text {
			if len(rest) < 8 || binary.LittleEndian.Uint64(rest) >= uint64(len(rest)-8) {
				t.Fatalf("field %q has no length or a wrong one", name)
			}
			size := binary.LittleEndian.Uint64(rest)
			value, rest = rest[8:8+size], rest[8+size:]
			whole = rest[0] == '\n'
			rest = rest[1:]
		}
		if _, twice := entry[string(name)]; !whole || twice && !lists[string(name)] {
			t.Fatalf("field %q is not whole, or there twice", name)
		}
		entry[string(name)], datagram = string(value), rest
	}
	return entry
}

// FuzzSubjectTemplate: whatever template is let through makes subjects that a
// NATS server takes for one place to publish to.
func FuzzSubjectTemplate(f *testing.F) {
	f.Add(DefaultSubject, "web1", "eth0")
	f.Add("a.{interface}{side}.-", "*", ">")
	f.Add("{host}.{kind}-{result}", "a.b c", "\r\nPUB x 0")
	f.Fuzz(func(t *testing.T, template, host, iface string) {
		s, err := ParseSubject(template)
		if err != nil {
			return
		}
		e := sample(1)
		e.Interface.Name = iface
		subject := string(s.Append(nil, &flows.Host{Name: host}, e))
		for token := range strings.SplitSeq(subject, ".") {
			if token == "" || strings.ContainsAny(token, "*> \t\r\n\x00") {
				t.Errorf("%q makes the subject %q", template, subject)
			}
		}
		if strings.Count(subject, ".") != strings.Count(template, ".") {
			t.Errorf("%q makes %q, of another number of tokens", template, subject)
		}
	})
}
