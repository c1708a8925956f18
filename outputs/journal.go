package outputs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flatd/flatd/flows"
	"golang.org/x/time/rate"
)

// JournalSocket is where journald listens for native entries.
const JournalSocket = "/run/systemd/journal/socket"

// What the journal is to have.
const (
	ProfileBudget  = "budget"  // every event, within the token buckets
	ProfileAll     = "all"     // every event
	ProfileNotable = "notable" // failures, slow exchanges, status events and summaries
)

// The budget that a Journal has by default: events a second, and at once after a quiet time.
const (
	DefaultSuccessRate  = 10
	DefaultSuccessBurst = 200
	DefaultFailureRate  = 200
	DefaultFailureBurst = 2000
)

// JournalOptions configure a Journal. A zero field means the default.
type JournalOptions struct {
	Host    func() *flows.Host // as it is called at the moment
	Socket  string             // default JournalSocket
	Profile string             // default ProfileBudget

	// NoObjectUnit leaves failures and slow exchanges out of the journal of
	// the unit they are about.
	NoObjectUnit bool

	// The budget in events: so many a second, and so many at once after a
	// quiet time. Failures and slow exchanges have one of their own.
	SuccessRate, SuccessBurst int // default DefaultSuccessRate and so on
	FailureRate, FailureBurst int
}

// Journal writes events to journald. It speaks the native protocol itself,
// because no event may wait for a journald that stalls.
type Journal struct {
	host    func() *flows.Host
	profile string
	objects bool
	socket  journalSocket
	entry   []byte // reused

	successes, failures budget
}

// NewJournal checks the options; the first Write connects.
func NewJournal(o JournalOptions) (*Journal, error) {
	o.Profile, o.Socket = cmp.Or(o.Profile, ProfileBudget), cmp.Or(o.Socket, JournalSocket)
	switch o.Profile {
	case ProfileBudget, ProfileAll, ProfileNotable:
	default:
		return nil, fmt.Errorf("journald: profile %q: must be %q, %q or %q",
			o.Profile, ProfileBudget, ProfileAll, ProfileNotable)
	}
	return &Journal{
		host:      o.Host,
		profile:   o.Profile,
		objects:   !o.NoObjectUnit,
		socket:    journalSocket{path: o.Socket, fd: -1},
		successes: newBudget(cmp.Or(o.SuccessRate, DefaultSuccessRate), cmp.Or(o.SuccessBurst, DefaultSuccessBurst)),
		failures:  newBudget(cmp.Or(o.FailureRate, DefaultFailureRate), cmp.Or(o.FailureBurst, DefaultFailureBurst)),
	}, nil
}

// Name is "journald".
func (j *Journal) Name() string { return "journald" }

// Write sends one entry for each event that the profile lets through.
func (j *Journal) Write(ctx context.Context, events []*flows.Event) (Tally, error) {
	var t Tally
	now := time.Now()
	for _, e := range events {
		budget := j.budgetOf(e)
		if !budget.take(now) {
			t.Withheld++
			continue
		}
		j.entry = j.host().AppendJournal(j.entry[:0], e)
		if j.objects && notable(e) {
			j.entry = flows.AppendObjectUnit(j.entry, e)
		}
		switch err := j.socket.Send(ctx, j.entry); {
		case err == nil:
			t.Delivered++
		case errors.Is(err, errNoMemoryFile):
			t.Failed++
			t.Why = err
		default:
			budget.giveBack()
			return t, fmt.Errorf("journald: %w", err)
		}
	}
	return t, nil
}

var (
	unlimited = &budget{always: true}
	nothing   = &budget{}
)

// budgetOf is what the entry for e is paid from.
func (j *Journal) budgetOf(e *flows.Event) *budget {
	switch {
	case !e.Exchange() || j.profile == ProfileAll:
		return unlimited
	case j.profile == ProfileBudget && notable(e):
		return &j.failures
	case j.profile == ProfileBudget:
		return &j.successes
	case notable(e):
		return unlimited
	}
	return nothing
}

// notable is what somebody may want to look into.
func notable(e *flows.Event) bool { return e.Failed() || e.Slow }

// Close closes the socket. Every entry has reached journald's queue by then.
func (j *Journal) Close() error { return j.socket.Close() }

// budget is a token bucket whose tokens can be given back.
type budget struct {
	tokens *rate.Limiter // nil: always or never
	always bool
	spare  int // tokens taken for events that could not be sent
}

func newBudget(perSecond, burst int) budget {
	return budget{tokens: rate.NewLimiter(rate.Limit(perSecond), burst)}
}

func (b *budget) take(now time.Time) bool {
	if b.tokens == nil {
		return b.always
	}
	if b.spare > 0 {
		b.spare--
		return true
	}
	return b.tokens.AllowN(now, 1)
}

func (b *budget) giveBack() {
	if b.tokens != nil {
		b.spare++
	}
}
