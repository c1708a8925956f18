package pipeline

import (
	"os"
	"runtime"
	"time"
)

// processors has the Go runtime use one CPU for as long as that is enough, as it
// nearly always is. What passes between the reader and the outputs then wakes
// nobody on another CPU, which was a third of what flatd took at 500 events a
// second; and on a host of many CPUs the runtime does not look for work on all of
// them. One CPU delivers some 40,000 events a second. Whoever sets GOMAXPROCS decides
// instead.
type processors struct {
	until time.Time // all are in use until then; zero: one is
	read  uint64    // records, as of the last look
}

const (
	// processorsMany is how many records between two looks, a second apart, are for all CPUs.
	processorsMany = 20_000
	// processorsFor is how long all are left in use once they were needed.
	processorsFor = time.Minute
)

var processorsGiven = os.Getenv("GOMAXPROCS") != ""

// spare begins with one.
func (p *processors) spare() {
	p.until = time.Time{}
	if !processorsGiven {
		runtime.GOMAXPROCS(1)
	}
}

// adjust takes or leaves CPUs, by how many records have been read in all.
func (p *processors) adjust(now time.Time, read uint64) {
	busy := read-p.read > processorsMany
	p.read = read
	if busy {
		if p.until.IsZero() && !processorsGiven {
			runtime.SetDefaultGOMAXPROCS()
		}
		p.until = now.Add(processorsFor)
	} else if !p.until.IsZero() && now.After(p.until) {
		p.spare()
	}
}
