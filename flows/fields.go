package flows

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Field is one row of the table of everything an event can say. JSON, journal,
// JSON Schema and manual are all made from it, in its order; fields of one JSON
// object stand together.
type Field struct {
	Path     string // in JSON: "source.ip"
	Type     FieldType
	Presence Presence
	Doc      string
	Values   []string // all there are; nil if that is open
	Pattern  string   // regular expression of the value, or ""

	// One of the three gives the value: value appends it as plain text, nothing
	// if it is unknown; number returns one, if it is known; list returns the
	// values of a TypeList.
	value  func(dst []byte, h *Host, e *Event) []byte
	number func(e *Event) (n uint64, known bool)
	list   func(e *Event) []string

	fixed bool // of an exchange: follows from its shape, whatever else it has
	kind  Kind // of the exchanges that have it; 0: all

	journal string
}

// FieldType is the type of a field's values, as ECS names them.
type FieldType string

// The types. TypeLong is a 64-bit integer; TypeList an array of keywords.
const (
	TypeDate    FieldType = "date"
	TypeKeyword FieldType = "keyword"
	TypeText    FieldType = "match_only_text"
	TypeList    FieldType = "keyword[]"
	TypeLong    FieldType = "long"
	TypeBoolean FieldType = "boolean"
	TypeIP      FieldType = "ip"
)

// Presence says which events have a field.
type Presence string

// The presences. What is in every exchange is in no status event; a summary may
// have its destination.
const (
	PresenceAlways   Presence = "always"
	PresenceExchange Presence = "every exchange"
	PresenceSummary  Presence = "every summary"
	PresenceKnown    Presence = "if known"
)

// SchemaVersion is flatd.schema: it changes when a field changes its meaning or
// goes away, not when one is added.
const SchemaVersion = 1

const ecsVersion = "8.17"

// messagePath is the one field that the journal has by another rule: every
// entry has a MESSAGE.
const messagePath = "message"

// Fields returns the table. It is the caller's to change.
func Fields() []Field { return slices.Clone(fields) }

// Journal returns the name of the field in the journal: the path in upper case
// with `_`, and without what a field name may not begin with.
func (f Field) Journal() string { return f.journal }

// fields is filled once, so that no event pays for the names.
var fields = func() []Field {
	table := slices.Concat(baseFields, networkFields, placeFields, ownerFields, dnsFields, flatdFields, summaryFields)
	for i := range table {
		f := &table[i]
		if f.number != nil {
			f.value = decimal(f.number)
		}
		f.journal = strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(f.Path, "@"), ".", "_"))
	}
	return table
}()

