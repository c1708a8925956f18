package flows

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"
)

// The buckets of a Histogram, which are the kernel's (bpf/histogram.h): four to
// each power of two nanoseconds from 2^10 to 2^37, one for what is below and one
// for what is above.
const (
	histogramFirst   = 10
	histogramLast    = 37
	HistogramBuckets = 4*(histogramLast-histogramFirst) + 2
)

// Histogram counts exchanges by duration, in the kernel's buckets: so one that is
// made of events has the same figures as the kernel's of the same exchanges. The
// zero value is empty.
type Histogram struct {
	Sum     time.Duration
	Buckets [HistogramBuckets]uint64
}

// Add counts one exchange that took d.
func (h *Histogram) Add(d time.Duration) {
	h.Sum += d
	h.Buckets[bucketOf(d)]++
}

// Remove takes back what Add counted.
func (h *Histogram) Remove(d time.Duration) {
	h.Sum -= d
	h.Buckets[bucketOf(d)]--
}

// Merge adds what o has counted.
func (h *Histogram) Merge(o *Histogram) {
	h.Sum += o.Sum
	for i, n := range o.Buckets {
		h.Buckets[i] += n
	}
}

// Since returns what h has more than an earlier state of it. A bucket that has
// less counts as empty: then they are not of the same exchanges.
func (h *Histogram) Since(earlier *Histogram) Histogram {
	var d Histogram
	d.Sum = max(h.Sum-earlier.Sum, 0)
	for i, n := range h.Buckets {
		d.Buckets[i] = n - min(n, earlier.Buckets[i])
	}
	return d
}

// Count is the number of exchanges.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// Percentile returns a duration within which percent of the exchanges ended: the
// upper bound of the bucket that has the exchange of rank ceil(percent/100 *
// count), counted from the fastest. The exchange itself took less, and, from
// 1 µs on, at least four fifths of that. Of the last bucket, which has no upper
// bound, it is the lower, and of an empty histogram 0.
func (h *Histogram) Percentile(percent float64) time.Duration {
	i := h.PercentileBucket(percent)
	if i < 0 {
		return 0
	}
	lower, upper := BucketBounds(i)
	if upper == 0 {
		return lower
	}
	return upper
}

// PercentileBucket returns the bucket that Percentile is a bound of, -1 for an
// empty histogram.
func (h *Histogram) PercentileBucket(percent float64) int {
	count := h.Count()
	if count == 0 {
		return -1
	}
	rank := min(max(uint64(math.Ceil(percent/100*float64(count))), 1), count)
	for i, n := range h.Buckets {
		if n >= rank {
			return i
		}
		rank -= n
	}
	return -1 // the buckets hold count together
}

// bucketOf is histogram_bucket of bpf/histogram.h.
func bucketOf(d time.Duration) int {
	ns := uint64(max(d, 0))
	exponent := bits.Len64(ns) - 1
	switch {
	case exponent < histogramFirst:
		return 0
	case exponent >= histogramLast:
		return HistogramBuckets - 1
	}
	return 1 + 4*(exponent-histogramFirst) + int(ns>>(exponent-2)&3)
}

// BucketBounds returns the bounds of bucket i: it holds what took lower or
// longer, and less than upper. The last one has no upper bound: 0.
func BucketBounds(i int) (lower, upper time.Duration) {
	if i > 0 {
		lower = bucketUpper(i - 1)
	}
	if i < HistogramBuckets-1 {
		upper = bucketUpper(i)
	}
	return lower, upper
}

// bucketUpper is for all but the last bucket.
func bucketUpper(i int) time.Duration {
	return time.Duration(4+i%4) << (histogramFirst - 2 + i/4)
}

// Distribution is a histogram as JSON has it. Durations are in nanoseconds; the
// percentiles, by the rule of Percentile, are absent when nothing was counted.
type Distribution struct {
	Count    uint64        `json:"count"`
	Sum      time.Duration `json:"sum"`
	P50      time.Duration `json:"p50,omitempty"`
	P90      time.Duration `json:"p90,omitempty"`
	P99      time.Duration `json:"p99,omitempty"`
	MaxBound time.Duration `json:"max_bound,omitempty"` // the 100th percentile
	Buckets  []Bucket      `json:"buckets"`             // those that are not empty, in order
}

// Bucket counts exchanges that took From or longer, and less than To; without To
// there is no upper bound.
type Bucket struct {
	From  time.Duration `json:"from"`
	To    time.Duration `json:"to,omitempty"`
	Count uint64        `json:"count"`
}

// Distribution returns the histogram as JSON has it.
func (h *Histogram) Distribution() Distribution {
	d := Distribution{
		Count: h.Count(), Sum: h.Sum, Buckets: []Bucket{},
		P50: h.Percentile(50), P90: h.Percentile(90), P99: h.Percentile(99), MaxBound: h.Percentile(100),
	}
	for i, n := range h.Buckets {
		if n > 0 {
			from, to := BucketBounds(i)
			d.Buckets = append(d.Buckets, Bucket{From: from, To: to, Count: n})
		}
	}
	return d
}

// Histogram is the inverse of Histogram.Distribution. It refuses buckets that
// are not this version's.
func (d *Distribution) Histogram() (Histogram, error) {
	h := Histogram{Sum: d.Sum}
	for _, b := range d.Buckets {
		i := bucketOf(b.From)
		if from, to := BucketBounds(i); from != b.From || to != b.To {
			return Histogram{}, fmt.Errorf("a bucket from %d to %d ns: there is one from %d to %d", b.From, b.To, from, to)
		}
		h.Buckets[i] += b.Count
	}
	return h, nil
}

// HistogramResult is the result by which the kernel's histograms count the
// exchange: flatd.result, but for DNS answers, which are "answered" whatever
// their response code.
func (e *Event) HistogramResult() string {
	if e.Result == ResultAnswered {
		return "answered"
	}
	return e.ResultName()
}

// HistogramResults are those that HistogramResult gives finished exchanges.
func HistogramResults() []string { return slices.Clone(histogramResults) }

var histogramResults = []string{"established", "answered", "refused", "unreachable"}
