package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stage is a moment in the life of a program: its K-th call among those that Of
// names, counted since it was executed and over all its threads, from 1. At its
// entry the kernel has done nothing of the call yet; at its exit everything, and
// the program does not know.
type Stage struct {
	K    int
	Exit bool
	Of   []int // numbers of system calls; none: bpf(2) alone
}

func (s Stage) String() string {
	if s.Exit {
		return fmt.Sprintf("exit of call %d", s.K)
	}
	return fmt.Sprintf("entry of call %d", s.K)
}

// counts leaves out that a token is asked for, which cilium/ebpf does as often as
// the machine has BPF file systems: a K would mean another call each time.
func (s Stage) counts(number int, args [6]uint64) bool {
	const tokenCreate = 36 // BPF_TOKEN_CREATE
	if number == unix.SYS_BPF && args[0] == tokenCreate {
		return false
	}
	return slices.Contains(s.Of, number) || len(s.Of) == 0 && number == unix.SYS_BPF
}

// Trace is a program that runs under ptrace, all threads of it, until it ends or
// is killed.
type Trace struct {
	cmd   *exec.Cmd
	stage Stage
	calls atomic.Int64  // that count
	asBPF atomic.Int64  // of which those are of bpf(2)
	ended chan struct{} // closed when the program has

	began  map[int]call // by thread: the call that it is in
	killed string
}

// call is a system call that has begun.
type call struct {
	number int
	nth    int // among those that count; 0: it does not
	what   string
}

// StartTraced starts cmd and kills it, by SIGKILL, at that stage; with K 0 it
// only counts. If cmd executes another program in its place, as `ip netns exec`
// does, that one's calls count. Nobody may wait for cmd before Wait has returned.
func StartTraced(cmd *exec.Cmd, at Stage) (*Trace, error) {
	tr := &Trace{cmd: cmd, stage: at, ended: make(chan struct{}), began: make(map[int]call)}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// Its own process group separates its threads from our other children.
	cmd.SysProcAttr.Ptrace, cmd.SysProcAttr.Setpgid = true, true
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // whoever starts it is its tracer; the thread ends here
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		tr.follow(cmd.Process.Pid)
		close(tr.ended)
	}()
	return tr, <-started
}

// Wait returns when the program has ended, and at which of its calls it was
// killed; "" if it was not. Then cmd can be waited for.
func (tr *Trace) Wait() (killedAt string) {
	<-tr.ended
	return tr.killed
}

// Calls is how many of its calls count, by now.
func (tr *Trace) Calls() int { return int(tr.calls.Load()) }

// BPFCalls is how many of these are calls of bpf(2).
func (tr *Trace) BPFCalls() int { return int(tr.asBPF.Load()) }

