package board

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Snapshot is a Board at one moment. It may be read into again and again, which
// then takes no new memory; what it had before is gone.
type Snapshot struct {
	Group   Group
	Window  time.Duration // what was asked for
	Covered time.Duration // what the counts are of: the window, or since the start
	Cut     bool          // the window is shorter, for there are too many exchanges
	Total   Ranked
	Others  Ranked    // those beyond RowsMax
	Rows    []*Ranked // all other rows, see Sort

	store []Ranked
}

// Ranked is a row with what rows are ordered by.
type Ranked struct {
	Row      // its slots from the oldest to the latest
	P50, P99 time.Duration
	Rate     float64 // a second
}

// Read takes a snapshot of one group.
func (b *Board) Read(s *Snapshot, g Group, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	*s = Snapshot{
		Group: g, Window: b.window, Covered: now.Sub(b.from), Cut: b.cut,
		Rows: s.Rows[:0], store: slices.Grow(s.store[:0], len(b.byGroup[g].numbers)),
	}
	b.rank(&s.Total, &b.total, s.Covered)
	b.rank(&s.Others, b.byGroup[g].rows[others], s.Covered)
	for _, row := range b.byGroup[g].rows[others+1:] {
		if row.Count == 0 {
			continue
		}
		s.store = s.store[:len(s.store)+1]
		ranked := &s.store[len(s.store)-1]
		b.rank(ranked, row, s.Covered)
		s.Rows = append(s.Rows, ranked)
	}
}

// rank copies a row. A rate is that of a second at least: before, it would say
// more of the moment than of the traffic.
func (b *Board) rank(to *Ranked, row *Row, covered time.Duration) {
	to.Row = *row
	next := int(b.current+1) % Slots
	copy(to.Slots[:], row.Slots[next:])
	copy(to.Slots[Slots-next:], row.Slots[:next])
	to.P50, to.P99 = row.Histogram.Percentile(50), row.Histogram.Percentile(99)
	to.Rate = float64(row.Count) / max(covered, time.Second).Seconds()
}

// Order is what rows are ordered by, the greatest first.
type Order uint8

// The orders.
const (
	OrderRate Order = iota
	OrderP50
	OrderP99
	OrderFailures
	OrderTimeouts
	orders
)

var orderNames = [orders]string{"rate", "p50", "p99", "failures", "timeouts"}

// String returns the order's name.
func (o Order) String() string { return orderNames[o] }

// Orders are the names of all orders.
func Orders() []string { return slices.Clone(orderNames[:]) }

// ParseOrder is the inverse of Order.String.
func ParseOrder(name string) (Order, error) {
	i, err := indexOf(orderNames[:], name)
	return Order(i), err
}

// Next is the order after this one, and after the last the first.
func (o Order) Next() Order { return (o + 1) % orders }

// Sort orders the rows. Equal ones are ordered by rate, then by key, so that they
// do not change places on a screen.
func (s *Snapshot) Sort(o Order) {
	slices.SortFunc(s.Rows, func(a, b *Ranked) int {
		return cmp.Or(-compare(o, a, b), -cmp.Compare(a.Count, b.Count), compareKeys(&a.Key, &b.Key))
	})
}

func compare(o Order, a, b *Ranked) int {
	switch o {
	case OrderP50:
		return cmp.Compare(a.P50, b.P50)
	case OrderP99:
		return cmp.Compare(a.P99, b.P99)
	case OrderFailures:
		return cmp.Compare(a.Failed(), b.Failed())
	case OrderTimeouts:
		return cmp.Compare(a.Timeouts(), b.Timeouts())
	}
	return cmp.Compare(a.Count, b.Count)
}

func compareKeys(a, b *Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Side, b.Side), a.End.Compare(b.End), strings.Compare(a.Name, b.Name))
}