var baseFields = []Field{
	{Path: "@timestamp", Type: TypeDate, Presence: PresenceAlways,
		Doc: "Wall-clock time of the answer; of a timeout: first request packet plus limit.",
		value: func(dst []byte, _ *Host, e *Event) []byte {
			if e.Time.IsZero() {
				return dst
			}
			return appendTime(dst, e.Time.UTC())
		}},
	{Path: messagePath, fixed: true, Type: TypeText, Presence: PresenceKnown,
		Doc:   "What flatd has to say, in status events. In the journal every entry has a MESSAGE.",
		value: status(func(dst []byte, s *Status) []byte { return append(dst, s.Message...) })},
	{Path: "ecs.version", fixed: true, Type: TypeKeyword, Presence: PresenceAlways, Values: []string{ecsVersion},
		Doc:   "Version of the Elastic Common Schema that the names follow.",
		value: constant(ecsVersion)},
	{Path: "event.id", Type: TypeKeyword, Presence: PresenceAlways, Pattern: `^[0-9a-f]{8}-([0-9]+|[tsm][0-9a-f]{16})$`,
		Doc:   "Unique, and the same whenever the event is reported again: boot id and sequence number; for a timeout that was left by an earlier version at an upgrade, a hash of its request.",
		value: func(dst []byte, h *Host, e *Event) []byte { return h.AppendID(dst, e) }},
	{Path: "event.kind", fixed: true, Type: TypeKeyword, Presence: PresenceAlways, Values: []string{"event", "metric"},
		Doc:   "What ECS calls it: `metric` for a summary.",
		value: text((*Event).ecsKind)},
	{Path: "event.category", fixed: true, Type: TypeList, Presence: PresenceAlways, Values: []string{"network", "process", "configuration"},
		Doc:  "ECS category; `network` for every exchange.",
		list: (*Event).categories},
	{Path: "event.type", fixed: true, Type: TypeList, Presence: PresenceAlways, Values: []string{"connection", "start", "denied", "info", "protocol", "end", "change"},
		Doc:  "ECS types within the category.",
		list: (*Event).types},
	{Path: "event.dataset", fixed: true, Type: TypeKeyword, Presence: PresenceAlways, Values: datasetNames(),
		Doc:   "Kind of exchange, `flatd.status` for an event in flatd's own life, or `flatd.summary` for what an interval came to.",
		value: text((*Event).Dataset)},
	{Path: "event.action", fixed: true, Type: TypeKeyword, Presence: PresenceAlways,
		Values: append(exchangeActions(), "start", "stop", "attach", "detach", "loss", "config", "preceded", "exchanges", "destination", "books"),
		Doc:    "What was measured, what flatd did, or what a summary is of: all exchanges of a kind and side, those with one destination, or what was left out.",
		value:  text((*Event).action)},
	{Path: "event.outcome", fixed: true, Type: TypeKeyword, Presence: PresenceExchange, Values: []string{"success", "failure"},
		Doc:   "Whether the initiator got what it hoped for; flatd.result says how.",
		value: exchange((*Event).outcome)},
	{Path: "event.duration", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds from the first request packet to the answer: what the initiator waited. On the server side: from the request's arrival to the answer's departure. A timeout has none.",
		number: func(e *Event) (uint64, bool) { return uint64(e.Duration), e.Duration > 0 }},
	{Path: "event.sequence", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "The kernel's count of reported exchanges since boot; a gap is a loss. It is the order of reporting: a timeout is reported up to a second after its limit.",
		number: positive(func(e *Event) uint64 { return e.Sequence })},
}

var networkFields = []Field{
	{Path: "network.transport", fixed: true, Type: TypeKeyword, Presence: PresenceExchange, Values: []string{"tcp", "udp", "icmp", "ipv6-icmp"},
		Doc:   "Protocol above IP.",
		value: exchange((*Event).transport)},
	{Path: "network.type", fixed: true, Type: TypeKeyword, Presence: PresenceExchange, Values: []string{"ipv4", "ipv6"},
		Doc:   "Version of IP.",
		value: exchange((*Event).family)},
	{Path: "network.direction", fixed: true, Type: TypeKeyword, Presence: PresenceExchange, Values: []string{"egress", "ingress"},
		Doc:   "Which way the request went, seen from this host.",
		value: exchange((*Event).direction)},
	{Path: "network.protocol", fixed: true, Type: TypeKeyword, Presence: PresenceKnown, Values: []string{"dns", "quic"},
		Doc:   "Application protocol.",
		value: exchange((*Event).application)},
	{Path: "network.community_id", Type: TypeKeyword, Presence: PresenceExchange, Pattern: `^1:[A-Za-z0-9+/]{27}=$`,
		Doc: "Community ID version 1, seed 0, as Zeek, Suricata and Wireshark compute it.",
		value: func(dst []byte, _ *Host, e *Event) []byte {
			if !e.Exchange() {
				return dst
			}
			return e.AppendCommunityID(dst)
		}},
	{Path: "source.ip", Type: TypeIP, Presence: PresenceExchange,
		Doc:   "Address of the initiator, whichever side this host is on.",
		value: func(dst []byte, _ *Host, e *Event) []byte { return e.Source.Addr().AppendTo(dst) }},
	{Path: "source.port", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Port of the initiator. ICMP has none.",
		number: port(func(e *Event) netip.AddrPort { return e.Source })},
	{Path: "source.nat.ip", Type: TypeIP, Presence: PresenceKnown,
		Doc:   "Address of the initiator in the answer, where NAT translated it between the two packets.",
		value: natAddress(func(e *Event) netip.AddrPort { return e.NATSource })},
	{Path: "source.nat.port", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Its port there. ICMP has none.",
		number: port(func(e *Event) netip.AddrPort { return e.NATSource })},
	{Path: "destination.ip", Type: TypeIP, Presence: PresenceExchange,
		Doc:   "Address of the other end.",
		value: func(dst []byte, _ *Host, e *Event) []byte { return e.Destination.Addr().AppendTo(dst) }},
	{Path: "destination.port", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Port of the other end. ICMP has none.",
		number: port(func(e *Event) netip.AddrPort { return e.Destination })},
	{Path: "destination.nat.ip", Type: TypeIP, Presence: PresenceKnown,
		Doc:   "Address of the other end in the answer, where NAT translated it between the two packets.",
		value: natAddress(func(e *Event) netip.AddrPort { return e.NATDestination })},
	{Path: "destination.nat.port", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Its port there. ICMP has none.",
		number: port(func(e *Event) netip.AddrPort { return e.NATDestination })},
}

