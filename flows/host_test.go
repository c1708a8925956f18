package flows

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestLocalHost(t *testing.T) {
	h, err := LocalHost()
	if err != nil {
		t.Fatal(err)
	}
	name, _ := os.Hostname()
	uuid, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if h.Name != name || len(h.BootID) != 8 || !strings.HasPrefix(string(uuid), h.BootID+"-") {
		t.Errorf("got %+v, want %s and the start of %s", h, name, uuid)
	}
}

func TestBootID(t *testing.T) {
	id, err := bootID([]byte("6f1c0d2e-1a2b-4c3d-8e4f-5a6b7c8d9e0f\n"))
	if id != "6f1c0d2e" || err != nil {
		t.Errorf("got %q, %v", id, err)
	}
	for _, bad := range []string{"", "6f1c0d2e", "6f1c0d2-", "6f1c0d2x-1a2b", "not a uuid\n"} {
		if _, err := bootID([]byte(bad)); !errors.Is(err, ErrBootID) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestID(t *testing.T) {
	tcp, timeout, status := tcpSample(), timeoutSample(), statusSample(ActionStart, "", 0)
	earlier := with(timeoutSample(), func(e *Event) { e.Request, e.Sequence = 0xa17, 0 })
	for e, want := range map[*Event]string{
		&tcp:     "6f1c0d2e-107187",
		&timeout: "6f1c0d2e-107191",
		&earlier: "6f1c0d2e-t0000000000000a17",
		&status:  "6f1c0d2e-s000000000000beef",
	} {
		if got := string(testHost.AppendID(nil, e)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
