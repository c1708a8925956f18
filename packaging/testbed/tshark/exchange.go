package tshark

import (
	"fmt"
	"net/netip"
	"time"
)

// Exchange is one as tshark's dissection has it, or as flatd reports it.
type Exchange struct {
	Kind                string // "tcp", "dns", "udp", "icmp"
	Side                string // "client" or "server"
	Source, Destination netip.AddrPort
	Result              string // flatd.result
	ID                  uint32 // DNS: transaction; ICMP: identifier << 16 | sequence
}

func (x Exchange) String() string {
	return fmt.Sprintf("%s %s %s > %s %s id %#x", x.Kind, x.Side, x.Source, x.Destination, x.Result, x.ID)
}

// Found is an exchange and what else the packets say of it.
type Found struct {
	Exchange
	Frame     int // the one that ended it; of an unanswered one the request
	Duration  time.Duration
	RTT       time.Duration // if HasRTT
	HasRTT    bool
	ClientRTT time.Duration // TCP, server side
	Repeats   int           // further packets of the request
	Resent    int           // TCP: how many of them tshark calls retransmissions
	VLAN      int           // outermost, of the request
	TTL       int           // of the remote end's packet, if it is one
	Name      string        // of the DNS question, if both ends agree and everybody writes it alike
	Error     [2]int        // ICMP: type and code
	Late      bool          // it was said to be unreachable before

	state        state
	goesOn       bool // UDP: was sent again after it was unreachable
	requested    time.Duration
	sent         map[int64]time.Duration // TCP: when the SYN of each timestamp was sent
	isn, payload uint32                  // of the SYN
	completes    uint32                  // TCP, server side: the acknowledgment that is awaited
}

// Differences compares what is to be with what is: exchanges that are missing,
// and others that nobody had.
func Differences(want, got []Exchange) (missing, invented []Exchange) {
	count := make(map[Exchange]int)
	for _, x := range want {
		count[x]++
	}
	for _, x := range got {
		if count[x]--; count[x] < 0 {
			invented = append(invented, x)
		}
	}
	for _, x := range want {
		if count[x] > 0 {
			count[x]--
			missing = append(missing, x)
		}
	}
	return missing, invented
}

// Exchanges are those of what was found.
func Exchanges(found []Found) []Exchange {
	all := make([]Exchange, len(found))
	for i, f := range found {
		all[i] = f.Exchange
	}
	return all
}
