package control

import (
	"math"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

func (c *collector) collectHistograms(to chan<- prometheus.Metric) {
	histograms, err := c.daemon.Finished()
	if err != nil {
		to <- prometheus.NewInvalidMetric(durationMetric, err)
		return
	}
	for l, h := range mergeHistograms(histograms, c.pipeline.Names()) {
		to <- NewDurations(h, l.iface, l.kind, l.side, l.family, l.result)
	}
}

type histogramLabels struct{ iface, kind, side, family, result string }

// mergeHistograms adds up those that have the same labels: an interface that was
// made anew has another index and the same name, and response codes are no label.
func mergeHistograms(histograms []bpf.Histogram, names map[int]string) map[histogramLabels]*bpf.Histogram {
	merged := make(map[histogramLabels]*bpf.Histogram)
	for i := range histograms {
		h := &histograms[i]
		labels := labelsOf(h, names)
		sum, ok := merged[labels]
		if !ok {
			merged[labels] = h
			continue
		}
		sum.Sum += h.Sum
		for b, n := range h.Buckets {
			sum.Buckets[b] += n
		}
	}
	return merged
}

func labelsOf(h *bpf.Histogram, names map[int]string) histogramLabels {
	l := histogramLabels{
		iface: strconv.Itoa(h.Ifindex), kind: flows.Kind(h.Kind).String(), side: flows.Side(h.Side).String(),
		family: "ipv4", result: (&flows.Event{Kind: flows.Kind(h.Kind), Result: flows.Result(h.Result)}).HistogramResult(),
	}
	if name, ok := names[h.Ifindex]; ok {
		l.iface = interfaceLabel(name)
	}
	if h.IPv6 {
		l.family = "ipv6"
	}
	return l
}

// durations is one histogram in both of Prometheus' forms: the classic one for
// every scraper, and the native one for those that ask for protobuf.
type durations struct {
	prometheus.Metric // classic
	kernel            *bpf.Histogram
}

// NewDurations is a histogram of the kernel's as flatd_exchange_duration_seconds, with these labels.
func NewDurations(h *bpf.Histogram, labels ...string) prometheus.Metric {
	return durations{prometheus.MustNewConstHistogram(durationMetric, h.Count(), h.Sum.Seconds(), classicBuckets(h), labels...), h}
}

// Write implements prometheus.Metric.
func (d durations) Write(to *dto.Metric) error {
	if err := d.Metric.Write(to); err != nil {
		return err
	}
	addNative(to.Histogram, d.kernel)
	return nil
}

// classicBuckets are cumulative counts by upper bound in seconds, one bucket
// for each power of two nanoseconds. They are exact.
func classicBuckets(h *bpf.Histogram) map[float64]uint64 {
	buckets := make(map[float64]uint64)
	var sum uint64
	for i, n := range h.Buckets {
		sum += n
		if i%4 == 0 && i < len(h.Buckets)-1 {
			buckets[bpf.BucketBound(i).Seconds()] = sum
		}
	}
	return buckets
}

// nativeSchema has four buckets to a power of two, as the kernel has. They are
// not the same ones: the kernel's have bounds at 1, 1.25, 1.5 and 1.75 times a
// power of two nanoseconds, these at powers of 2^(1/4) seconds, and none of the
// one is one of the other, whatever the schema. (Custom bounds, schema -53, are
// for Prometheus to make of a classic histogram; no exposition format has them.)
//
// So each of the kernel's buckets becomes the one that its upper bound is in.
// That is its own bucket, none is between two that are not used, and what
// it says is never that something was faster than it was: all bounds are moved
// up, by 4 to 11 %. The zero bucket and the total are exact.
const nativeSchema = 2

// nativeIndex is the native bucket of each of the kernel's but the first. What
// took longer than the kernel distinguishes is right above the rest.
var nativeIndex = func() (index [bpf.HistogramBuckets]int32) {
	last := bpf.HistogramBuckets - 1
	for i := 1; i < last; i++ {
		index[i] = int32(math.Ceil(math.Log2(bpf.BucketBound(i).Seconds()) * (1 << nativeSchema)))
	}
	index[last] = index[last-1] + 1
	return index
}()

// addNative fills in the native form: spans of adjacent buckets, and in each
// bucket the difference from the one before.
func addNative(to *dto.Histogram, h *bpf.Histogram) {
	schema, zero, threshold := int32(nativeSchema), h.Buckets[0], bpf.BucketBound(0).Seconds()
	to.Schema, to.ZeroCount, to.ZeroThreshold = &schema, &zero, &threshold
	var before uint64
	var next int32 // index after the latest span, or 0
	for i := 1; i < len(h.Buckets); i++ {
		n := h.Buckets[i]
		if n == 0 {
			continue
		}
		if len(to.PositiveSpan) == 0 || nativeIndex[i] != next {
			offset, length := nativeIndex[i]-next, uint32(0)
			to.PositiveSpan = append(to.PositiveSpan, &dto.BucketSpan{Offset: &offset, Length: &length})
		}
		*to.PositiveSpan[len(to.PositiveSpan)-1].Length++
		to.PositiveDelta = append(to.PositiveDelta, int64(n-before))
		before, next = n, nativeIndex[i]+1
	}
}
