// Package wild hands tests the captures of other projects, which the set-up of
// the tests fetches (packaging/captures.sh): many protocols, tunnels, packets
// that are malformed on purpose. They are read as frames of Ethernet.
package wild

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/flatd/flatd/packaging/testbed"
)

// Capture is a file of packets.
type Capture struct {
	Name   string // source package and file
	Frames []Frame
}

// Frame is a packet with an Ethernet header: its own, or one that was put
// before it where it came without.
type Frame struct {
	Time   time.Time
	Bytes  []byte
	Length int // on the wire; more than there are bytes if the capture cut it
}

// What is read of one file, and of one frame: packet headers are all that
// matters, and the kernel's test runs take less than a page.
const (
	maxFile  = 4 << 20
	MaxFrame = 3 << 10
)

// Folder is where packaging/captures.sh puts them.
func Folder(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		testbed.Missing(t, "captures from the wild: %v", err)
	}
	return filepath.Join(cache, "flatd-test", "captures")
}

// Captures reads all that are there and hold frames that can be used. Files of
// other formats, and what follows a defect in a file, are left out.
func Captures(t testing.TB) []Capture {
	t.Helper()
	folder := Folder(t)
	var all []Capture
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		frames, err := Read(path)
		if err != nil {
			return err
		}
		if len(frames) > 0 {
			name, _ := filepath.Rel(folder, path)
			all = append(all, Capture{name, frames})
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(all) == 0 {
		testbed.Missing(t, "no captures in %s (make setup-test fetches them)", folder)
	}
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b Capture) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// reader is what the readers of both formats have in common.
type reader interface {
	ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
}

// Read returns the frames of one file; none if it is not a capture, or of
// devices whose packets cannot be made frames of Ethernet.
func Read(path string) ([]Frame, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	source, linkType := open(file)
	if source == nil {
		return nil, nil
	}
	var frames []Frame
	for {
		data, info, err := source.ReadPacketData()
		if err != nil { // the end, or a defect
			return frames, nil
		}
		if frame := ethernet(data, linkType(info)); frame != nil {
			length := info.Length + len(frame) - len(data)
			frames = append(frames, Frame{info.Timestamp, frame[:min(len(frame), MaxFrame)], length})
		}
	}
}

// open finds out a file's format. Compressed files are read as such.
func open(file io.Reader) (reader, func(gopacket.CaptureInfo) layers.LinkType) {
	buffered := bufio.NewReader(io.LimitReader(file, maxFile))
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		plain, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil
		}
		buffered = bufio.NewReader(io.LimitReader(plain, maxFile))
	}
	const sectionHeader = "\x0a\x0d\x0d\x0a"
	if magic, _ := buffered.Peek(4); string(magic) == sectionHeader {
		r, err := pcapgo.NewNgReader(buffered, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err != nil {
			return nil, nil
		}
		return r, func(info gopacket.CaptureInfo) layers.LinkType {
			device, _ := r.Interface(info.InterfaceIndex)
			return device.LinkType
		}
	}
	r, err := pcapgo.NewReader(buffered)
	if err != nil {
		return nil, nil
	}
	return r, func(gopacket.CaptureInfo) layers.LinkType { return r.LinkType() }
}

// ethernet makes a frame of a packet, or nothing.
func ethernet(packet []byte, link layers.LinkType) []byte {
	const linuxSLL = 16
	switch {
	case link == layers.LinkTypeEthernet:
		return packet
	case link == layers.LinkTypeLinuxSLL && len(packet) > linuxSLL:
		return framed(binary.BigEndian.Uint16(packet[14:]), packet[linuxSLL:])
	case link == layers.LinkTypeNull && len(packet) > 4:
		return bare(packet[4:])
	case link == layers.LinkTypeRaw || link == layers.LinkTypeIPv4 || link == layers.LinkTypeIPv6 || link == 12:
		return bare(packet)
	}
	return nil
}

// bare is for packets that begin with the IP header.
func bare(packet []byte) []byte {
	switch {
	case len(packet) == 0:
		return nil
	case packet[0]>>4 == 4:
		return framed(uint16(layers.EthernetTypeIPv4), packet)
	case packet[0]>>4 == 6:
		return framed(uint16(layers.EthernetTypeIPv6), packet)
	}
	return nil
}

func framed(etherType uint16, packet []byte) []byte {
	header := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	return append(binary.BigEndian.AppendUint16(header, etherType), packet...)
}

// Write makes one capture of the frames of many, in order.
func Write(path string, captures []Capture) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	buffered := bufio.NewWriter(file)
	w := pcapgo.NewWriterNanos(buffered)
	if err := w.WriteFileHeader(1<<18, layers.LinkTypeEthernet); err != nil {
		return err
	}
	for _, c := range captures {
		for _, f := range c.Frames {
			info := gopacket.CaptureInfo{Timestamp: f.Time, CaptureLength: len(f.Bytes), Length: max(f.Length, len(f.Bytes))}
			if err := w.WritePacket(info, f.Bytes); err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
		}
	}
	return buffered.Flush()
}
