package links

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestChangesThatMatter: only routes can be of no interest.
func TestChangesThatMatter(t *testing.T) {
	route := func(bits byte) []byte { return message(unix.RTM_NEWROUTE, []byte{unix.AF_INET, bits, 0, 0}) }
	for name, c := range map[string]struct {
		datagram []byte
		want     bool
	}{
		"nothing":             {nil, false},
		"a link":              {message(unix.RTM_NEWLINK, make([]byte, 16)), true},
		"a default route":     {route(0), true},
		"half of one":         {route(1), true},
		"a route":             {route(24), false},
		"a rule":              {message(unix.RTM_NEWRULE, make([]byte, 12)), true},
		"routes":              {bytes.Join([][]byte{route(24), route(8), route(0)}, nil), true},
		"a route and a qdisc": {bytes.Join([][]byte{route(24), message(unix.RTM_DELQDISC, nil)}, nil), true},
		"an empty route":      {message(unix.RTM_NEWROUTE, nil), true},
		"a cut message":       {route(24)[:17], true},
	} {
		if got := matters(c.datagram); got != c.want {
			t.Errorf("%s matters: %t", name, got)
		}
	}
}

func message(kind uint16, body []byte) []byte {
	header := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	header = binary.NativeEndian.AppendUint16(header, kind)
	return append(append(header, make([]byte, unix.SizeofNlMsghdr-len(header))...), body...)
}

// TestListsAreReadAgain if they changed while they were read.
func TestListsAreReadAgain(t *testing.T) {
	changing := 3
	got, err := consistent(func() ([]int, error) {
		if changing--; changing > 0 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if len(got) != 2 || err != nil {
		t.Errorf("read %v, %v", got, err)
	}
	if _, err := consistent(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); err == nil {
		t.Error("a list that changes all the time is taken for whole")
	}
}
