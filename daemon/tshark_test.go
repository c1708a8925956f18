package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
	"github.com/flatd/flatd/packaging/testbed/tshark"
)

func onSide(side string) func(event) bool {
	return func(e event) bool { return e.Flatd.Side == side }
}

func exchangeOf(e event) tshark.Exchange {
	return tshark.Exchange{
		Kind: strings.TrimPrefix(e.Event.Dataset, "flatd."), Side: e.Flatd.Side,
		Source:      netip.AddrPortFrom(netip.MustParseAddr(e.Source.IP), uint16(e.Source.Port)),
		Destination: netip.AddrPortFrom(netip.MustParseAddr(e.Destination.IP), uint16(e.Destination.Port)),
		Result:      e.Flatd.Result, ID: uint32(e.DNS.ID),
	}
}

// verdict is what tshark found, and the event that flatd made of each.
type verdict struct {
	tshark.Found
	event
}

// agree wants flatd's events on one side to be what tshark found, one for one:
// the same ends and result, retransmits, question. It returns the pairs.
func agree(t *testing.T, found []tshark.Found, events []event) (pairs []verdict) {
	t.Helper()
	reported := make(map[tshark.Exchange][]event)
	var got, want []tshark.Exchange
	for _, e := range events {
		x := exchangeOf(e)
		got = append(got, x)
		reported[x] = append(reported[x], e)
	}
	for _, f := range found {
		if f.Kind == "icmp" {
			f.ID = 0 // which echo it was is not in the event
		}
		want = append(want, f.Exchange)
		if all := reported[f.Exchange]; len(all) > 0 {
			pairs = append(pairs, verdict{f, all[0]})
			reported[f.Exchange] = all[1:]
		}
	}
	missing, invented := tshark.Differences(want, got)
	for _, x := range missing {
		t.Errorf("missing: %s", x)
	}
	for _, x := range invented {
		t.Errorf("invented: %s", x)
	}
	for _, v := range pairs {
		// A timeout is reported before the last of its retransmits.
		if v.Result != "timeout" && v.Flatd.Retransmits != v.Repeats {
			t.Errorf("%s: %d retransmits, tshark saw %d", v.Exchange, v.Flatd.Retransmits, v.Repeats)
		}
		if v.Found.Name != "" && v.DNS.Question.Name != v.Found.Name {
			t.Errorf("%s: asked %q, tshark saw %q", v.Exchange, v.DNS.Question.Name, v.Found.Name)
		}
	}
	return pairs
}

// sameDurations wants what flatd measured to be within 100 µs of what tshark did
// at the median: the capture is taken a few instructions from the programs.
func sameDurations(t *testing.T, pairs []verdict) {
	t.Helper()
	closeTo(t, "duration", pairs, func(v verdict) (got, want time.Duration) {
		return time.Duration(v.Event.Duration), v.Duration
	})
}

// closeTo compares one of the durations of all pairs that have it.
func closeTo(t *testing.T, what string, pairs []verdict, of func(verdict) (got, want time.Duration)) {
	t.Helper()
	var differences []time.Duration
	for _, v := range pairs {
		if got, want := of(v); want != 0 {
			differences = append(differences, (got - want).Abs())
		}
	}
	if len(differences) == 0 {
		t.Fatalf("no %s to compare", what)
	}
	slices.Sort(differences)
	median := differences[len(differences)/2]
	t.Logf("%s: %d of them differ from tshark's by %s at the median, %s at most", what, len(differences), median, differences[len(differences)-1])
	if median > 100*time.Microsecond {
		t.Errorf("%s differs from tshark's by %s at the median", what, median)
	}
}

// judge ends a flatd once it has told all that tshark found on one side of its
// host, and compares.
func (p *process) judge(t *testing.T, want []tshark.Found, side string) []verdict {
	t.Helper()
	p.waitN("what tshark found on the "+side+"'s side", len(want), onSide(side))
	return agree(t, want, slices.DeleteFunc(p.end(syscall.SIGINT), func(e event) bool { return e.Flatd.Side != side }))
}

// TestEventsAreTsharks sends real traffic between two hosts, each with a flatd,
// and has tshark judge what they report.
func TestEventsAreTsharks(t *testing.T) {
	for _, attach := range []string{"tcx", "clsact"} {
		t.Run(attach, func(t *testing.T) {
			client, server := testbed.Pair(t)
			binary := testbed.Build(t, "flatd", "")
			config := fmt.Sprintf("attach = %q\nmeasure.timeout = \"1500ms\"\n", attach)
			near := newSetup(t, client, binary, config).start(t)
			far := newSetup(t, server, binary, config).start(t)
			tr := newTraffic(t, client, server)
			atClient, atServer := tshark.StartCapture(t, client), tshark.StartCapture(t, server)
			const rounds = 3
			for range rounds {
				tr.everything()
			}
			near.waitN("all of the client's", rounds*(answeredOfEverything+silentOnClient), onSide("client"))
			far.waitN("all of the server's", rounds*(answeredOfEverything+silentOnServer), onSide("server"))
			atClient.End()
			atServer.End()
			sameDurations(t, near.judge(t, atClient.Found("client", tshark.Addressed(client)), "client"))
			sameDurations(t, far.judge(t, atServer.Found("server", tshark.Addressed(server)), "server"))
		})
	}
}
