package flows

import (
	"net/netip"
	"sync"
	"testing"
)

// everyShape calls do with changed copies of an exchange.
func everyShape(e Event, do func(*Event)) {
	ends := []netip.AddrPort{e.Source, netip.MustParseAddrPort("192.0.2.7:7"), netip.MustParseAddrPort("[2001:db8::7]:7")}
	for _, e.Kind = range ExchangeKinds() {
		for e.Result = 0; e.Result <= ResultTimeout; e.Result++ {
			for e.Side = 0; e.Side <= SideServer; e.Side++ {
				for n, end := range ends {
					changed := e
					changed.Source, changed.QUIC = end, n > 0
					if e.Kind != KindDNS {
						changed.DNS = DNS{} // as wherever events come from
					}
					do(&changed)
				}
			}
		}
	}
}

// What a shape has in common changes no byte, whether it is remembered or not.
func TestShapes(t *testing.T) {
	check := func(s *shapes, name string, e *Event) {
		want := testHost.appendObject(nil, formsOf(e), e)
		if got := testHost.appendObject(nil, s.forms(e), e); string(got) != string(want) {
			t.Errorf("%s: got  %s\nwant %s", name, got, want)
		}
	}
	common := new(shapes)
	for _, s := range samples() {
		check(common, s.name, &s.event)
		if !s.event.Exchange() {
			continue
		}
		everyShape(s.event, func(e *Event) { check(common, s.name, e) })
		everyShape(s.event, func(e *Event) { check(new(shapes), s.name, e) })
	}
	if n := len(*common.known.Load()); n != shapesMax {
		t.Errorf("%d shapes are remembered, want %d", n, shapesMax)
	}
}

func TestShapesConcurrently(t *testing.T) {
	common := new(shapes)
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			everyShape(dnsSample(), func(e *Event) {
				if len(common.forms(e)) == 0 {
					t.Error("no forms")
				}
			})
		})
	}
	users.Wait()
}
