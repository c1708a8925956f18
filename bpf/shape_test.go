package bpf

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// shapeExchanges are about what stands before the transport header, on any
// link.
func shapeExchanges(t testing.TB, f flow) []exchange {
	syn := f.syn(t, 100)
	padded := append(bytes.Clone(syn), make([]byte, 6)...) // as Ethernet does
	skipped := func(counter string) counts { return counts{counter: 1} }

	all := []exchange{
		{"padding is no data", []packet{out(padded), in(f.back().synAck(t, 107)), in(f.back().synAck(t, 101))},
			[]want{client(kindTCP, established)}, counts{"requests": 1, "finished": 1, "wrong_ack": 1}},
		{"later fragment", []packet{out(fragment(syn, 1))}, nil, skipped("fragment")},
		{"the last possible fragment", []packet{out(fragment(syn, 0x1fff))}, nil, skipped("fragment")},
		{"first fragment without a whole header", []packet{out(fragment(stump(syn, 19), 0))}, nil, skipped("truncated")},
		{"sctp", []packet{out(f.raw(t, 132, syn[14:]...))}, nil, skipped("protocol")},
		{"esp", []packet{out(f.raw(t, 50, syn[14:]...))}, nil, skipped("protocol")},
		{"gre, and not what is in it", []packet{out(f.raw(t, 47, append([]byte{0, 0, 8, 0}, syn[14:]...)...))}, nil, skipped("protocol")},
		{"ip in ip, and not what is in it", []packet{out(f.raw(t, 4, flow4.syn(t, 100)[14:]...))}, nil, skipped("protocol")},
		{"ipv6 in ip, and not what is in it", []packet{out(f.raw(t, 41, flow6.syn(t, 100)[14:]...))}, nil, skipped("protocol")},
		{"another version", []packet{out(patched(syn, 0, 0x55))}, nil, skipped("malformed")},
		{"another version of a segment without SYN", []packet{out(patched(f.data(t), 0, 0x55))}, nil, skipped("malformed")},
		{"later fragment of one", []packet{out(fragment(f.data(t), 1))}, nil, skipped("fragment")},
	}
	for _, r := range everyKind(t, f) {
		for name, shape := range shapesOf(f) {
			all = append(all, exchange{r.name + ", " + name, []packet{out(shape(r.request)), in(shape(r.answer))},
				[]want{client(r.kind, r.result)}, counts{"requests": 1, "finished": 1}})
		}
	}
	if f.from.Addr().Is6() {
		return append(all, extensionExchanges(t, f)...)
	}
	broadcast := f
	broadcast.to = netip.MustParseAddrPort("255.255.255.255:9999")
	return append(all,
		exchange{"to everyone", []packet{out(broadcast.udp(t, 1))}, nil, skipped("multicast")},
		exchange{"header of four words", []packet{out(patched(syn, 0, 0x44))}, nil, skipped("malformed")},
		exchange{"header longer than the packet", []packet{out(patched(syn, 0, 0x4f))}, nil, skipped("truncated")},
		exchange{"length of nothing", []packet{out(patched(syn, 2, 0, 0))}, nil, skipped("malformed")},
		exchange{"length of less than the header", []packet{out(patched(syn, 2, 0, 19))}, nil, skipped("malformed")},
	)
}

// shapesOf are such as make no difference.
func shapesOf(f flow) map[string]func([]byte) []byte {
	if !f.from.Addr().Is6() {
		return map[string]func([]byte) []byte{
			"one word of options":  func(frame []byte) []byte { return withOptions(frame, 1) },
			"ten words of options": func(frame []byte) []byte { return withOptions(frame, 10) },
			"first fragment":       func(frame []byte) []byte { return fragment(frame, 0) },
		}
	}
	extended := func(kinds ...byte) func([]byte) []byte {
		return func(frame []byte) []byte { return withExtensions(frame, kinds...) }
	}
	return map[string]func([]byte) []byte{
		"hop-by-hop options":      extended(hopByHop),
		"routing header":          extended(routing),
		"destination options":     extended(destinationOptions),
		"authentication header":   extended(authentication),
		"atomic fragment":         extended(fragmentation),
		"first fragment":          func(frame []byte) []byte { return fragment(frame, 0) },
		"six extension headers":   extended(hopByHop, destinationOptions, routing, fragmentation, authentication, destinationOptions),
		"fragmented behind a hop": func(frame []byte) []byte { return withExtensions(fragment(frame, 0), hopByHop) },
	}
}