var placeFields = []Field{
	{Path: "observer.hostname", Type: TypeKeyword, Presence: PresenceAlways,
		Doc:   "Name of the host that measured.",
		value: func(dst []byte, h *Host, _ *Event) []byte { return append(dst, h.Name...) }},
	{Path: "observer.interface.name", Type: TypeKeyword, Presence: PresenceKnown,
		Doc:   "Interface on which the request was seen.",
		value: func(dst []byte, _ *Host, e *Event) []byte { return append(dst, e.Interface.Name...) }},
	{Path: "observer.interface.id", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Index of that interface.",
		number: positive(func(e *Event) uint64 { return uint64(max(e.Interface.Index, 0)) })},
	{Path: "observer.vlan.id", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Outermost VLAN of the request.",
		number: positive(func(e *Event) uint64 { return uint64(e.VLAN) })},
}

// ownerFields are those of the local end, on either side.
var ownerFields = []Field{
	{Path: "service.name", Type: TypeKeyword, Presence: PresenceKnown,
		Doc:   "systemd unit whose socket it was on this host; of a user's manager, the user's unit. A socket made by socket activation is that of its `.socket` unit.",
		value: text(func(e *Event) string { return e.Owner.Service() })},
	{Path: "user.id", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Numeric id of the user whose socket it was on this host.",
		number: func(e *Event) (uint64, bool) { return uint64(e.UID), e.Cgroup != 0 }},
	{Path: "process.pid", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Id of the process that asked for a TCP connection, where the kernel tells it to such programs (Linux 6.10) and there is no doubt.",
		number: positive(func(e *Event) uint64 { return uint64(e.Process.PID) })},
	{Path: "process.name", Type: TypeKeyword, Presence: PresenceKnown,
		Doc:   "Its name, at most 15 bytes, which it may choose (Linux 6.16).",
		value: func(dst []byte, _ *Host, e *Event) []byte { return e.Process.AppendName(dst) }},
	{Path: "container.id", Type: TypeKeyword, Presence: PresenceKnown,
		Doc:   "Id of the container whose socket it was; of LXC its name.",
		value: text(func(e *Event) string { return e.Owner.container() })},
}

var dnsFields = []Field{
	{Path: "dns.id", kind: KindDNS, Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Transaction id.",
		number: func(e *Event) (uint64, bool) { return uint64(e.DNS.ID), e.Kind == KindDNS }},
	{Path: "dns.question.name", kind: KindDNS, Type: TypeKeyword, Presence: PresenceKnown,
		Doc:   "Name of the first question, with `\\.` for a dot within a label and `\\DDD` for what is not printable; or `hash:` and 16 hex digits.",
		value: func(dst []byte, _ *Host, e *Event) []byte { return e.DNS.AppendName(dst) }},
	{Path: "dns.question.type", kind: KindDNS, Type: TypeKeyword, Presence: PresenceKnown,
		Doc:   "Type of the first question: `AAAA`, or `TYPE65280` for one without a name.",
		value: func(dst []byte, _ *Host, e *Event) []byte { return e.DNS.AppendType(dst) }},
	{Path: "dns.header_flags", kind: KindDNS, fixed: true, Type: TypeList, Presence: PresenceKnown, Values: []string{"TC"},
		Doc:  "`TC` if the answer was cut short; the resolver then asks again over TCP.",
		list: (*Event).dnsFlags},
	{Path: "dns.response_code", kind: KindDNS, fixed: true, Type: TypeKeyword, Presence: PresenceKnown,
		Doc: "Response code in upper case, extended codes of EDNS too; `RCODE24` for one without a name.",
		value: func(dst []byte, _ *Host, e *Event) []byte {
			if e.Kind != KindDNS || e.Result != ResultAnswered {
				return dst
			}
			return appendUpper(dst, e.ResultName())
		}},
}

