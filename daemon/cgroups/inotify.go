package cgroups

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// inotify is one instance of inotify(7). The methods may be called on nil,
// which reports nothing.
type inotify struct {
	file   *os.File
	buffer []byte
}

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("no inotify instance to be had (sysctl fs.inotify.max_user_instances): %w", err)
	}
	return &inotify{file: os.NewFile(uintptr(fd), "inotify"), buffer: make([]byte, 16<<10)}, nil
}

// add watches a directory. When the directory is removed, cgroupfs reports that to
// the watch on its parent alone, and the watch on it stays until it is ended.
func (n *inotify) add(dir string) (watch int32, err error) {
	err = n.control(func(fd int) error {
		w, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW)
		watch = int32(w)
		return err
	})
	return watch, err
}

// remove ends a watch, also that of a directory that has gone.
func (n *inotify) remove(watch int32) {
	_ = n.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(watch))
		return err
	})
}

func (n *inotify) control(call func(fd int) error) error {
	conn, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := conn.Control(func(fd uintptr) { result = call(int(fd)) }); err != nil {
		return err
	}
	return result
}

// read calls each for everything that has happened by now. It does not block,
// nor go on for as long as somebody makes and removes directories.
func (n *inotify) read(each func(watch int32, mask uint32, name string)) {
	if n == nil {
		return
	}
	queued, length := 0, 0
	err := n.control(func(fd int) (err error) {
		queued, err = unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD by its other name
		return err
	})
	for ; err == nil && queued > 0; queued -= length {
		err = n.control(func(fd int) (err error) {
			length, err = unix.Read(fd, n.buffer) // does not wait, so nothing interrupts it
			return err
		})
		if err == nil {
			parse(n.buffer[:length], each)
		}
	}
}

// parse goes through a sequence of struct inotify_event.
func parse(b []byte, each func(watch int32, mask uint32, name string)) {
	host := binary.NativeEndian
	for len(b) >= unix.SizeofInotifyEvent {
		end := unix.SizeofInotifyEvent + int(host.Uint32(b[12:]))
		if end > len(b) {
			return
		}
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:end], []byte{0})
		each(int32(host.Uint32(b)), host.Uint32(b[4:]), string(name))
		b = b[end:]
	}
}

// await calls changed at once and then whenever there is something to read,
// until wake or close.
func (n *inotify) await(changed func()) {
	if n == nil {
		return
	}
	conn, err := n.file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(uintptr) (done bool) {
		changed()
		return false
	})
}

// wake ends await, now and for ever.
func (n *inotify) wake() {
	if n != nil {
		_ = n.file.SetReadDeadline(time.Unix(0, 0))
	}
}

func (n *inotify) close() error {
	if n == nil {
		return nil
	}
	return n.file.Close()
}
