package bpf

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// openWire has frames go over a veth. Its packets are as no test run makes
// them: but for the Ethernet header, what they hold is in page fragments, and
// the first VLAN tag of those that come in is out of the packet (accelerated).
func openWire(t *testing.T, o object) *kernel {
	t.Helper()
	host, peer := testbed.Pair(t)
	for _, h := range []*testbed.Host{host, peer} {
		quiet(t, h)
	}
	k := openKernel(t, o)
	k.measure(host, host.Interface)
	here, there := transmitter(t, host), transmitter(t, peer)
	taps := make(map[uint16]*tap)
	for _, etherType := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_8021Q} {
		taps[etherType] = newTap(t, host, etherType)
	}
	proveNotLinear(t, k, host, here, there, taps[unix.ETH_P_IP])
	k.deliver = func(in bool, frame []byte) {
		k.t.Helper()
		if !in {
			here.send(k.t, frame)
			return
		}
		there.send(k.t, frame)
		taps[behindTag(frame)].await(k.t, frame)
	}
	return k
}

// behindTag is the EtherType once the first tag is out of the packet.
func behindTag(frame []byte) uint16 {
	first := binary.BigEndian.Uint16(frame[12:])
	if !isTag(first) {
		return first
	}
	return binary.BigEndian.Uint16(frame[16:])
}

// quiet keeps a host's kernel from saying anything of its own accord.
func quiet(t *testing.T, h *testbed.Host) {
	t.Helper()
	var err error
	h.Do(func() { err = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0) })
	if err != nil {
		t.Fatal(err)
	}
	testbed.Run(t, "ip", "-n", h.Name, "address", "flush", "dev", h.Interface)
}

// packetSocket is bound to a host's interface.
func packetSocket(t *testing.T, h *testbed.Host, protocol uint16) (fd int) {
	t.Helper()
	var err error
	h.Do(func() {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		var device *net.Interface
		if device, err = net.InterfaceByName(h.Interface); err != nil {
			return
		}
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: device.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// ring sends frames from memory that it shares with the kernel (packet(7),
// PACKET_TX_RING): the kernel copies their Ethernet headers and no more.
type ring struct {
	fd     int
	memory []byte
	slot   int
}

const (
	ringSlots    = 2
	ringSlotSize = 2048
	ringHeader   = 32 // struct tpacket_hdr, aligned
)

func transmitter(t *testing.T, h *testbed.Host) *ring {
	t.Helper()
	r := &ring{fd: packetSocket(t, h, 0)}
	request := &unix.TpacketReq{Block_size: ringSlots * ringSlotSize, Block_nr: 1, Frame_size: ringSlotSize, Frame_nr: ringSlots}
	err := unix.SetsockoptTpacketReq(r.fd, unix.SOL_PACKET, unix.PACKET_TX_RING, request)
	if err == nil {
		r.memory, err = unix.Mmap(r.fd, 0, ringSlots*ringSlotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		t.Fatalf("make a ring to send from: %v", err)
	}
	t.Cleanup(func() { unix.Munmap(r.memory) })
	return r
}

// send returns when the frame has been sent.
func (r *ring) send(t testing.TB, frame []byte) {
	t.Helper()
	slot := r.memory[r.slot*ringSlotSize:][:ringSlotSize]
	r.slot = (r.slot + 1) % ringSlots
	header := (*unix.TpacketHdr)(unsafe.Pointer(&slot[0]))
	header.Len = uint32(copy(slot[ringHeader:], frame))
	header.Status = unix.TP_STATUS_SEND_REQUEST
	if err := unix.Sendto(r.fd, nil, 0, nil); err != nil {
		t.Fatalf("send %d bytes: %v", len(frame), err)
	}
}

// tap sees what came in over an interface, after the programs have.
type tap struct{ fd int }

func newTap(t *testing.T, h *testbed.Host, protocol uint16) *tap {
	t.Helper()
	p := &tap{packetSocket(t, h, protocol)}
	if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	return p
}

// await waits for a frame. It is as it was sent, but for its first tag.
func (p *tap) await(t testing.TB, frame []byte) {
	t.Helper()
	got := make([]byte, 2*ringSlotSize)
	n, _, err := unix.Recvfrom(p.fd, got, 0)
	if err != nil {
		t.Fatalf("wait for a frame: %v", err)
	}
	if at := networkOf(frame); !bytes.HasSuffix(got[:n], frame[at:]) {
		t.Fatalf("the packet was altered:\n% x\n% x", frame[at:], got[:n])
	}
}

// proveNotLinear sends a segment each way, of which a program in front of ours
// must see the Ethernet header alone.
func proveNotLinear(t *testing.T, k *kernel, host *testbed.Host, here, there *ring, tap *tap) {
	t.Helper()
	if HaveTCX() != nil {
		return // no way to be in front
	}
	seen := spy(t, host)
	frame := flow4.data(t)
	here.send(t, frame)
	there.send(t, frame)
	tap.await(t, frame)
	for direction := range uint32(2) {
		var octets uint32
		if err := seen.Lookup(direction, &octets); err != nil {
			t.Fatal(err)
		}
		if octets != etherHeader {
			t.Fatalf("%d octets are in the linear part, want %d", octets, etherHeader)
		}
	}
	k.counted(nil)
}

// spy puts programs in front of ours that note how long the linear part of a
// packet is: of what comes in under 0, of what goes out under 1.
func spy(t *testing.T, host *testbed.Host) *ebpf.Map {
	t.Helper()
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { seen.Close() })
	for key, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		const data, dataEnd = 76, 80 // in struct __sk_buff
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.LoadMem(asm.R7, asm.R1, data, asm.Word),
			asm.LoadMem(asm.R8, asm.R1, dataEnd, asm.Word),
			asm.Sub.Reg(asm.R8, asm.R7),
			asm.StoreImm(asm.RFP, -4, int64(key), asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, seen.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "next"),
			asm.StoreMem(asm.R0, 0, asm.R8, asm.Word),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("next"),
			asm.Return(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		var l link.Link
		host.Do(func() {
			var device *net.Interface
			if device, err = net.InterfaceByName(host.Interface); err == nil {
				l, err = link.AttachTCX(link.TCXOptions{Interface: device.Index, Program: p, Attach: at, Anchor: link.Head()})
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	return seen
}
