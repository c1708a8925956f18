package flows

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Buckets join without a gap or an overlap, and each duration is within the
// bounds of the one that counts it.
func TestHistogramBuckets(t *testing.T) {
	var last time.Duration
	for i := range HistogramBuckets {
		lower, upper := BucketBounds(i)
		if lower != last {
			t.Errorf("bucket %d begins at %d, the one before ends at %d", i, lower, last)
		}
		if bucketOf(lower) != i || upper > 0 && bucketOf(upper-1) != i {
			t.Errorf("bucket %d, from %d to %d, does not have its own bounds", i, lower, upper)
		}
		last = upper
	}
	for d, want := range map[time.Duration]int{-1: 0, 0: 0, 1023: 0, 1024: 1, 1279: 1, 1280: 2, 1<<37 - 1: HistogramBuckets - 2, 1 << 37: HistogramBuckets - 1, 1<<63 - 1: HistogramBuckets - 1} {
		if got := bucketOf(d); got != want {
			t.Errorf("%d ns is in bucket %d, want %d", d, got, want)
		}
	}
}

// Percentiles are as the rule has them when one sorts the durations themselves.
func TestHistogramPercentiles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 10, 99, 100, 101, 1000} {
		var h Histogram
		durations := make([]time.Duration, n)
		for i := range durations {
			durations[i] = time.Duration(float64(uint64(1)<<random.IntN(36)) * (1 + random.Float64()))
			h.Add(durations[i])
		}
		slices.Sort(durations)
		for _, percent := range []int{1, 50, 90, 99, 100} {
			exact := durations[(percent*n+99)/100-1]
			_, want := BucketBounds(bucketOf(exact))
			got := h.Percentile(float64(percent))
			if got != want {
				t.Errorf("p%d of %d is %v, want %v", percent, n, got, want)
			}
			if exact >= got || exact >= time.Microsecond*2 && float64(exact) < 0.8*float64(got) {
				t.Errorf("p%d of %d is %v, the exchange took %v", percent, n, got, exact)
			}
		}
	}
	var empty, long Histogram
	long.Add(time.Hour)
	if got := empty.Percentile(50); got != 0 {
		t.Errorf("p50 of nothing is %v", got)
	}
	if got := long.Percentile(50); got != 1<<37 {
		t.Errorf("p50 beyond the last bound is %v", got)
	}
}

func TestHistogramArithmetic(t *testing.T) {
	var before, more Histogram
	for d := time.Microsecond; d < time.Minute; d *= 3 {
		before.Add(d)
		more.Add(2 * d)
	}
	after := before
	after.Merge(&more)
	if got := after.Since(&before); got != more {
		t.Errorf("after - before is %v, want %v", got, more)
	}
	if got := before.Since(&after); got.Count() != 0 || got.Sum != 0 {
		t.Errorf("less than before is %v", got)
	}
}

// What JSON has of a histogram is all of it.
func TestDistribution(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{500, 1500, 1501, time.Millisecond, time.Hour} {
		h.Add(d)
	}
	text, err := json.Marshal(h.Distribution())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"count":5,"sum":3600001003501,"p50":1536,"p90":137438953472,"p99":137438953472,"max_bound":137438953472,` +
		`"buckets":[{"from":0,"to":1024,"count":1},{"from":1280,"to":1536,"count":2},{"from":917504,"to":1048576,"count":1},{"from":137438953472,"count":1}]}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	var d Distribution
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Histogram(); err != nil || got != h {
		t.Errorf("%v: %v", err, got)
	}
	d.Buckets[1].To++
	if _, err := d.Histogram(); err == nil {
		t.Error("another version's buckets are taken")
	}
	empty, _ := json.Marshal((&Histogram{}).Distribution())
	if string(empty) != `{"count":0,"sum":0,"buckets":[]}` {
		t.Errorf("of nothing: %s", empty)
	}
}
