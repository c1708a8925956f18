package flows

import (
	"strconv"
	"strings"
)

// Owner is whose an exchange was, as far as the path of a cgroup tells. Events
// share owners, so nobody changes one. Whatever is unknown is empty; the
// methods may be called on nil, which knows nothing.
type Owner struct {
	Cgroup string // path below the root that this flatd sees: "/system.slice/nginx.service"

	Unit     string // of the system's manager: "nginx.service", "user@1000.service"
	UserUnit string // of a user's manager, below its Unit
	UserID   string // whose manager that is, in digits

	Container string // id; for LXC the name
}

// OwnerOf reads the path of a cgroup as systemd does (sd_pid_get_unit(3)):
// slices only group units, so a unit is the first component after them, and
// what is below it is that unit's own business. A user's manager is a unit, and
// its own units are below it by the same rule.
func OwnerOf(cgroup string) *Owner {
	o := &Owner{Cgroup: cgroup, Container: containerOf(cgroup)}
	rest := ""
	o.Unit, rest = firstUnit(cgroup)
	if user, ok := strings.CutPrefix(o.Unit, "user@"); ok {
		o.UserID = userID(strings.TrimSuffix(user, ".service"))
	}
	if o.UserID != "" || strings.HasPrefix(o.Unit, "capsule@") {
		o.UserUnit, _ = firstUnit(rest)
	}
	return o
}

// Service is the name by which its administrator knows it: the user's unit if
// there is one, else the system's.
func (o *Owner) Service() string {
	switch {
	case o == nil:
		return ""
	case o.UserUnit != "":
		return o.UserUnit
	}
	return o.Unit
}

func (o *Owner) cgroup() string {
	if o == nil {
		return ""
	}
	return o.Cgroup
}

func (o *Owner) container() string {
	if o == nil {
		return ""
	}
	return o.Container
}

// AppendObjectUnit appends, to an entry made by AppendJournal, the fields that
// put it among those of the unit it is about: journalctl -u and --user-unit
// look there, if the sender is root. They are what journald itself adds to an
// entry about a process (systemd.journal-fields(7), OBJECT_PID=). An event
// whose unit is unknown has none.
func AppendObjectUnit(dst []byte, e *Event) []byte {
	if e.Owner == nil {
		return dst
	}
	dst = appendObject(dst, "OBJECT_SYSTEMD_UNIT=", e.Owner.Unit)
	dst = appendObject(dst, "OBJECT_SYSTEMD_USER_UNIT=", e.Owner.UserUnit)
	return appendObject(dst, "OBJECT_SYSTEMD_OWNER_UID=", e.Owner.UserID)
}

// appendObject appends one field. Names of units have no newline in them.
func appendObject(dst []byte, field, value string) []byte {
	if value == "" {
		return dst
	}
	return append(append(append(dst, field...), value...), '\n')
}

// firstUnit returns the unit that a path is in, "" for none, and what is below
// it.
func firstUnit(path string) (unit, rest string) {
	for path != "" {
		component := ""
		component, path, _ = strings.Cut(path, "/")
		if component == "" {
			continue
		}
		unit = unitName(component)
		if !strings.HasSuffix(unit, ".slice") {
			return unit, path
		}
	}
	return "", ""
}

const unitNameMax = 255

// unitTypes are those of systemd.unit(5).
var unitTypes = map[string]bool{
	"service": true, "socket": true, "device": true, "mount": true, "automount": true, "swap": true,
	"target": true, "path": true, "timer": true, "slice": true, "scope": true,
}

// unitName returns the unit that a directory is named for, or "" if it cannot
// be one's. systemd puts a "_" before names that are like files of the kernel.
func unitName(component string) string {
	name := strings.TrimPrefix(component, "_")
	dot := strings.LastIndexByte(name, '.')
	if dot < 1 || len(name) > unitNameMax || !unitTypes[name[dot+1:]] {
		return ""
	}
	prefix := name[:dot]
	template, instance, hasInstance := strings.Cut(prefix, "@")
	if template == "" || hasInstance && instance == "" {
		return "" // a template does not run
	}
	if name[dot:] == ".slice" && hasInstance {
		return ""
	}
	for _, b := range []byte(prefix) {
		if !unitNameByte(b) {
			return ""
		}
	}
	return name
}

func unitNameByte(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' ||
		strings.IndexByte(`:-_.\@`, b) >= 0
}

// userID returns a uid as it was, or "" if it is none.
func userID(digits string) string {
	if _, err := strconv.ParseUint(digits, 10, 32); err != nil {
		return ""
	}
	return digits
}

// containerOf finds the innermost container of a path. Of those with a runtime
// of the OCI the id has 64 hex digits, and is a directory by itself or the end
// of a name.
func containerOf(path string) (id string) {
	parent := ""
	for component := range strings.SplitSeq(path, "/") {
		switch found := containerName(component); {
		case found != "":
			id = found
		case parent == "lxc" && component != "":
			id = component
		}
		parent = component
	}
	return id
}

func containerName(component string) string {
	if name, ok := strings.CutPrefix(component, "lxc.payload."); ok {
		return name
	}
	name := strings.TrimSuffix(component, ".scope")
	end := strings.LastIndexAny(name, "-:") + 1
	id, runtime := name[end:], strings.TrimRight(name[:end], "-:")
	// The monitor of a container is not in it.
	if !isContainerID(id) || strings.HasSuffix(runtime, "conmon") {
		return ""
	}
	return id
}

func isContainerID(s string) bool {
	const digits = 64
	if len(s) != digits {
		return false
	}
	for _, b := range []byte(s) {
		if (b < '0' || b > '9') && (b < 'a' || b > 'f') {
			return false
		}
	}
	return true
}
