package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runJob runs the job of a guest without a systemd and returns its status.
func runJob() (status int, err error) {
	for _, m := range []mount{
		{"tmpfs", "/tmp", "tmpfs", 0, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", 0, "mode=0755"},
		{"bpf", "/sys/fs/bpf", "bpf", 0, "mode=1700"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", 0, ""},
		{"/dev/guest-modules", "/lib/modules", "ext4", unix.MS_RDONLY, ""},
		{"/dev/guest-job", "/bed", "ext4", unix.MS_RDONLY, ""},
	} {
		if err := m.do(); err != nil {
			return notRun, err
		}
	}
	if err := setUpLoopback(); err != nil {
		return notRun, err
	}
	log, err := os.OpenFile("/dev/guest-log", os.O_WRONLY, 0)
	if err != nil {
		return notRun, err
	}
	defer log.Close()
	arguments, err := os.ReadFile("/bed/arguments")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return notRun, err
	}
	job := exec.Command("/bed/job", strings.FieldsFunc(string(arguments), func(r rune) bool { return r == '\n' })...)
	job.Dir = "/tmp"
	job.Env = []string{"FLATD_GUEST=1", "HOME=/tmp", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=/tmp"}
	job.Stdout, job.Stderr = log, log
	err = job.Run()
	if state := job.ProcessState; state != nil && state.Exited() {
		return state.ExitCode(), nil
	}
	return notRun, fmt.Errorf("run the job: %w", err)
}

func setUpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
