// Init is the only program in a guest's initrd.
//
// As /init it loads the modules that come with it, waits for the discs and ports
// that QEMU gives, and then hands over to the systemd on the root disc. Without
// such a disc it runs the job itself, in a machine that has /proc, /sys, bpffs,
// version 2 cgroups, tracefs and lo, and nothing else: no shell and no library.
// As /sbin/modprobe it then serves the kernel's requests for modules.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notRun is the status of a guest that did not run its job.
const notRun = 125

func main() {
	if filepath.Base(os.Args[0]) == "modprobe" {
		if err := modprobe(os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
		return
	}
	status, err := boot()
	if err != nil {
		fmt.Println("init:", err)
	}
	if err := tell(status); err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot returns the job's status, or not at all, where the guest has a systemd.
func boot() (status int, err error) {
	for _, m := range []mount{
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
	} {
		if err := m.do(); err != nil {
			return notRun, err
		}
	}
	if err := insertEarly(); err != nil {
		return notRun, err
	}
	devices, err := devices()
	if err != nil {
		return notRun, err
	}
	if err := awaitDevices(devices); err != nil {
		return notRun, err
	}
	if slices.Contains(devices, "root") {
		return notRun, handOver()
	}
	return runJob()
}

// mount is a file system to mount on a directory that need not be there.
type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
	}
	return nil
}

// devices are the names of what QEMU gives, which guest.sh has put into the
// kernel's command line.
func devices() ([]string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	for _, word := range strings.Fields(string(line)) {
		if names, ok := strings.CutPrefix(word, "guest.devices="); ok {
			return strings.Split(names, ","), nil
		}
	}
	return nil, errors.New("the kernel's command line names no guest.devices")
}

// awaitDevices links each disc and port as /dev/guest-NAME when it has appeared.
// There is no udev yet that would tell, so it looks again and again.
func awaitDevices(names []string) error {
	missing := slices.Clone(names)
	for deadline := time.Now().Add(time.Minute); len(missing) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("QEMU gives no device %s", strings.Join(missing, ", "))
		}
		missing = slices.DeleteFunc(missing, linkDevice)
	}
	return nil
}

func linkDevice(name string) bool {
	for _, pattern := range []string{"/sys/block/vd*/serial", "/sys/class/virtio-ports/*/name"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			text, _ := os.ReadFile(file)
			if strings.TrimSpace(string(text)) == name {
				return os.Symlink(filepath.Base(filepath.Dir(file)), "/dev/guest-"+name) == nil
			}
		}
	}
	return false
}

// handOver becomes the systemd on the root disc, which finds the job in /bed.
func handOver() error {
	for _, m := range []mount{
		{"/dev/guest-root", "/root", "ext4", unix.MS_NOATIME, ""},
		{"/dev/guest-modules", "/root/lib/modules", "ext4", unix.MS_RDONLY, ""},
		{"/dev/guest-job", "/root/bed", "ext4", unix.MS_RDONLY, ""},
		{"/dev", "/root/dev", "", unix.MS_MOVE, ""},
		{"/proc", "/root/proc", "", unix.MS_MOVE, ""},
		{"/sys", "/root/sys", "", unix.MS_MOVE, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := (mount{".", "/", "", unix.MS_MOVE, ""}).do(); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the root disc: %w", err)
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb"})
}

// tell tells guest.sh the job's status.
func tell(status int) error {
	return os.WriteFile("/dev/guest-status", fmt.Appendln(nil, status), 0)
}