// Facts are what JSON has of an exchange below `flatd` just as an Event has it: what is
// here needs but a row in the table, and ParseJSON reads it.
type Facts struct {
	Retransmits uint32 `json:"retransmits"` // further request packets before the answer
	Ambiguous   bool   `json:"ambiguous"`   // it is not known which request was answered
	Late        bool   `json:"late"`        // the answer came after the timeout was reported
	TTL         uint8  `json:"ttl"`         // TTL or hop limit of the remote end's packet
	Replayed    bool   `json:"replayed"`    // finished before this daemon started
	Slow        bool   `json:"slow"`        // took at least the configured `slow`
}

var flatdFields = []Field{
	{Path: "flatd.schema", fixed: true, Type: TypeLong, Presence: PresenceAlways,
		Doc:   "Version of these fields: 1.",
		value: constant(strconv.Itoa(SchemaVersion))},
	{Path: "flatd.result", fixed: true, Type: TypeKeyword, Presence: PresenceExchange,
		Doc:   "How it ended: `established`, `answered`, `refused`, `unreachable`, `timeout`; for DNS the response code, such as `noerror`, `nxdomain`, `servfail`, `badvers`.",
		value: exchange((*Event).ResultName)},
	{Path: "flatd.side", fixed: true, Type: TypeKeyword, Presence: PresenceExchange, Values: []string{"client", "server"},
		Doc:   "Whether this host asked or was asked.",
		value: exchange(func(e *Event) string { return e.Side.String() })},
	{Path: "flatd.rtt", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds from the request packet that was answered to the answer: the network's part.",
		number: func(e *Event) (uint64, bool) { return uint64(e.RTT), e.HasRTT && e.RTT > 0 }},
	{Path: "flatd.client_rtt", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds from this host's SYN/ACK to the ACK that completes the handshake, on the server side.",
		number: func(e *Event) (uint64, bool) { return uint64(e.ClientRTT), e.ClientRTT > 0 }},
	{Path: "flatd.icmp.type", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Type of the ICMP or ICMPv6 error, for `unreachable`.",
		number: icmpError(func(e *Event) uint8 { return e.ICMPType })},
	{Path: "flatd.icmp.code", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Code of the ICMP or ICMPv6 error, for `unreachable`.",
		number: icmpError(func(e *Event) uint8 { return e.ICMPCode })},
	{Path: "flatd.limit", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "Nanoseconds that a timeout waited for an answer.",
		number: func(e *Event) (uint64, bool) { return uint64(e.Limit), e.Limit > 0 }},
	{Path: "flatd.retransmits", Type: TypeLong, Presence: PresenceExchange,
		Doc:    "Further request packets before the answer.",
		number: func(e *Event) (uint64, bool) { return uint64(e.Retransmits), e.Exchange() }},
	{Path: "flatd.ambiguous", Type: TypeBoolean, Presence: PresenceKnown,
		Doc: "Whether it is unknown which of the request packets was answered. There is no flatd.rtt then.",
		value: func(dst []byte, _ *Host, e *Event) []byte {
			if !e.Exchange() || e.Result == ResultTimeout {
				return dst
			}
			return strconv.AppendBool(dst, e.Ambiguous)
		}},
	{Path: "flatd.late", Type: TypeBoolean, Presence: PresenceKnown,
		Doc:   "True if the answer came after the timeout of this exchange was reported, else absent.",
		value: whenTrue(func(e *Event) bool { return e.Late })},
	{Path: "flatd.ttl", Type: TypeLong, Presence: PresenceKnown,
		Doc:    "TTL or hop limit of the remote end's packet as it arrived.",
		number: positive(func(e *Event) uint64 { return uint64(e.TTL) })},
	{Path: "flatd.flow_hash", Type: TypeKeyword, Presence: PresenceExchange, Pattern: `^[0-9a-f]{16}$`,
		Doc: "FNV-1a of the five-tuple, the same for both directions.",
		value: func(dst []byte, _ *Host, e *Event) []byte {
			if !e.Exchange() {
				return dst
			}
			return appendHex(dst, e.FlowHash())
		}},
	{Path: "flatd.cgroup", Type: TypeKeyword, Presence: PresenceKnown,
		Doc:   "Path of the cgroup (version 2) in which the local socket was made.",
		value: text(func(e *Event) string { return e.Owner.cgroup() })},
	{Path: "flatd.replayed", Type: TypeBoolean, Presence: PresenceExchange,
		Doc: "Whether it ended before this daemon started.",
		value: func(dst []byte, _ *Host, e *Event) []byte {
			if !e.Exchange() {
				return dst
			}
			return strconv.AppendBool(dst, e.Replayed)
		}},
	{Path: "flatd.slow", Type: TypeBoolean, Presence: PresenceKnown,
		Doc:   "True if it took at least the configured `slow`, else absent.",
		value: whenTrue(func(e *Event) bool { return e.Slow })},
	{Path: "flatd.lost", fixed: true, Type: TypeLong, Presence: PresenceKnown,
		Doc: "How many events were lost, in a status event that reports a loss.",
		value: status(func(dst []byte, s *Status) []byte {
			if s.Action != ActionLoss {
				return dst
			}
			return strconv.AppendUint(dst, s.Lost, 10)
		})},
}

