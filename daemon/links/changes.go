package links

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// changeGroups are the multicast groups of rtnetlink(7) that report what
// decides over the interfaces: the interfaces themselves, what default routes come
// from, and what else is attached to the interfaces.
var changeGroups = []uint32{
	unix.RTNLGRP_LINK, unix.RTNLGRP_TC,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP,
}

// changes is a subscription to these groups. What a message says does not matter,
// because the receiver of C reads everything anew. So lost messages do no harm, as
// when they come too fast (ENOBUFS): that counts as one more change.
type changes struct {
	C      chan struct{} // holds one if there was a change since the last was taken
	socket *os.File
}

func subscribe() (*changes, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	c := &changes{C: make(chan struct{}, 1), socket: os.NewFile(uintptr(fd), "rtnetlink")}
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, group := range changeGroups {
		address.Groups |= 1 << (group - 1)
	}
	if err := unix.Bind(fd, address); err != nil {
		c.socket.Close()
		return nil, fmt.Errorf("subscribe to changes of interfaces: %w", err)
	}
	return c, nil
}

// run reports changes until ctx ends.
func (c *changes) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { c.socket.Close() })()
	defer c.socket.Close()
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("changes of interfaces: %w", err)
	}
	buffer := make([]byte, 64<<10)
	for {
		n, err := c.receive(raw, buffer)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // messages are lost
		case err != nil:
			return fmt.Errorf("changes of interfaces: %w", err)
		case !matters(buffer[:n]):
			continue
		}
		select {
		case c.C <- struct{}{}:
		default:
		}
	}
}

// receive reads one datagram from the kernel; others' have no length.
func (c *changes) receive(raw syscall.RawConn, buffer []byte) (n int, err error) {
	var from unix.Sockaddr
	waitErr := raw.Read(func(fd uintptr) (done bool) {
		n, from, err = unix.Recvfrom(int(fd), buffer, 0)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if err = errors.Join(waitErr, err); err != nil {
		return 0, err
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
		return 0, nil
	}
	return n, nil
}

// matters reports whether one of the messages of a datagram may change what is
// to be attached where. Routes come and go by the thousand on a router; of
// those, only default ones and their parts do.
func matters(datagram []byte) bool {
	for len(datagram) >= unix.SizeofNlMsghdr {
		length := binary.NativeEndian.Uint32(datagram)
		kind := binary.NativeEndian.Uint16(datagram[4:])
		if length < unix.SizeofNlMsghdr || uint64(length) > uint64(len(datagram)) {
			return true // cut short, so who knows
		}
		switch body := datagram[unix.SizeofNlMsghdr:length]; kind {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			const family, prefixLength = 0, 1 // their places in struct rtmsg
			if len(body) <= prefixLength || int(body[prefixLength]) <= partMax[int(body[family])] {
				return true
			}
		default:
			return true
		}
		next := (uint64(length) + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
		datagram = datagram[min(next, uint64(len(datagram))):]
	}
	return false
}
