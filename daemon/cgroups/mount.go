package cgroups

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var errNotMounted = errors.New("no cgroup file system of version 2 is mounted")

const mountInfo = "/proc/self/mountinfo"

// findMount returns where the hierarchy of version 2 is mounted: on
// /sys/fs/cgroup, or next to version 1 on /sys/fs/cgroup/unified (systemd's
// "hybrid"), or wherever it may be. Within a cgroup namespace its root is that
// of the namespace.
func findMount() (string, error) {
	info, err := os.ReadFile(mountInfo)
	if err != nil {
		return "", fmt.Errorf("mounts: %w", err)
	}
	for _, point := range mountPoints(string(info)) {
		var fs unix.Statfs_t
		// Another mount may hide it.
		if unix.Statfs(point, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return point, nil
		}
	}
	return "", errNotMounted
}

// mountPoints returns where a hierarchy of version 2 is mounted, according to
// proc_pid_mountinfo(5), the best one first: the whole rather than a part of
// it, and the customary place rather than another.
func mountPoints(info string) []string {
	type mount struct {
		point string
		rank  int
	}
	var mounts []mount
	for line := range strings.Lines(info) {
		fields, rest, _ := strings.Cut(line, " - ")
		words := strings.Fields(fields)
		if len(words) < 5 || !strings.HasPrefix(rest, "cgroup2 ") {
			continue
		}
		m := mount{point: unescape(words[4])}
		if words[3] != "/" {
			m.rank += 2
		}
		if m.point != "/sys/fs/cgroup" && m.point != "/sys/fs/cgroup/unified" {
			m.rank++
		}
		mounts = append(mounts, m)
	}
	slices.SortStableFunc(mounts, func(a, b mount) int { return a.rank - b.rank })
	points := make([]string, 0, len(mounts))
	for _, m := range mounts {
		points = append(points, m.point)
	}
	return points
}

// unescape undoes what mountinfo has for blanks and backslashes (seq_path_root in Linux).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
