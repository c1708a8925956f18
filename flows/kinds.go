package flows

// kindInfo is what is known of a kind of event. What else differs by kind is in
// decode.go (what its record has) and fields.go (its fields).
type kindInfo struct {
	kind     Kind
	name     string // in configuration, filters, subjects and histograms
	action   string // event.action of an exchange
	protocol uint8  // of IP, for ICMP that over IPv4; 0: not one alone
}

// kindTable has every kind, those of exchanges first.
var kindTable = []kindInfo{
	{KindTCP, "tcp", "tcp-handshake", protocolTCP},
	{KindDNS, "dns", "dns-query", protocolUDP},
	{KindUDP, "udp", "udp-exchange", protocolUDP},
	{KindICMP, "icmp", "icmp-echo", protocolICMP},
	{KindStatus, "status", "", 0},
	{KindSummary, "summary", "", 0},
}

// infoOf has kindTable by number, and datasets event.dataset; what is no kind is "unknown".
var infoOf, datasets = func() (infos [256]kindInfo, datasets [256]string) {
	for k := range infos {
		infos[k].name = "unknown"
	}
	for _, i := range kindTable {
		infos[i.kind] = i
	}
	for k := range datasets {
		datasets[k] = "flatd." + infos[k].name
	}
	return infos, datasets
}()

// kindsByDataset has the kinds by event.dataset.
var kindsByDataset = func() map[string]Kind {
	kinds := make(map[string]Kind)
	for _, i := range kindTable {
		kinds[datasets[i.kind]] = i.kind
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
		names = append(names, datasets[i.kind])
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

// String returns "tcp", "dns", "udp", "icmp", "status" or "summary".
func (k Kind) String() string { return infoOf[k].name }

// Dataset returns event.dataset: "flatd.tcp", "flatd.status" and so on.
func (e *Event) Dataset() string { return datasets[e.Kind] }
