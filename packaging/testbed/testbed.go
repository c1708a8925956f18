// Package testbed gives tests the real things they need: root, network
// namespaces joined by a veth, a BPF file system, tools. What is missing skips
// the test with the reason, or fails it where CI says that all must be there.
package testbed

import (
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Missing skips the test for want of something, or fails it in CI.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if os.Getenv("CI") != "" {
		t.Fatalf("%s (CI has to have it)", reason)
	}
	t.Skip(reason)
}

// Root wants the rights to load programs and make namespaces.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "needs root")
	}
}

// Tool returns the path of a program that the test runs.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, "needs %s (make setup-test installs it)", name)
	}
	return path
}

// BPFFS mounts a BPF file system of the test's own and returns its path.
func BPFFS(t testing.TB) string {
	t.Helper()
	return Mount(t, "bpf", "mode=0700")
}

// Cgroups mounts the machine's cgroups, of version 2, and returns their path.
func Cgroups(t testing.TB) string {
	t.Helper()
	return Mount(t, "cgroup2", "")
}

// Mount mounts a file system of the kernel's at a directory of the test's own, and
// returns that. Commands of a Host see it, and not what is mounted below /sys: ip
// netns exec puts another in its place.
func Mount(t testing.TB, kind, options string) string {
	t.Helper()
	Root(t)
	dir := t.TempDir()
	if err := unix.Mount(kind, dir, kind, 0, options); err != nil {
		Missing(t, "mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// Host is a network namespace, one end of a veth.
type Host struct {
	Name      string // of the namespace, for ip netns
	Interface string
	V4, V6    string // addresses
	ns        netns.NsHandle
}

// Pair makes two hosts joined by a veth, with addresses of both families that
// can be used at once, and with cgroups, as any host. Their names are unique to this
// test.
func Pair(t testing.TB) (client, server *Host) {
	t.Helper()
	Tool(t, "ip")
	Cgroups(t)
	id := fmt.Sprintf("%d-%d", os.Getpid(), counter())
	client = newHost(t, "flat-c-"+id, "eth0", "10.99.0.1", "fd99::1")
	server = newHost(t, "flat-s-"+id, "eth0", "10.99.0.2", "fd99::2")
	Run(t, "ip", "-n", client.Name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", server.Name)
	client.setUp(t)
	server.setUp(t)
	return client, server
}

// Bridged makes the same hosts with a bridge between them, in a namespace of its
// own, where packets can be lost on their way.
func Bridged(t testing.TB) (client, server *Host, bridge string) {
	t.Helper()
	client, server = Pair(t)
	bridge = client.Name + "-b"
	Run(t, "ip", "netns", "add", bridge)
	t.Cleanup(func() { Run(t, "ip", "netns", "delete", bridge) })
	Run(t, "ip", "-n", bridge, "link", "add", "br0", "up", "type", "bridge")
	Run(t, "ip", "-n", client.Name, "link", "delete", "eth0")
	for port, h := range map[string]*Host{"c": client, "s": server} {
		Run(t, "ip", "-n", h.Name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", bridge)
		Run(t, "ip", "-n", bridge, "link", "set", port, "master", "br0", "up")
		h.setUp(t)
	}
	return client, server, bridge
}

// setUp gives the host's devices addresses that can be used at once.
func (h *Host) setUp(t testing.TB) {
	t.Helper()
	Run(t, "ip", "-n", h.Name, "address", "add", h.V4+"/24", "dev", "eth0")
	Run(t, "ip", "-n", h.Name, "address", "add", h.V6+"/64", "dev", "eth0", "nodad")
	Run(t, "ip", "-n", h.Name, "link", "set", "eth0", "up")
	Run(t, "ip", "-n", h.Name, "link", "set", "lo", "up")
	Run(t, "ip", "-n", h.Name, "route", "add", "224.0.0.0/4", "dev", "eth0")
}

var last atomic.Int64

func counter() int64 { return last.Add(1) }

func newHost(t testing.TB, name, iface, v4, v6 string) *Host {
	t.Helper()
	Run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { Run(t, "ip", "netns", "delete", name) })
	ns, err := netns.GetFromName(name)
	if err != nil {
		t.Fatalf("open namespace %s: %v", name, err)
	}
	t.Cleanup(func() { ns.Close() })
	return &Host{Name: name, Interface: iface, V4: v4, V6: v6, ns: ns}
}

// Do runs f in the host's namespace, on a thread of its own. Sockets that f
// opens belong to the namespace for as long as they live; goroutines that it
// starts run elsewhere.
func (h *Host) Do(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := netns.Set(h.ns); err != nil {
			panic(fmt.Sprintf("enter namespace %s: %v", h.Name, err))
		}
		f()
	}()
	<-done
}

// Listen opens a TCP socket in the host's namespace. The test's end closes it, if
// nobody has before.
func (h *Host) Listen(t testing.TB, address string) (listener net.Listener) {
	t.Helper()
	var err error
	h.Do(func() { listener, err = net.Listen("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// Command is a command to run in the host's namespace.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", h.Name, name}, args...)...)
}

// Run runs a command that must succeed, and returns what it printed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var (
	builtMu sync.Mutex
	built   = make(map[[2]string]string)
)

// Build builds a command of the project, once for all tests of a process, and
// returns the binary's path. It stays in the user's cache until it is built anew.
func Build(t testing.TB, name string, tags string) string {
	t.Helper()
	builtMu.Lock()
	defer builtMu.Unlock()
	binary, known := built[[2]string{name, tags}]
	if known {
		return binary
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	tree := fnv.New32a()
	tree.Write([]byte(Tree(t)))
	binary = filepath.Join(cache, "flatd-test", fmt.Sprintf("bin-%08x%s%s", tree.Sum32(), tags, os.Getenv(raceVariable)), name)
	// Put in its place as a whole: others may run, or run with, what is there.
	fresh := filepath.Join(t.TempDir(), name)
	flags, cgo := raced()
	if out, err := compile(Tree(t), fresh, name, cgo, append(flags, "-tags", tags)...); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	if err := install(fresh, binary); err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	built[[2]string{name, tags}] = binary
	return binary
}

// raceVariable has the tree's commands built with the race detector.
const raceVariable = "FLATD_RACE"

// Raced reports whether the commands under test have the race detector, and so take several
// times the memory and the time.
func Raced() bool { return os.Getenv(raceVariable) != "" }

// raced are the flags to build one with, and whether it needs cgo.
func raced() (flags []string, cgo string) {
	if !Raced() {
		return nil, "0"
	}
	return []string{"-race"}, "1"
}

// compile builds a command of a tree as a binary, and returns what go said.
func compile(tree, binary, name, cgo string, flags ...string) ([]byte, error) {
	build := exec.Command("go", slices.Concat([]string{"build", "-o", binary}, flags, []string{"./cmd/" + name})...)
	build.Dir = tree
	build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	return build.CombinedOutput()
}

// install copies a binary to where another may be, without a moment of neither.
func install(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	whole := fmt.Sprintf("%s.%d", to, os.Getpid())
	if err := os.WriteFile(whole, text, 0o700); err != nil {
		return err
	}
	return os.Rename(whole, to)
}

// Tree is the root of the project's tree.
func Tree(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}