func extensionExchanges(t testing.TB, f flow) []exchange {
	syn := f.syn(t, 100)
	one := withExtensions(syn, hopByHop)
	far := patched(one, 41, 255) // a header of 2048 octets
	return []exchange{
		{"seven extension headers", []packet{out(withExtensions(syn, slices.Repeat([]byte{destinationOptions}, 7)...))},
			nil, counts{"extensions": 1}},
		{"later fragment behind other headers", []packet{out(withExtensions(fragment(syn, 5), hopByHop, routing))},
			nil, counts{"fragment": 1}},
		{"extension header longer than the packet", []packet{out(far)}, nil, counts{"truncated": 1}},
		{"extension header cut short", []packet{out(patched(stump(syn, 4), 48, routing))}, nil, counts{"truncated": 1}},
		{"nothing behind the header", []packet{out(patched(syn, 6, 59))}, nil, counts{"protocol": 1}},
		{"length of less than the extension header", []packet{out(patched(one, 4, 0, 7))}, nil, counts{"malformed": 1}},
		{"length of nothing", []packet{out(patched(syn, 4, 0, 0))}, nil, counts{"malformed": 1}},
	}
}

// linkExchanges are about Ethernet: tags, and what is no IP.
func linkExchanges(t testing.TB, f flow) []exchange {
	b := f.back()
	passes := counts{"requests": 1, "finished": 1}
	stacked := f.tagged(7, 8).syn(t, 100)
	stacked[12], stacked[13] = 0x88, 0xa8 // IEEE 802.1ad outside
	urgent := f.tagged(4095).syn(t, 100)
	urgent[14] |= 0xe0 // the highest priority
	typed := func(high, low byte) []byte {
		frame := f.syn(t, 100)
		frame[12], frame[13] = high, low
		return frame
	}
	// In front of an IP header: the labels of MPLS, the header of PPPoE.
	behind := func(high, low byte, header ...byte) []byte {
		return slices.Insert(typed(high, low), etherHeader, header...)
	}
	all := []exchange{
		{"802.1ad around 802.1Q", []packet{out(stacked), in(b.tagged(7, 8).synAck(t, 101))},
			[]want{client(kindTCP, established).in(7)}, passes},
		{"the highest vlan, with a priority", []packet{out(urgent), in(b.tagged(4095).synAck(t, 101))},
			[]want{client(kindTCP, established).in(4095)}, passes},
		{"priority tag", []packet{out(f.tagged(0).syn(t, 100)), in(b.tagged(0).synAck(t, 101))},
			[]want{client(kindTCP, established)}, passes},
		{"answer in another vlan", []packet{out(f.tagged(7).syn(t, 100)), in(b.synAck(t, 101))},
			[]want{client(kindTCP, established).in(7)}, passes},
		{"handshake from outside in a vlan", []packet{in(f.tagged(7).syn(t, 100)), out(b.tagged(7).synAck(t, 101)), in(f.tagged(7).ack(t, 101))},
			[]want{server(kindTCP, established).in(7)}, passes},
		{"three tags", []packet{out(f.tagged(7, 8, 9).syn(t, 100))}, nil, counts{"extensions": 1}},
		{"error in a vlan", []packet{out(f.tagged(7).udp(t, 1)), in(b.tagged(7).unreachable(t, f.udp(t, 1)))},
			[]want{client(ofUDP, unreachable).because(closedPort(f)).in(7)}, passes},

		{"to everyone's Ethernet address", []packet{out(to("ff:ff:ff:ff:ff:ff", f.udp(t, 1))), out(to("01:00:5e:00:00:fb", f.echo(t, 9, 1, false)))},
			nil, counts{"multicast": 2}},
		{"arp", []packet{out(typed(8, 6))}, nil, counts{"not_ip": 1}},
		{"arp in a vlan", []packet{out(patchedTag(f.tagged(7).syn(t, 100), 8, 6))}, nil, counts{"not_ip": 1}},
		{"lldp", []packet{out(to("01:80:c2:00:00:0e", typed(0x88, 0xcc)))}, nil, counts{"not_ip": 1}},
		{"mpls, and not what is in it", []packet{out(behind(0x88, 0x47, 0, 1, 1, 64))}, nil, counts{"not_ip": 1}},
		{"pppoe, and not what is in it", []packet{out(behind(0x88, 0x64, 0x11, 0, 0, 1, 0, 42, 0, 0x21))}, nil, counts{"not_ip": 1}},
		{"the length of an 802.3 frame", []packet{out(typed(0, 46))}, nil, counts{"not_ip": 1}},
	}
	for _, r := range everyKind(t, f) {
		for _, tags := range [][]uint16{{7}, {7, 8}} {
			all = append(all, exchange{r.name + map[int]string{1: ", tagged", 2: ", tagged twice"}[len(tags)],
				[]packet{out(tag(r.request, tags)), in(tag(r.answer, tags))},
				[]want{client(r.kind, r.result).in(7)}, passes})
		}
	}
	return all
}

// tag puts an untagged frame into VLANs.
func tag(frame []byte, vlans []uint16) []byte {
	for _, id := range slices.Backward(vlans) {
		header := []byte{byte(layers.EthernetTypeDot1Q >> 8), byte(layers.EthernetTypeDot1Q & 0xff), byte(id >> 8), byte(id)}
		frame = slices.Insert(bytes.Clone(frame), etherHeader-2, header...)
	}
	return frame
}

// patchedTag changes the EtherType behind one tag.
func patchedTag(frame []byte, high, low byte) []byte {
	frame[16], frame[17] = high, low
	return frame
}
