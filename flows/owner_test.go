package flows

import (
	"strings"
	"testing"
)

// containerID is as Docker and others make them.
const containerID = "1fcb4fe38b5ee1fb7a9b10f9d01ff6eb5d4b5a5e2a3c7b9d0e1f2a3b4c5d6e7f"

func TestOwnerOf(t *testing.T) {
	for _, c := range []struct{ name, path, unit, userUnit, userID, container string }{
		{name: "root", path: "/"},
		{name: "nothing", path: ""},
		{name: "manager", path: "/init.scope", unit: "init.scope"},
		{name: "service", path: "/system.slice/nginx.service", unit: "nginx.service"},
		{name: "instance", path: "/system.slice/system-getty.slice/getty@tty1.service", unit: "getty@tty1.service"},
		{name: "escaped instance", path: `/system.slice/system-openvpn.slice/openvpn@net\x2deu.service`, unit: `openvpn@net\x2deu.service`},
		{name: "instance with @", path: "/system.slice/mail@root@example.org.service", unit: "mail@root@example.org.service"},
		{name: "slice only", path: "/system.slice"},
		{name: "slices only", path: "/user.slice/user-1000.slice"},
		{name: "without a slice", path: "/nginx.service", unit: "nginx.service"},
		{name: "delegated", path: "/system.slice/nginx.service/workers/3", unit: "nginx.service"},
		{name: "unit below a unit", path: "/system.slice/a.service/b.service", unit: "a.service"},
		{name: "slice below a unit", path: "/system.slice/a.service/b.slice/c.service", unit: "a.service"},
		{name: "socket", path: "/system.slice/sshd.socket", unit: "sshd.socket"},
		{name: "mount's helper", path: `/system.slice/srv-data\x2d1.mount`, unit: `srv-data\x2d1.mount`},
		{name: "name like the kernel's", path: "/system.slice/_cpu.service", unit: "cpu.service"},
		{name: "named like a file", path: "/_cgroup.service", unit: "cgroup.service"},

		{name: "no type", path: "/system.slice/nginx"},
		{name: "unknown type", path: "/system.slice/nginx.svc"},
		{name: "type alone", path: "/system.slice/.service"},
		{name: "template", path: "/system.slice/getty@.service"},
		{name: "no template", path: "/system.slice/@tty1.service"},
		{name: "bad character", path: "/system.slice/a b.service"},
		{name: "control character", path: "/system.slice/a\x1b[2J.service"},
		{name: "bad UTF-8", path: "/system.slice/\xff.service"},
		{name: "too long", path: "/system.slice/" + strings.Repeat("x", 248) + ".service"},
		{name: "as long as can be", path: "/" + strings.Repeat("x", 247) + ".service", unit: strings.Repeat("x", 247) + ".service"},
		{name: "bad slice is no slice", path: "/a@b.slice/nginx.service"},
		{name: "no unit before a unit", path: "/payload/nginx.service"},
		{name: "trailing slash", path: "/system.slice/nginx.service/", unit: "nginx.service"},
		{name: "double slash", path: "//system.slice//nginx.service", unit: "nginx.service"},

		{name: "session", path: "/user.slice/user-1000.slice/session-3.scope", unit: "session-3.scope"},
		{name: "user's manager", path: "/user.slice/user-1000.slice/user@1000.service", unit: "user@1000.service", userID: "1000"},
		{name: "user's manager itself", path: "/user.slice/user-1000.slice/user@1000.service/init.scope",
			unit: "user@1000.service", userUnit: "init.scope", userID: "1000"},
		{name: "user's unit", path: "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
			unit: "user@1000.service", userUnit: "foo.service", userID: "1000"},
		{name: "user's scope", path: `/user.slice/user-0.slice/user@0.service/app.slice/app-gnome\x2dterminal-42.scope`,
			unit: "user@0.service", userUnit: `app-gnome\x2dterminal-42.scope`, userID: "0"},
		{name: "user's slice", path: "/user.slice/user-1000.slice/user@1000.service/app.slice", unit: "user@1000.service", userID: "1000"},
		{name: "manager of nobody", path: "/system.slice/user@alice.service/foo.service", unit: "user@alice.service"},
		{name: "manager of too many", path: "/user.slice/user@4294967296.service/foo.service", unit: "user@4294967296.service"},
		{name: "capsule", path: "/capsule.slice/capsule@web.service/app.slice/foo.service", unit: "capsule@web.service", userUnit: "foo.service"},

		{name: "docker, systemd driver", path: "/system.slice/docker-" + containerID + ".scope",
			unit: "docker-" + containerID + ".scope", container: containerID},
		{name: "docker, own cgroups", path: "/docker/" + containerID, container: containerID},
		{name: "systemd in docker", path: "/system.slice/docker-" + containerID + ".scope/system.slice/nginx.service",
			unit: "docker-" + containerID + ".scope", container: containerID},
		{name: "systemd in docker, own cgroups", path: "/docker/" + containerID + "/system.slice/nginx.service", container: containerID},
		{name: "containerd", path: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f2a.slice/cri-containerd-" + containerID + ".scope",
			unit: "cri-containerd-" + containerID + ".scope", container: containerID},
		{name: "containerd, own cgroups", path: "/kubepods/burstable/pod3f2a-11/" + containerID, container: containerID},
		{name: "containerd, mixed", path: "/system.slice/containerd.service/kubepods-burstable-pod3f2a.slice:cri-containerd:" + containerID,
			unit: "containerd.service", container: containerID},
		{name: "cri-o", path: "/kubepods.slice/kubepods-pod3f2a.slice/crio-" + containerID + ".scope/container",
			unit: "crio-" + containerID + ".scope", container: containerID},
		{name: "cri-o's monitor", path: "/kubepods.slice/kubepods-pod3f2a.slice/crio-conmon-" + containerID + ".scope",
			unit: "crio-conmon-" + containerID + ".scope"},
		{name: "podman", path: "/machine.slice/libpod-" + containerID + ".scope/container",
			unit: "libpod-" + containerID + ".scope", container: containerID},
		{name: "podman's monitor", path: "/machine.slice/libpod-conmon-" + containerID + ".scope", unit: "libpod-conmon-" + containerID + ".scope"},
		{name: "rootless podman", path: "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + containerID + ".scope/container",
			unit: "user@1000.service", userUnit: "libpod-" + containerID + ".scope", userID: "1000", container: containerID},
		{name: "container in a container", path: "/docker/" + strings.Repeat("a", 64) + "/docker/" + containerID, container: containerID},
		{name: "lxc", path: "/lxc.payload.web1/system.slice/nginx.service", container: "web1"},
		{name: "lxc's monitor", path: "/lxc.monitor.web1"},
		{name: "old lxc", path: "/lxc/web1/init.scope", container: "web1"},
		{name: "nspawn", path: `/machine.slice/machine-web\x2d1.scope/payload/init.scope`, unit: `machine-web\x2d1.scope`},
		{name: "not quite an id", path: "/docker/" + containerID[1:]},
		{name: "digest in capitals", path: "/docker/" + strings.ToUpper(containerID)},
	} {
		want := Owner{Cgroup: c.path, Unit: c.unit, UserUnit: c.userUnit, UserID: c.userID, Container: c.container}
		if got := *OwnerOf(c.path); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.name, got, want)
		}
	}
}

