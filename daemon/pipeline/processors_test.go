package pipeline

import (
	"runtime"
	"testing"
	"time"
)

func TestProcessorsComeAndGo(t *testing.T) {
	if processorsGiven {
		t.Skip("GOMAXPROCS is set")
	}
	all := runtime.GOMAXPROCS(0)
	t.Cleanup(runtime.SetDefaultGOMAXPROCS)
	var p processors
	p.spare()
	now, read := time.Now(), uint64(0)
	for _, step := range []struct {
		after time.Duration
		busy  bool
		want  int
	}{
		{0, false, 1},
		{time.Second, true, all},
		{2 * time.Second, false, all},
		{30 * time.Second, true, all},
		{30*time.Second + processorsFor, false, all}, // since it was busy last
		{31*time.Second + processorsFor, false, 1},
		{time.Hour, true, all},
	} {
		if step.busy {
			read += processorsMany
		}
		read++
		p.adjust(now.Add(step.after), read)
		if got := runtime.GOMAXPROCS(0); got != step.want {
			t.Errorf("after %v: %d CPUs in use, want %d", step.after, got, step.want)
		}
	}
}
