package flows

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the wall-clock time of moments that the kernel's programs noted
// in nanoseconds of CLOCK_BOOTTIME. It is safe for concurrent use.
type Clock struct {
	realtime, boottime func() int64

	offset  atomic.Int64 // CLOCK_REALTIME less CLOCK_BOOTTIME
	latest  atomic.Int64 // a time of CLOCK_BOOTTIME that has passed
	clamped atomic.Uint64
}

// NewClock returns a clock that is right until the wall clock is next set:
// see Refresh.
func NewClock() *Clock {
	return newClock(
		func() int64 { return readClock(unix.CLOCK_REALTIME) },
		func() int64 { return readClock(unix.CLOCK_BOOTTIME) },
	)
}

func newClock(realtime, boottime func() int64) *Clock {
	c := &Clock{realtime: realtime, boottime: boottime}
	c.Refresh()
	return c
}

// readClock returns nanoseconds. Both clocks are older than any kernel flatd
// runs on, so the call cannot fail.
func readClock(id int32) int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(id, &t)
	return t.Nano()
}

// Refresh measures anew how far the clocks are apart. Called now and then, it
// lets Wall follow steps and slewing of the wall clock.
//
// The one is read between two readings of the other; of several attempts the
// shortest counts, as the one least disturbed by the scheduler.
func (c *Clock) Refresh() {
	const attempts = 5
	var shortest int64
	for i := range attempts {
		before := c.boottime()
		wall := c.realtime()
		after := c.boottime()
		if took := after - before; i == 0 || took < shortest {
			shortest = took
			c.offset.Store(wall - before - took/2)
		}
		c.latest.Store(after)
	}
}

// Wall returns the wall-clock time of a moment of CLOCK_BOOTTIME, in
// nanoseconds. What happened cannot be in the future: such a moment becomes
// the present and is counted.
func (c *Clock) Wall(bootNS uint64) time.Time {
	// Most moments precede the latest reading; a batch costs one.
	if latest := c.latest.Load(); bootNS > uint64(latest) {
		now := c.boottime()
		c.latest.Store(now)
		if bootNS > uint64(now) {
			c.clamped.Add(1)
			bootNS = uint64(now)
		}
	}
	return time.Unix(0, int64(bootNS)+c.offset.Load())
}

// Clamped returns how many moments were in the future.
func (c *Clock) Clamped() uint64 { return c.clamped.Load() }