// appendTime appends a time of UTC with all of its nanoseconds.
func appendTime(dst []byte, t time.Time) []byte {
	dst = t.AppendFormat(dst, time.RFC3339) // which the library does fast
	dst = append(dst[:len(dst)-len("Z")], ".000000000Z"...)
	for i, n := len(dst)-len("Z"), t.Nanosecond(); n > 0; n /= 10 {
		i--
		dst[i] += byte(n % 10)
	}
	return dst
}

// What follows makes the value functions of the table.

type valueFunc = func(dst []byte, h *Host, e *Event) []byte

func constant(value string) valueFunc {
	return func(dst []byte, _ *Host, _ *Event) []byte { return append(dst, value...) }
}

func text(of func(*Event) string) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte { return append(dst, of(e)...) }
}

// exchange is text that only exchanges have.
func exchange(of func(*Event) string) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte {
		if !e.Exchange() {
			return dst
		}
		return append(dst, of(e)...)
	}
}

// status is what only status events have.
func status(of func([]byte, *Status) []byte) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte {
		if e.Kind != KindStatus || e.Status == nil {
			return dst
		}
		return of(dst, e.Status)
	}
}

// whenTrue is "true" or absent.
func whenTrue(of func(*Event) bool) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte {
		if !of(e) {
			return dst
		}
		return append(dst, "true"...)
	}
}

// natAddress is the address of a translated end, if one was.
func natAddress(of func(*Event) netip.AddrPort) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte { return of(e).Addr().AppendTo(dst) }
}

// decimal is a number as text.
func decimal(of numberFunc) valueFunc {
	return func(dst []byte, _ *Host, e *Event) []byte {
		if n, known := of(e); known {
			return strconv.AppendUint(dst, n, 10)
		}
		return dst
	}
}

type numberFunc = func(e *Event) (n uint64, known bool)

// positive is a number whose zero means unknown.
func positive(of func(*Event) uint64) numberFunc {
	return func(e *Event) (uint64, bool) {
		n := of(e)
		return n, n > 0
	}
}

// icmpError is a number of the error that ended an exchange; 0 is a code, too.
func icmpError(of func(*Event) uint8) numberFunc {
	return func(e *Event) (uint64, bool) { return uint64(of(e)), e.Result == ResultUnreachable }
}

func port(of func(*Event) netip.AddrPort) numberFunc {
	return func(e *Event) (uint64, bool) {
		end := of(e)
		return uint64(end.Port()), end.IsValid() && e.exchangeKind() != KindICMP
	}
}

// appendUpper appends ASCII letters in upper case.
func appendUpper(dst []byte, s string) []byte {
	for i := range len(s) {
		b := s[i]
		if 'a' <= b && b <= 'z' {
			b -= 'a' - 'A'
		}
		dst = append(dst, b)
	}
	return dst
}
