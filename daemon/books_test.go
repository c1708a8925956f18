package daemon

import (
	"testing"
	"time"
)

// booksBalance waits until nothing is under way any more, and wants every
// request and every record to be in one place of flatd's books (DESIGN,
// section 12). It returns the status that says so.
func booksBalance(t testing.TB, p *process) state {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		s := p.status()
		wrong := s.imbalance()
		if wrong == "" {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("the books do not balance: %s\n%+v\n%+v\n%+v", wrong, s.Books, s.Ring, s.Outputs)
		}
	}
}

// imbalance names the account that does not balance, or that is still open.
func (s state) imbalance() string {
	b := s.Books
	switch {
	case b.Open != 0:
		return "requests are open"
	case s.Ring.Backlog != 0 || s.Ring.Outstanding != 0:
		return "records are in the ring"
	case b.Requests != b.Finished+b.TimedOut+b.HalfOpen+b.Translated+b.NotLooking+b.Open+b.Replaced+b.PendingFull:
		return "requests != finished + timed_out + half_open + translated + not_looking + open + replaced + pending_full"
	case b.Finished+b.TimedOut+b.Late+b.Rescued != b.ResultOut+b.TooFast+b.SampledOut+b.RingFull+b.ReadBefore+b.Read:
		return "finished + timed_out + late + rescued != result_out + too_fast + sampled_out + ring_full + read_before + read"
	}
	for _, o := range s.Outputs {
		if o.Offered != b.Read+b.TakenOver-b.TakenOverBoth-b.DecodeErrors+b.Own {
			return o.Name + ": offered != read + taken_over - taken_over_both - decode_errors + own"
		}
		if o.Offered != o.Delivered+o.Withheld+o.Failed+o.Dropped+o.Queued {
			return o.Name + ": offered != delivered + withheld + failed + dropped + queued"
		}
	}
	return ""
}
