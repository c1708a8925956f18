package outputs

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/flatd/flatd/flows"
	"github.com/nats-io/nats.go"
)

// refusal is what the server said of a subject that may not be published to.
type refusal struct {
	why   error
	until time.Time // believed for so long; then an event tries it again
	// sure: the server has taken events of other subjects since. Until then it
	// may be that it takes none at all, which is an outage and will pass.
	sure bool
}

// refusesPublish reports whether the server has said that something may not be
// published.
func refusesPublish(err error) bool {
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), "for Publish to ")
}

// refusesSubject reports whether it has said so of this subject.
func refusesSubject(err error, subject string) bool {
	return refusesPublish(err) && strings.Contains(err.Error(), fmt.Sprintf("for Publish to %q", subject))
}

// refused is what is known of e's subject, or nil.
func (n *NATS) refused(e *flows.Event) *refusal {
	if len(n.refusals) == 0 {
		return nil
	}
	n.text = n.subject.Append(n.text[:0], n.options.Host(), e)
	return n.refusals[string(n.text)]
}

// learnRefusal remembers that the server does not take the subject of e.
func (n *NATS) learnRefusal(e *flows.Event, why error) {
	n.text = n.subject.Append(n.text[:0], n.options.Host(), e)
	r := n.refusals[string(n.text)]
	if r == nil {
		if len(n.refusals) >= routesMax {
			clear(n.refusals)
		}
		r = new(refusal)
		n.refusals[string(n.text)] = r
	}
	r.why, r.until = why, time.Now().Add(routesFor)
}

// ensureRefusals notes that the server has taken an event.
func (n *NATS) ensureRefusals() {
	for _, r := range n.refusals {
		r.sure = true
	}
}

// doubtRefusals has the subjects tried anew of which it is not sure that they
// alone are refused.
func (n *NATS) doubtRefusals() {
	maps.DeleteFunc(n.refusals, func(_ string, r *refusal) bool { return !r.sure })
}

// together is how many of events to publish at once: not too many for the
// server's pace, and an event that tries a refused subject goes alone.
func (n *NATS) together(events []*flows.Event) int {
	size := min(len(events), n.pace)
	for i, e := range events[:size] {
		if n.refused(e) != nil {
			return max(i, 1)
		}
	}
	return size
}
