// Package api is what the control socket says and is asked: the status, histograms, and the
// conditions of those who ask for events.
package api

import (
	"time"

	"github.com/flatd/flatd/bpf"
)

// ControlGroup may read from the control socket.
const ControlGroup = "flatd"

// Status is how flatd is, as /v1/status has it.
type Status struct {
	Version string    `json:"version"`
	Host    string    `json:"host"`
	Start   bpf.Start `json:"start"` // what was found in the kernel: fresh, adopt, replace
	Since   time.Time `json:"since"`
	// Programs is which of the two objects is in the kernel: flat, or flat510 before Linux 5.12.
	// Refused is why the verifier of a newer kernel did not take flat, which is to be reported.
	Programs string `json:"programs"`
	Refused  string `json:"programs_refused,omitempty"`

	Measuring bool `json:"measuring"`
	// TakingOver: programs of an older layout follow their requests to the end.
	TakingOver bool     `json:"taking_over,omitempty"`
	Summary    string   `json:"summary"` // one line, also that of systemctl status
	Problems   []string `json:"problems,omitempty"`
	Stuck      string   `json:"stuck,omitempty"` // what makes no progress

	Interfaces []InterfaceStatus `json:"interfaces"`
	Outputs    []OutputStatus    `json:"outputs"`
	Books      Books             `json:"books"`
	Ring       RingStatus        `json:"ring"`
	// Counters are the kernel's, since the pins were made (bpf/counters.h).
	Counters map[string]uint64 `json:"counters"`
}

// InterfaceStatus is one interface that is measured or, if there is an error,
// should be.
type InterfaceStatus struct {
	Name  string   `json:"name"`
	Index int      `json:"index,omitempty"`
	Mode  bpf.Mode `json:"attach,omitempty"` // tcx or clsact
	L3    bool     `json:"l3,omitempty"`     // no link header
	// Ahead are the programs of others that see its packets before flatd does,
	// and can swallow them.
	Ahead []string `json:"ahead,omitempty"`
	Error string   `json:"error,omitempty"`
}

// OutputStatus are the books of one output: offered = delivered + withheld +
// failed + dropped + queued.
type OutputStatus struct {
	Name      string `json:"name"`
	Offered   uint64 `json:"offered"`
	Delivered uint64 `json:"delivered"`
	Withheld  uint64 `json:"withheld"`
	Failed    uint64 `json:"failed"`
	Dropped   uint64 `json:"dropped"`
	Queued    uint64 `json:"queued"`
	Down      bool   `json:"down"`
	Error     string `json:"error,omitempty"`
}

// Books are what came in and where it went (DESIGN: the books balance). Those
// of the kernel count since the pins were made, those of the daemon since its
// start.
type Books struct {
	// requests = finished + timed_out + half_open + translated + not_looking + open + replaced + pending_full
	Requests    uint64 `json:"requests"`
	Finished    uint64 `json:"finished"`
	TimedOut    uint64 `json:"timed_out"`
	HalfOpen    uint64 `json:"half_open"`   // TCP attempts from outside that were not completed
	Translated  uint64 `json:"translated"`  // whose answer may have come to a translated address
	NotLooking  uint64 `json:"not_looking"` // during which flatd did not see every packet
	Open        uint64 `json:"open"`        // as of the last sweep, a second ago at most
	Overdue     uint64 `json:"overdue"`     // of these, timeouts that wait for room in the ring
	Replaced    uint64 `json:"replaced"`
	PendingFull uint64 `json:"pending_full"`
	Paused      uint64 `json:"paused"` // not in requests: not begun, while an interface was being attached
	// finished + timed_out + late + rescued = result_out + too_fast + sampled_out + ring_full +
	// read_before + read, and what is still in the ring
	Late       uint64 `json:"late"`    // answers after their timeout was reported
	Rescued    uint64 `json:"rescued"` // of pending_full, those that got an answer
	ResultOut  uint64 `json:"result_out"`
	TooFast    uint64 `json:"too_fast"`
	SampledOut uint64 `json:"sampled_out"`
	RingFull   uint64 `json:"ring_full"`

	ReadBefore uint64 `json:"read_before"` // records, by daemons before this one
	Read       uint64 `json:"read"`        // records, by this daemon
	// each output's offered = read + taken_over - taken_over_both - decode_errors + own
	TimeoutsSeen uint64 `json:"timeouts_seen"` // of read
	DecodeErrors uint64 `json:"decode_errors"`
	TakenOver    uint64 `json:"taken_over"` // records of programs of an older layout
	Own          uint64 `json:"own"`        // events about flatd itself, and summaries
	// What the ring of those programs had no room for, as far as no daemon before
	// this one has reported. Some of it the new programs may have reported.
	TakenOverLost uint64 `json:"taken_over_lost"`
	// What the settings left out of the exchanges of those programs.
	TakenOverOut uint64 `json:"taken_over_out"`
	// Records, of either ring, of exchanges that the programs of both layouts have begun:
	// left out, since the others' record is reported. Their sequence numbers are missing.
	TakenOverBoth uint64 `json:"taken_over_both"`
	// What daemons before this one have read and then ended with, while an output
	// was away, as far as they had not reported it as lost to every output.
	LostBefore uint64 `json:"lost_before"`
}

// RingStatus is the state of the event ring, in bytes.
type RingStatus struct {
	Size        int `json:"size"`
	Backlog     int `json:"backlog"`     // not read yet
	Outstanding int `json:"outstanding"` // read, but held back for an output
	// AtRisk is how many events have left the ring and some output does not have:
	// only queues hold them, and a restart or a crash would lose them.
	AtRisk int `json:"at_risk"`
}
