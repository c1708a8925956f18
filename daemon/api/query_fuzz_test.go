package api

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"unicode"

	"github.com/flatd/flatd/flows"
)

// FuzzQueryParameters: what is asked for is refused with words that may be
// shown, or bounded, and then it can be compared with any event.
func FuzzQueryParameters(f *testing.F) {
	f.Add("kind=tcp&peer=10.0.0.0/8&port=1&slower=1s&limit=3")
	f.Add("limit=%1b%5b2J")
	f.Add("%1b%5b2J%e2%80%ae=x")
	f.Add("peer=fe80::1%25eth0%1b&unit=a%0ab&slower=%ff&follow=%07&format=text&color=1")
	f.Add("from=10.0.0.0/8&to=::/0&since=10m&since=2026-11-22T16:09:19Z&result=timeout")
	f.Add("result=" + strings.Repeat(",", wordsMax))
	events := []flows.Event{
		{},
		{Kind: flows.KindStatus, Status: &flows.Status{}},
		{
			Kind: flows.KindTCP, Side: flows.SideServer, Result: flows.ResultRefused, Owner: flows.OwnerOf("/a.service"),
			Source: netip.MustParseAddrPort("10.0.0.1:1"), Destination: netip.MustParseAddrPort("[fe80::1%eth0]:2"),
		},
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, err := ParseEventsQuery(values)
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("the message is %q", err)
			}
			return
		}
		if q.Limit < 0 || q.Limit > RecentMax {
			t.Errorf("limit %d", q.Limit)
		}
		for _, n := range []int{len(q.kinds), len(q.sides), len(q.results), len(q.peers), len(q.from), len(q.to), len(q.ports), len(q.interfaces), len(q.units)} {
			if n > wordsMax {
				t.Errorf("a list of %d", n)
			}
		}
		for i := range events {
			q.Match(&events[i])
		}
	})
}
