package outputs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// pollSlice is how long the wait for room in the socket goes on before it looks
// at its context again: poll(2) knows nothing of contexts.
const pollSlice = 100 * time.Millisecond

var (
	errJournalStalled = errors.New("journald does not read its socket")
	// errNoMemoryFile means that this entry cannot be sent, now or later.
	errNoMemoryFile = errors.New("entry too large for a datagram, and no memory file for it")
)

// journalSocket sends entries in journald's native protocol, one datagram each.
// It is non-blocking and connected, so that it sees when the receiver is full
// or gone, and makes no garbage.
type journalSocket struct {
	path string
	fd   int // -1: not connected
}

// Send hands one entry to journald. It connects where necessary, once more if
// journald was restarted, and waits for room as long as ctx allows.
func (s *journalSocket) Send(ctx context.Context, entry []byte) error {
	for reconnected := false; ; {
		err := s.try(entry)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := s.awaitRoom(ctx); err != nil {
				return err
			}
		case gone(err) && !reconnected:
			s.Close()
			reconnected = true
		default:
			return fmt.Errorf("send to %s: %w", s.path, err)
		}
	}
}

// gone reports whether nobody is at the other end, at least for the moment.
func gone(err error) bool {
	number, _ := errors.AsType[unix.Errno](err)
	return slices.Contains([]unix.Errno{unix.ECONNREFUSED, unix.ECONNRESET, unix.ENOTCONN, unix.EPIPE, unix.ENOENT}, number)
}

func (s *journalSocket) try(entry []byte) error {
	if s.fd < 0 {
		if err := s.connect(); err != nil {
			return err
		}
	}
	err := unix.Send(s.fd, entry, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err == unix.EMSGSIZE || err == unix.ENOBUFS {
		return s.trySealed(entry)
	}
	return err
}

func (s *journalSocket) connect() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: s.path}); err != nil {
		unix.Close(fd)
		return err
	}
	s.fd = fd
	return nil
}

// trySealed passes an entry that is too large for a datagram as a memory file.
func (s *journalSocket) trySealed(entry []byte) error {
	fd, err := sealed(entry)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoMemoryFile, err)
	}
	defer unix.Close(fd)
	return unix.Sendmsg(s.fd, nil, unix.UnixRights(fd), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// sealed makes a memory file that nobody can change any more: journald takes no
// other.
func sealed(entry []byte) (fd int, err error) {
	fd, err = unix.MemfdCreate("flatd-entry", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("create: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	for rest := entry; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil {
			return -1, fmt.Errorf("write %d bytes: %w", len(entry), err)
		}
		rest = rest[n:]
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal: %w", err)
	}
	return fd, nil
}

// awaitRoom returns nil once sending is worth another try.
func (s *journalSocket) awaitRoom(ctx context.Context) error {
	for ctx.Err() == nil {
		// POLLOUT of a connected datagram socket includes room in the
		// receiver's queue (unix_dgram_poll).
		fds := [1]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds[:], int(pollSlice.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for %s: %w", s.path, err)
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("send to %s: %w (%w)", s.path, errJournalStalled, ctx.Err())
}

func (s *journalSocket) Close() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}
