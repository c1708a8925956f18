package flows

import "slices"

// String returns "client" or "server".
func (s Side) String() string {
	switch s {
	case SideClient:
		return "client"
	case SideServer:
		return "server"
	}
	return "unknown"
}

// ResultName returns flatd.result: "established", "answered", "refused",
// "unreachable" or "timeout"; for an answered DNS query its response code in
// lower case, such as "noerror", or "rcode11" for one without a name.
func (e *Event) ResultName() string {
	switch e.Result {
	case ResultEstablished:
		return "established"
	case ResultAnswered:
		if e.Kind == KindDNS {
			return rcodeName(e.DNS.RCode)
		}
		return "answered"
	case ResultRefused:
		return "refused"
	case ResultUnreachable:
		return "unreachable"
	case ResultTimeout:
		return "timeout"
	}
	return "unknown"
}

// ResultNames are those that ResultName gives exchanges, but for the response
// codes of DNS from NamedRCodes on.
func ResultNames() []string {
	names := []string{"established", "answered", "refused", "unreachable", "timeout"}
	for _, name := range rcodeNames {
		if !slices.Contains(names, name) { // DNS can refuse too
			names = append(names, name)
		}
	}
	return names
}

// Syslog levels (RFC 5424, 6.2.1) of the events.
const (
	PriorityWarning = 4 // no answer, a slow one, or a loss
	PriorityNotice  = 5 // an answer, but a negative one
	PriorityInfo    = 6
)

// Priority returns the syslog level of an event. What flatd does as it is told
// is Info; only a loss calls for a human. So are summaries: what they sum up
// has been told by its own level.
func (e *Event) Priority() int {
	switch {
	case e.Kind == KindSummary:
		return PriorityInfo
	case e.Kind == KindStatus:
		if e.Status != nil && (e.Status.Action == ActionLoss || e.Status.Action == ActionPreceded) {
			return PriorityWarning
		}
		return PriorityInfo
	case e.Slow, e.Result == ResultTimeout:
		return PriorityWarning
	case e.Failed():
		return PriorityNotice
	}
	return PriorityInfo
}

// ecsKind is event.kind.
func (e *Event) ecsKind() string {
	if e.Kind == KindSummary {
		return "metric"
	}
	return "event"
}

// exchangeKind is the kind of the exchange, or of those that are summed up.
func (e *Event) exchangeKind() Kind {
	if e.Summary != nil {
		return e.Summary.Kind
	}
	return e.Kind
}

// outcome is event.outcome, which only exchanges have.
func (e *Event) outcome() string {
	if e.Failed() {
		return "failure"
	}
	return "success"
}

// action is event.action.
func (e *Event) action() string {
	switch {
	case e.Exchange():
		return infoOf[e.Kind].action
	case e.Status != nil:
		return string(e.Status.Action)
	case e.Summary != nil:
		return string(e.Summary.Scope)
	}
	return ""
}

// The values of event.category and event.type are those that ECS 8.17 allows
// together.
var (
	categoryNetwork       = []string{"network"}
	flagsTruncated        = []string{"TC"}
	categoryProcess       = []string{"process"}
	categoryConfiguration = []string{"configuration"}

	typeStarted  = []string{"connection", "start"}
	typeDenied   = []string{"connection", "denied"}
	typeTraffic  = []string{"connection", "info"}
	typeProtocol = []string{"connection", "protocol"}
	typeStart    = []string{"start"}
	typeEnd      = []string{"end"}
	typeChange   = []string{"change"}
	typeInfo     = []string{"info"}
)

// categories is event.category.
func (e *Event) categories() []string {
	if e.Kind != KindStatus || e.Status == nil {
		return categoryNetwork
	}
	switch e.Status.Action {
	case ActionAttach, ActionDetach, ActionPreceded:
		return categoryNetwork
	case ActionConfig:
		return categoryConfiguration
	}
	return categoryProcess
}

// dnsFlags is dns.header_flags.
func (e *Event) dnsFlags() []string {
	if e.DNS.Truncated {
		return flagsTruncated
	}
	return nil
}

// types is event.type.
func (e *Event) types() []string {
	switch {
	case e.Kind == KindStatus:
		return e.statusTypes()
	case e.Kind == KindSummary:
		return typeInfo
	case e.Kind == KindDNS:
		return typeProtocol
	case e.Result == ResultEstablished:
		return typeStarted
	case e.Result == ResultRefused:
		return typeDenied
	}
	return typeTraffic
}

func (e *Event) statusTypes() []string {
	if e.Status == nil {
		return typeInfo
	}
	switch e.Status.Action {
	case ActionStart:
		return typeStart
	case ActionStop:
		return typeEnd
	case ActionConfig:
		return typeChange
	}
	return typeInfo
}

// transport is network.transport: the name of the IP protocol, as IANA has it.
func (e *Event) transport() string {
	switch e.protocolNumber() {
	case protocolTCP:
		return "tcp"
	case protocolUDP:
		return "udp"
	case protocolICMP:
		return "icmp"
	case protocolICMPv6:
		return "ipv6-icmp"
	}
	return ""
}

// application is network.protocol, "" where the packets do not tell.
func (e *Event) application() string {
	switch {
	case e.Kind == KindDNS:
		return "dns"
	case e.QUIC:
		return "quic"
	}
	return ""
}

// family is network.type.
func (e *Event) family() string {
	switch {
	case !e.Source.Addr().IsValid():
		return ""
	case e.Source.Addr().Is4():
		return "ipv4"
	}
	return "ipv6"
}

// direction is network.direction: which way the request went.
func (e *Event) direction() string {
	if e.Side == SideServer {
		return "ingress"
	}
	return "egress"
}
