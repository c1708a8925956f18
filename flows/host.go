package flows

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// ErrBootID means that the kernel's boot id does not look like one.
var ErrBootID = errors.New("not a UUID in lower case")

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// Host is what every event of this host has in common. It is not changed once
// events are written with it, so that several outputs may share one.
type Host struct {
	Name string // as the kernel has it: observer.hostname
	// BootID is the first 8 hex digits of the kernel's boot id. Sequence
	// numbers begin anew with each boot; the prefix keeps event.id unique.
	BootID string
}

// LocalHost reads the name and the boot id of this host.
func LocalHost() (Host, error) {
	name, err := os.Hostname()
	if err != nil {
		return Host{}, fmt.Errorf("host name: %w", err)
	}
	uuid, err := os.ReadFile(bootIDFile)
	if err != nil {
		return Host{}, fmt.Errorf("boot id (is /proc mounted?): %w", err)
	}
	id, err := bootID(uuid)
	if err != nil {
		return Host{}, fmt.Errorf("%s: %w", bootIDFile, err)
	}
	return Host{Name: name, BootID: id}, nil
}

// bootID returns the part of a boot id that goes into every event.id.
func bootID(uuid []byte) (string, error) {
	const digits = 8
	if len(uuid) <= digits || uuid[digits] != '-' {
		return "", fmt.Errorf("%w: %q", ErrBootID, uuid)
	}
	prefix := uuid[:digits]
	if _, err := hex.Decode(make([]byte, digits/2), prefix); err != nil {
		return "", fmt.Errorf("%w: %q", ErrBootID, uuid)
	}
	return string(prefix), nil
}

// AppendID appends event.id: the same for the same exchange whenever and by
// whichever daemon it is reported, so that receivers can drop duplicates.
func (h *Host) AppendID(dst []byte, e *Event) []byte {
	dst = append(dst, h.BootID...)
	dst = append(dst, '-')
	switch {
	case e.Kind == KindStatus:
		return appendHex(append(dst, 's'), e.End)
	case e.Kind == KindSummary:
		return appendHex(append(dst, 'm'), e.summaryID())
	case e.Request != 0: // a timeout without a sequence
		return appendHex(append(dst, 't'), e.Request)
	}
	return strconv.AppendUint(dst, e.Sequence, 10)
}

// appendHex appends 16 hex digits.
func appendHex(dst []byte, v uint64) []byte {
	const digits = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, digits[v>>shift&0xf])
	}
	return dst
}
