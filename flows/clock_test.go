package flows

import (
	"testing"
	"time"
)

// fakeClocks stand still unless a reading moves them on.
type fakeClocks struct {
	boot, offset int64
	steps        []int64 // what each reading of the boot clock takes
}

func (f *fakeClocks) boottime() int64 {
	if len(f.steps) > 0 {
		f.boot += f.steps[0]
		f.steps = f.steps[1:]
	}
	return f.boot
}

func (f *fakeClocks) realtime() int64 { return f.boot + f.offset }

const epoch = 1_800_000_000_000_000_000

func TestWall(t *testing.T) {
	f := &fakeClocks{boot: 5_000_000_000, offset: epoch}
	c := newClock(f.realtime, f.boottime)
	if got, want := c.Wall(3_000_000_001), time.Unix(0, epoch+3_000_000_001); !got.Equal(want) {
		t.Errorf("got %v, want %v", got, want)
	}

	// The wall clock is set an hour back.
	f.offset -= int64(time.Hour)
	c.Refresh()
	if got, want := c.Wall(3_000_000_001), time.Unix(0, epoch-int64(time.Hour)+3_000_000_001); !got.Equal(want) {
		t.Errorf("after the step: got %v, want %v", got, want)
	}
}

// Five attempts, the third undisturbed: the pair of readings around the wall
// clock's is short there, and the true offset lies in its middle.
func TestRefreshTakesShortest(t *testing.T) {
	f := &fakeClocks{boot: 1000, offset: epoch, steps: []int64{0, 5000, 10, 700, 10, 40, 10, 900, 10, 60}}
	c := newClock(f.realtime, f.boottime)
	// The fake reads the wall clock right after the first reading, so the
	// middle is 20 ns too late.
	if got := c.offset.Load(); got != epoch-20 {
		t.Errorf("offset is off by %d", got-epoch)
	}
}

func TestWallFuture(t *testing.T) {
	f := &fakeClocks{boot: 5_000_000_000, offset: epoch}
	c := newClock(f.realtime, f.boottime)
	f.boot += 1000
	now := time.Unix(0, epoch+f.boot)
	if got := c.Wall(uint64(f.boot)); !got.Equal(now) || c.Clamped() != 0 {
		t.Errorf("now: got %v, want %v, clamped %d", got, now, c.Clamped())
	}
	for i, moment := range []uint64{uint64(f.boot) + 1, 1 << 62, 1 << 63, 1<<64 - 1} {
		if got := c.Wall(moment); !got.Equal(now) || c.Clamped() != uint64(i+1) {
			t.Errorf("%d: got %v, want %v, clamped %d", moment, got, now, c.Clamped())
		}
	}
}

// The real clocks: a moment between two readings of the wall clock is told to
// lie between them, as far as reading the clocks takes time.
func TestNewClock(t *testing.T) {
	c := NewClock()
	before := time.Now()
	moment := uint64(c.boottime())
	after := time.Now()
	const slack = time.Second // a step of the wall clock, a stalled test
	if got := c.Wall(moment); got.Before(before.Add(-slack)) || got.After(after.Add(slack)) {
		t.Errorf("%v is not between %v and %v", got, before, after)
	}
	if c.Clamped() != 0 {
		t.Errorf("clamped %d", c.Clamped())
	}
}
