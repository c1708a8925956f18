package bpf

import (
	"strings"

	"golang.org/x/sys/unix"
)

// missingCapabilities names those of the three that flatd needs and this process
// does not have, or is "". CAP_SYS_ADMIN stands for each.
func missingCapabilities() string {
	var sets [2]unix.CapUserData // capabilities from 0 on and from 32 on
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if unix.Capget(&header, &sets[0]) != nil {
		return ""
	}
	has := func(c int) bool { return sets[c/32].Effective&(1<<(c%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) {
		return ""
	}
	var missing []string
	for _, c := range []struct {
		name string
		bit  int
	}{{"CAP_BPF", unix.CAP_BPF}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_PERFMON", unix.CAP_PERFMON}} {
		if !has(c.bit) {
			missing = append(missing, c.name)
		}
	}
	return strings.Join(missing, ", ")
}
