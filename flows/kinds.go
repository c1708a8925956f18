package flows

// Kind is what an exchange consists of. The values of exchanges are those of
// enum flat_kind in bpf/record.h, from 1 without a gap.
type Kind uint8

// The kinds of event. KindStatus is flatd's own: it started, attached to an
// interface, lost something. KindSummary is what an interval came to.
const (
	KindTCP     Kind = 1
	KindDNS     Kind = 2
	KindUDP     Kind = 3
	KindICMP    Kind = 4
	KindSummary Kind = 254
	KindStatus  Kind = 255
)

// kindInfo is what is known of a kind of event. What else differs by kind is in
// decode.go (what its record has) and fields.go (its fields).
type kindInfo struct {
	kind     Kind
	name     string // in configuration, filters, subjects and histograms
	dataset  string // event.dataset
	action   string // event.action of an exchange
	protocol uint8  // of IP, for ICMP that over IPv4; 0: not one alone
}

// kindTable has every kind, those of exchanges first.
var kindTable = []kindInfo{
	{KindTCP, "tcp", "flatd.tcp", "tcp-handshake", protocolTCP},
	{KindDNS, "dns", "flatd.dns", "dns-query", protocolUDP},
	{KindUDP, "udp", "flatd.udp", "udp-exchange", protocolUDP},
	{KindICMP, "icmp", "flatd.icmp", "icmp-echo", protocolICMP},
	{KindStatus, "status", "flatd.status", "", 0},
	{KindSummary, "summary", "flatd.summary", "", 0},
}

// infoOf has kindTable by number.
var infoOf = func() (infos [256]kindInfo) {
	for k := range infos {
		infos[k] = kindInfo{name: "unknown", dataset: "flatd.unknown"}
	}
	for _, i := range kindTable {
		infos[i.kind] = i
	}
	return infos
}()

// kindsByDataset has the kinds by event.dataset.
var kindsByDataset = func() map[string]Kind {
	kinds := make(map[string]Kind)
	for _, i := range kindTable {
		kinds[i.dataset] = i.kind
	}
	return kinds
}()

// ExchangeKinds are the kinds of exchanges.
func ExchangeKinds() (kinds []Kind) {
	for _, i := range kindTable {
		if (&Event{Kind: i.kind}).Exchange() {
			kinds = append(kinds, i.kind)
		}
	}
	return kinds
}

// ExchangeKindNames are their names.
func ExchangeKindNames() (names []string) {
	for _, k := range ExchangeKinds() {
		names = append(names, k.String())
	}
	return names
}

// KindNames are the names of all kinds of event.
func KindNames() (names []string) {
	for _, i := range kindTable {
		names = append(names, i.name)
	}
	return names
}

// datasetNames are the values of event.dataset.
func datasetNames() (names []string) {
	for _, i := range kindTable {
		names = append(names, i.dataset)
	}
	return names
}

// exchangeActions are the values of event.action that exchanges have.
func exchangeActions() (actions []string) {
	for _, k := range ExchangeKinds() {
		actions = append(actions, infoOf[k].action)
	}
	return actions
}

// String returns the kind's name, such as "tcp".
func (k Kind) String() string { return infoOf[k].name }

// Dataset returns event.dataset: "flatd.tcp", "flatd.status" and so on.
func (e *Event) Dataset() string { return infoOf[e.Kind].dataset }
