package flows

// Message is a type of journal entry. systemd/flatd.catalog explains each: what
// happened, and what to do.
type Message struct {
	ID    string // MESSAGE_ID: 128 bits in hex, never changed or used again
	Name  string // short and stable
	Title string // the catalog's subject
}

var (
	messageSuccess    = Message{"12a5617ebcd04e3686354bc7462cdaff", "success", "The network answered"}
	messageRefused    = Message{"20ebeef7873647c5b3ec23f1f43e5ddb", "refused", "A connection was refused"}
	messageUnreach    = Message{"dbd0aa4953ed4ba98470045c9328bdce", "unreachable", "A destination was unreachable"} // reserved
	messageTimeout    = Message{"b75200159e1c464d9cf48ea6edfe46f5", "timeout", "The network did not answer in time"}
	messageDNSFailure = Message{"46ff11ce4c184d29ab9dac48f59eed07", "dns-failure", "A DNS query was answered with an error"}
	messageSlow       = Message{"de2f8f00a529478ab714ca100c094514", "slow", "The network answered slowly"}
	messageStart      = Message{"c32bbe3309c8459faefacfb0be515e1f", "start", "flatd has started measuring"}
	messageStop       = Message{"5f7db40dc7114b97ac39cef94fd9cc1d", "stop", "flatd has stopped"}
	messageAttach     = Message{"dd0b7d46cdfc4c728a049d942a96d6a5", "attach", "flatd measures a network interface"}
	messageDetach     = Message{"c0a7d96f0cca4b0cb734b57ee4499272", "detach", "flatd no longer measures a network interface"}
	messageLoss       = Message{"21cad1d2d92a43aaa206d9e0176d5517", "loss", "flatd has lost events"}
	messageConfig     = Message{"a98fe71eddf6408788f53b21ba0e88b3", "config", "The configuration of flatd has changed"}
	messagePreceded   = Message{"d57ab7a17c4a4837a25f927b4e278e69", "preceded", "Other programs see the packets before flatd does"}
	messageSummary    = Message{"d078dfc2c6894f26b5580b7f7bae3ebf", "summary", "What the network came to"}
)

// Messages are all types of journal entries that events are written as.
var Messages = []Message{
	messageSuccess, messageRefused, messageUnreach, messageTimeout, messageDNSFailure, messageSlow,
	messageStart, messageStop, messageAttach, messageDetach, messageLoss, messageConfig,
	messagePreceded, messageSummary,
}

// MessageID returns the MESSAGE_ID of an event's journal entry, "" for an
// action that is not among Messages. How an exchange failed says more than
// that it was slow about it.
func (e *Event) MessageID() string {
	switch {
	case e.Kind == KindStatus:
		return e.statusMessageID()
	case e.Kind == KindSummary:
		return messageSummary.ID
	case e.Result == ResultTimeout:
		return messageTimeout.ID
	case e.Result == ResultRefused:
		return messageRefused.ID
	case e.Result == ResultUnreachable:
		return messageUnreach.ID
	case e.Failed():
		return messageDNSFailure.ID
	case e.Slow:
		return messageSlow.ID
	}
	return messageSuccess.ID
}

func (e *Event) statusMessageID() string {
	if e.Status == nil {
		return ""
	}
	switch e.Status.Action {
	case ActionStart:
		return messageStart.ID
	case ActionStop:
		return messageStop.ID
	case ActionAttach:
		return messageAttach.ID
	case ActionDetach:
		return messageDetach.ID
	case ActionLoss:
		return messageLoss.ID
	case ActionConfig:
		return messageConfig.ID
	case ActionPreceded:
		return messagePreceded.ID
	}
	return ""
}
