package exact

import (
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// TestTheLoadKnowsWhatItMade: every kind, both ways, with the answer that was planned.
func TestTheLoadKnowsWhatItMade(t *testing.T) {
	measured, far := testbed.Pair(t)
	l := Start(t, measured, far, Pace{Out: 1000, In: 500})
	time.Sleep(time.Second)
	began := time.Now()
	l.Open(9000)
	took := time.Since(began)
	made := l.Stop()
	results := make(map[string]int)
	open := 0
	for _, e := range made {
		if !e.Inbound && number(e.To.Addr()) > most/4 {
			open++
			continue
		}
		if (e.Took == 0) != (e.Result == "timeout") || e.Took > time.Second {
			t.Errorf("%s", e)
		}
		family := "4"
		if e.is6() {
			family = "6"
		}
		results[map[bool]string{false: "client ", true: "server "}[e.Inbound]+e.Kind+" "+e.Result+" "+family]++
	}
	if open != 9000 || len(results) != 2*(7+4+6) {
		t.Errorf("%d were opened at once; of the others %d kinds: %v", open, len(results), results)
	}
	t.Logf("%d made; 9000 at once in %s", len(made), took)
}