// follow lets the threads go from stop to stop until the program has ended, and
// leaves that to be waited for.
func (tr *Trace) follow(leader int) {
	known := make(map[int]bool)
	for {
		thread, ended := tr.next(leader)
		if ended {
			return
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(thread, &status, unix.WALL|unix.WNOTHREAD, nil); err != nil || !status.Stopped() {
			delete(known, thread)
			continue
		}
		signal := 0
		switch stop := status.StopSignal(); {
		case !known[thread]: // it begins, with a stop that nobody sent
			known[thread] = true
			if thread == leader {
				_ = unix.PtraceSetOptions(thread, unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEEXEC|unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL)
			}
		case stop == unix.SIGTRAP|0x80:
			tr.stopped(thread)
		case status.TrapCause() == unix.PTRACE_EVENT_EXEC:
			tr.calls.Store(0)
			tr.asBPF.Store(0)
			clear(tr.began)
		case stop == unix.SIGTRAP: // another event
		default:
			signal = int(stop)
		}
		_ = unix.PtraceSyscall(thread, signal) // which fails if it was killed meanwhile
	}
}

// next waits for the next thread that has stopped or ended, and reports whether
// that is the end of the program.
func (tr *Trace) next(leader int) (thread int, ended bool) {
	// struct siginfo of a child, on 64-bit machines.
	var info struct {
		signal, errno, code, _ int32
		pid                    int32
		uid                    uint32
		status                 int32
		_                      [100]byte
	}
	for {
		err := unix.Waitid(unix.P_PGID, leader, (*unix.Siginfo)(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT|unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		const trapped = 4 // CLD_TRAPPED; less is an end
		return int(info.pid), err != nil || int(info.pid) == leader && info.code < trapped
	}
}

// stopped looks at a thread that enters or leaves the kernel.
func (tr *Trace) stopped(thread int) {
	entry, number, args, err := syscallInfo(thread)
	if err != nil {
		return
	}
	if entry {
		c := call{number: number}
		if tr.stage.counts(number, args) {
			c.nth = int(tr.calls.Add(1))
			if number == unix.SYS_BPF {
				tr.asBPF.Add(1)
			}
			if c.nth == tr.stage.K {
				c.what = describeCall(thread, number, args)
			}
		}
		tr.began[thread] = c
	}
	if c := tr.began[thread]; c.nth > 0 && c.nth == tr.stage.K && entry != tr.stage.Exit && tr.killed == "" {
		tr.killed = fmt.Sprintf("%s (%s)", tr.stage, c.what)
		_ = tr.cmd.Process.Kill()
	}
}

// syscallInfo is struct ptrace_syscall_info, for Linux 5.3.
func syscallInfo(thread int) (entry bool, number int, args [6]uint64, err error) {
	var info struct {
		op     uint8
		_      [3]uint8
		arch   uint32
		ip, sp uint64
		number uint64 // of an entry
		args   [6]uint64
		_      uint64
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return false, 0, args, errno
	}
	return info.op == unix.PTRACE_SYSCALL_INFO_ENTRY, int(info.number), info.args, nil
}

// describeCall says what a call is about.
func describeCall(thread, number int, args [6]uint64) string {
	switch number {
	case unix.SYS_BPF:
	case unix.SYS_UNLINKAT:
		return "unlinkat " + pathOf(thread, args[1])
	default:
		return fmt.Sprintf("system call %d", number)
	}
	var attr [64]byte
	peek(thread, args[1], attr[:min(len(attr), int(args[2]))])
	text := func(at int) string { name, _, _ := bytes.Cut(attr[at:at+16], []byte{0}); return string(name) }
	pointer := func(at int) uint64 { return *(*uint64)(unsafe.Pointer(&attr[at])) }
	name, known := commands[int(args[0])]
	if !known {
		name = fmt.Sprintf("command %d", args[0])
	}
	switch args[0] {
	case unix.BPF_MAP_CREATE:
		return name + " " + text(28)
	case unix.BPF_PROG_LOAD:
		return name + " " + text(48)
	case unix.BPF_OBJ_PIN, unix.BPF_OBJ_GET:
		return name + " " + pathOf(thread, pointer(0))
	}
	return name
}

// commands are those of bpf(2) that flatd uses.
var commands = map[int]string{
	unix.BPF_MAP_CREATE: "MAP_CREATE", unix.BPF_MAP_LOOKUP_ELEM: "MAP_LOOKUP_ELEM", unix.BPF_MAP_UPDATE_ELEM: "MAP_UPDATE_ELEM",
	unix.BPF_MAP_DELETE_ELEM: "MAP_DELETE_ELEM", unix.BPF_MAP_GET_NEXT_KEY: "MAP_GET_NEXT_KEY", unix.BPF_MAP_FREEZE: "MAP_FREEZE",
	unix.BPF_MAP_LOOKUP_BATCH: "MAP_LOOKUP_BATCH", unix.BPF_PROG_LOAD: "PROG_LOAD", unix.BPF_PROG_TEST_RUN: "PROG_TEST_RUN",
	unix.BPF_PROG_QUERY: "PROG_QUERY", unix.BPF_BTF_LOAD: "BTF_LOAD", unix.BPF_OBJ_PIN: "OBJ_PIN", unix.BPF_OBJ_GET: "OBJ_GET",
	unix.BPF_OBJ_GET_INFO_BY_FD: "OBJ_GET_INFO_BY_FD", unix.BPF_LINK_CREATE: "LINK_CREATE", unix.BPF_LINK_UPDATE: "LINK_UPDATE",
	unix.BPF_LINK_DETACH: "LINK_DETACH",
}

// pathOf is the end of a path in a thread's memory: the file and its directory.
func pathOf(thread int, address uint64) string {
	var path [256]byte
	name, _, _ := strings.Cut(string(path[:peek(thread, address, path[:])]), "\x00")
	parts := strings.Split(name, "/")
	return strings.Join(parts[max(0, len(parts)-2):], "/")
}

// peek reads a thread's memory, to the end of a page if there is no more.
func peek(thread int, address uint64, into []byte) int {
	for n := len(into); n > 0; n /= 2 {
		local := []unix.Iovec{{Base: &into[0]}}
		local[0].SetLen(n)
		if got, err := unix.ProcessVMReadv(thread, local, []unix.RemoteIovec{{Base: uintptr(address), Len: n}}, 0); err == nil {
			return got
		}
	}
	return 0
}