func TestService(t *testing.T) {
	var nobody *Owner
	for want, o := range map[string]*Owner{
		"":              nobody,
		"nginx.service": OwnerOf("/system.slice/nginx.service"),
		"foo.service":   OwnerOf("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service"),
	} {
		if got := o.Service(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAppendObjectUnit(t *testing.T) {
	for _, c := range []struct{ path, want string }{
		{"", ""},
		{"/", ""},
		{"/docker/" + containerID, ""},
		{"/system.slice/nginx.service", "OBJECT_SYSTEMD_UNIT=nginx.service\n"},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
			"OBJECT_SYSTEMD_UNIT=user@1000.service\nOBJECT_SYSTEMD_USER_UNIT=foo.service\nOBJECT_SYSTEMD_OWNER_UID=1000\n"},
		{"/system.slice/a\nPRIORITY=0\n.service", ""},
	} {
		e := tcpSample()
		e.Owner = OwnerOf(c.path)
		if got := string(AppendObjectUnit(nil, &e)); got != c.want {
			t.Errorf("%q: got %q, want %q", c.path, got, c.want)
		}
	}
	if got := AppendObjectUnit(nil, &Event{}); len(got) != 0 {
		t.Errorf("of nobody: %q", got)
	}
}

// Whoever may make cgroups chooses their names: what comes out of them fits
// where it goes.
func FuzzOwnerOf(f *testing.F) {
	f.Add("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service")
	f.Add("/lxc/\x1b/_._service")
	f.Fuzz(func(t *testing.T, path string) {
		o := OwnerOf(path)
		for _, unit := range []string{o.Unit, o.UserUnit} {
			if unit != "" && (unitName(unit) == "" || strings.ContainsAny(unit, "\n\x1b/ ")) {
				t.Errorf("unit %q of %q", unit, path)
			}
		}
		if o.UserUnit != "" && o.Unit == "" {
			t.Errorf("user unit %q of nobody's manager in %q", o.UserUnit, path)
		}
	})
}
