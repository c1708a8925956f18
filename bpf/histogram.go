package bpf

import (
	"fmt"
	"time"
)

// HistogramBuckets is the number of buckets of a histogram (histogram.h).
const HistogramBuckets = len(kernelFlatHistogram{}.Buckets)

// HistogramKey names a histogram; the values are those of record.h.
type HistogramKey struct {
	Ifindex            int
	Kind, Side, Result uint8
	IPv6               bool
}

// Histogram counts finished exchanges by duration, summed over CPUs.
type Histogram struct {
	HistogramKey
	Sum     time.Duration
	Buckets [HistogramBuckets]uint64
}

// Count is the number of exchanges in the histogram.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// BucketBound is the upper bound of bucket i, exclusive. The last bucket has
// none; its value here is its lower bound.
func BucketBound(i int) time.Duration {
	const first = 10 // HISTOGRAM_FIRST_EXPONENT
	if i == HistogramBuckets-1 {
		i--
	}
	return time.Duration(4+i%4) << (first - 2 + i/4)
}

// Histograms reads all histograms. Those of DNS answers are summed over their codes.
func (s *State) Histograms() ([]Histogram, error) {
	var all []Histogram
	places := make(map[HistogramKey]int)
	var key kernelFlatHistogramKey
	var perCPU []kernelFlatHistogram
	entries := s.maps.FlatHistograms.Iterate()
	for entries.Next(&key, &perCPU) {
		k := HistogramKey{Ifindex: int(key.Ifindex), Kind: key.Kind, Side: key.Side, Result: key.Result, IPv6: key.Ipv6 != 0}
		place, ok := places[k]
		if !ok {
			place = len(all)
			places[k] = place
			all = append(all, Histogram{HistogramKey: k})
		}
		h := &all[place]
		for i := range perCPU {
			h.Sum += time.Duration(perCPU[i].SumNs)
			for b, n := range perCPU[i].Buckets {
				h.Buckets[b] += n
			}
		}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("list histograms: %w", err)
	}
	return all, nil
}
