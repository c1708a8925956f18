package bpf

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// compile makes an object of a C file with the flags that gen.go gives for flat, and
// those in addition.
func compile(t testing.TB, source string, flags ...string) (object string) {
	t.Helper()
	return compileAs(t, 1, source, flags...)
}

// compileAs takes the flags of the first or second line of gen.go.
func compileAs(t testing.TB, line int, source string, flags ...string) (object string) {
	t.Helper()
	clang := testbed.Tool(t, "clang")
	gen, err := os.ReadFile("gen.go")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(gen), " flat.c -- ")
	if len(lines) != 3 {
		t.Fatal("gen.go has not two lines with flags behind `flat.c --`")
	}
	committed, _, _ := strings.Cut(lines[line], "\n")
	object = filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c")+".o")
	flags = append(flags, strings.Fields(committed)...)
	testbed.Run(t, clang, append(flags, "-target", "bpf", "-c", source, "-o", object)...)
	return object
}

// The README's ways without the daemon: $1 is the object, $2 and $3 are the
// peer. `ip netns exec` gives each script a mount namespace, and with it a BPF
// file system, of its own.
const (
	byTC = `
mount -t bpf bpf /sys/fs/bpf
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress bpf direct-action obj "$1" sec tc/ingress
tc filter add dev eth0 egress bpf direct-action obj "$1" sec tc/egress
ping -c 1 -W 5 "$2" >&2
ping -c 1 -W 5 "$3" >&2
` + echoed + `
bpftool -j map dump pinned /sys/fs/bpf/tc/globals/flat_counters
`
	byBpftool = `
mount -t bpf bpf /sys/fs/bpf
bpftool prog loadall "$1" /sys/fs/bpf/flat type classifier
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress bpf direct-action pinned /sys/fs/bpf/flat/flat_ingress
tc filter add dev eth0 egress bpf direct-action pinned /sys/fs/bpf/flat/flat_egress
ping -c 1 -W 5 "$2" >&2
ping -c 1 -W 5 "$3" >&2
` + echoed + `
bpftool -j map dump pinned /sys/fs/bpf/flat_counters
`

	// A datagram, and its echo.
	echoed = `bash -ec 'exec 3<>"/dev/udp/$1/9999"; echo >&3; timeout 5 head -c 1 <&3 >&2' bash "$2"`
)

// byHand runs a script at one end of a veth and returns the counters it dumps.
func byHand(t *testing.T, script, object string) (sums Counters) {
	t.Helper()
	for _, tool := range []string{"tc", "bpftool", "ping"} {
		testbed.Tool(t, tool)
	}
	client, peer := testbed.Pair(t)
	peer.Do(func() { echo(t, net.JoinHostPort(peer.V4, "9999")) })
	var log strings.Builder
	command := client.Command("sh", "-ec", script, "sh", object, peer.V4, peer.V6)
	command.Stderr = &log
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, log.String(), out)
	}
	var dump []struct {
		Formatted struct {
			Key    int
			Values []struct{ Value uint64 }
		}
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	for _, entry := range dump {
		if entry.Formatted.Key >= len(sums) {
			continue // room for more
		}
		for _, cpu := range entry.Formatted.Values {
			sums[entry.Formatted.Key] += cpu.Value
		}
	}
	return sums
}

// echo sends the first datagram back.
func echo(t *testing.T, address string) {
	socket, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { socket.Close() })
	go func() {
		b := make([]byte, 100)
		if n, from, err := socket.ReadFrom(b); err == nil {
			_, _ = socket.WriteTo(b[:n], from)
		}
	}()
}

func TestLoadsByHand(t *testing.T) {
	testbed.Root(t)
	plain, traced := compile(t, "flat.c"), compile(t, "flat.c", "-DFLAT_TRACE")
	plain510, traced510 := compileAs(t, 2, "flat.c"), compileAs(t, 2, "flat.c", "-DFLAT_TRACE")
	for _, c := range []struct{ name, script, object string }{
		{"tc", byTC, plain},
		{"tc, traced", byTC, traced},
		{"bpftool", byBpftool, plain},
		{"tc, flat510", byTC, plain510},
		{"tc, flat510, traced", byTC, traced510},
		{"bpftool, flat510", byBpftool, plain510},
		{"tc, as committed", byTC, written(t, _KernelBytes)},
		{"tc, flat510 as committed", byTC, written(t, _Kernel510Bytes)},
	} {
		t.Run(c.name, func(t *testing.T) {
			sums := byHand(t, c.script, c.object)
			if sums[Requests] != 3 || sums[Finished] != 3 {
				t.Errorf("requests %d, finished %d, want 3 and 3", sums[Requests], sums[Finished])
			}
		})
	}
}

// written is a file with these contents.
func written(t *testing.T, object []byte) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "flat.o")
	if err := os.WriteFile(file, object, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Tracing is for all of the machine: others may write lines among ours, but
// no other test loads a traced build.
func TestTraceSaysWhatHappens(t *testing.T) {
	testbed.Root(t)
	object := compile(t, "flat.c", "-DFLAT_TRACE")
	pipe, err := os.OpenFile(filepath.Join(testbed.Mount(t, "tracefs", ""), "trace_pipe"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		testbed.Missing(t, "open the trace: %v", err)
	}
	defer pipe.Close()
	if err := pipe.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}

	byHand(t, byTC, object)
	awaited := []string{"flat: request kind 4 side 1", "flat: answer kind 4 result 2"}
	lines := bufio.NewScanner(pipe)
	for len(awaited) > 0 && lines.Scan() {
		if strings.Contains(lines.Text(), awaited[0]) {
			awaited = awaited[1:]
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if len(awaited) > 0 {
		t.Errorf("the trace does not say %q", awaited)
	}
}
