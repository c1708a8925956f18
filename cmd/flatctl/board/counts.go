package board

import "github.com/flatd/flatd/flows"

// Counts are how many exchanges there were, how they ended and how long they took.
type Counts struct {
	Count   uint64
	Results [resultsMax]uint64 // by resultOf
	// Histogram has those that were answered, whatever the answer: a timeout has
	// no duration.
	Histogram flows.Histogram
}

const resultsMax = 32

var (
	resultNames = flows.ResultNames()
	resultIndex = func() map[string]uint8 {
		index := make(map[string]uint8, len(resultNames))
		for i, name := range resultNames {
			index[name] = uint8(i)
		}
		return index
	}()
	resultOther   = uint8(len(resultNames)) // a response code of DNS without a name
	resultTimeout = resultIndex["timeout"]
	successes     = []uint8{resultIndex["established"], resultIndex["answered"], resultIndex["noerror"]}
)

// resultOf is the index of an exchange's result in flows.ResultNames, or
// resultOther.
func resultOf(e *flows.Event) uint8 {
	if i, ok := resultIndex[e.ResultName()]; ok {
		return i
	}
	return resultOther
}

// Failed is how many did not end as the initiator hoped, timeouts among them.
func (t *Counts) Failed() uint64 {
	n := t.Count
	for _, i := range successes {
		n -= t.Results[i]
	}
	return n
}

// Timeouts is how many never got an answer.
func (t *Counts) Timeouts() uint64 { return t.Results[resultTimeout] }

// ByResult has the results that there were, and how many of each.
func (t *Counts) ByResult() map[string]uint64 {
	counts := make(map[string]uint64)
	for i, name := range resultNames {
		if t.Results[i] > 0 {
			counts[name] = t.Results[i]
		}
	}
	if n := t.Results[resultOther]; n > 0 {
		counts["other"] = n
	}
	return counts
}
