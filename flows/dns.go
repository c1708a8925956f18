package flows

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Limits of RFC 1035, 2.3.4 and 4.1.1.
const (
	labelMax = 63
	nameMax  = 255
)

// SetQuestion takes name and type of the first question from the start of a
// question section (RFC 1035, 4.1.2), and reports whether there was a whole
// one. If there was not, or its name is compressed, there is no question
// afterwards; so SetQuestion(nil) takes it away. The bytes are copied.
func (d *DNS) SetQuestion(section []byte) bool {
	d.length, d.Type, d.hash = 0, 0, 0
	n := nameLength(section)
	if n == 0 || len(section) < n+2 {
		return false
	}
	d.length = uint8(copy(d.name[:], section[:n]))
	d.Type = binary.BigEndian.Uint16(section[n:])
	return true
}

// HasQuestion reports whether name and type of the first question are known.
func (d *DNS) HasQuestion() bool { return d.length > 0 || d.hash != 0 }

// nameLength returns the length of the wire name that b begins with, or 0 if
// it does not end within b, is too long, or is compressed.
func nameLength(b []byte) int {
	for i := 0; i < min(len(b), nameMax); i += 1 + int(b[i]) {
		switch {
		case b[i] == 0:
			return i + 1
		case b[i] > labelMax:
			return 0
		}
	}
	return 0
}

// AppendName appends the name of the question for people to read (RFC 1035,
// 5.1, and RFC 4343, 2.1): without the final dot, except for the root; dots
// and backslashes within a label are escaped, everything but printable ASCII
// is \DDD. Whatever was on the wire, the result is safe to show. With
// HashNames it is "hash:" and 16 hex digits. Without question it is nothing.
func (d *DNS) AppendName(dst []byte) []byte {
	switch {
	case !d.HasQuestion():
		return dst
	case d.HashNames:
		return appendHex(append(dst, hashed...), d.nameHash())
	case d.length == 1:
		return append(dst, '.')
	}
	name := d.name[:d.length]
	for i := 0; name[i] != 0; {
		if i > 0 {
			dst = append(dst, '.')
		}
		end := i + 1 + int(name[i])
		dst = appendLabel(dst, name[i+1:end])
		i = end
	}
	return dst
}

func appendLabel(dst, label []byte) []byte {
	for _, b := range label {
		switch {
		case b == '.' || b == '\\':
			dst = append(dst, '\\', b)
		case b > ' ' && b < 0x7f:
			dst = append(dst, b)
		default:
			dst = append(dst, '\\', '0'+b/100, '0'+b/10%10, '0'+b%10)
		}
	}
	return dst
}

// nameHash is FNV-1a of the wire name in lower case: names that are equal
// (RFC 4343, 3) have the same. The lengths of labels are below any letter.
func (d *DNS) nameHash() uint64 {
	if d.hash != 0 {
		return d.hash
	}
	hash := uint64(fnvBasis)
	for _, b := range d.name[:d.length] {
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		hash = (hash ^ uint64(b)) * fnvPrime
	}
	return hash
}

// AppendType appends the type of the question, such as AAAA, or TYPE65280 for
// one without a name (RFC 3597, 5). Without question it is nothing.
func (d *DNS) AppendType(dst []byte) []byte {
	if !d.HasQuestion() {
		return dst
	}
	if name, ok := typeNames[d.Type]; ok {
		return append(dst, name...)
	}
	return strconv.AppendUint(append(dst, "TYPE"...), uint64(d.Type), 10)
}

// rcodeMask has the bits of a response code: four of the header, and eight that
// EDNS puts in front of them (RFC 6891, 6.1.3).
const rcodeMask = 0xfff

// NamedRCodes is the first response code behind those that have names: what
// follows has but a number.
const NamedRCodes = len(rcodeNames)

// rcodeNames are those of the IANA registry "DNS RCODEs" in lower case. 16 is
// BADVERS in an answer; BADSIG is what TSIG calls it in its own record.
var rcodeNames = [...]string{
	"noerror", "formerr", "servfail", "nxdomain", "notimp", "refused",
	"yxdomain", "yxrrset", "nxrrset", "notauth", "notzone",
	"rcode11", "rcode12", "rcode13", "rcode14", "rcode15",
	"badvers", "badkey", "badtime", "badmode", "badname", "badalg", "badtrunc", "badcookie",
}

// rcodeName is a response code as flatd.result has it.
func rcodeName(code uint16) string {
	code &= rcodeMask
	if int(code) < NamedRCodes {
		return rcodeNames[code]
	}
	return numberedRCodes()[code]
}

// numberedRCodes are the response codes by number, made when the first one
// without a name is seen: most hosts never see any.
var numberedRCodes = sync.OnceValue(func() *[rcodeMask + 1]string {
	names := new([rcodeMask + 1]string)
	for code := range names {
		names[code] = "rcode" + strconv.Itoa(code)
	}
	return names
})

// rcodeOf is the inverse of rcodeName.
func rcodeOf(name string) (code uint16, ok bool) {
	if i := slices.Index(rcodeNames[:], name); i >= 0 {
		return uint16(i), true
	}
	digits, _ := strings.CutPrefix(name, "rcode")
	n, err := strconv.ParseUint(digits, 10, 16)
	code = uint16(n)
	return code, err == nil && n <= rcodeMask && rcodeName(code) == name
}

// typeNames are those of the IANA registry "Resource Record (RR) TYPEs" that
// are in use.
var typeNames = map[uint16]string{
	1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX",
	16: "TXT", 17: "RP", 18: "AFSDB", 24: "SIG", 25: "KEY", 28: "AAAA",
	29: "LOC", 33: "SRV", 35: "NAPTR", 36: "KX", 37: "CERT", 39: "DNAME",
	41: "OPT", 42: "APL", 43: "DS", 44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG",
	47: "NSEC", 48: "DNSKEY", 49: "DHCID", 50: "NSEC3", 51: "NSEC3PARAM",
	52: "TLSA", 53: "SMIMEA", 55: "HIP", 59: "CDS", 60: "CDNSKEY",
	61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD", 64: "SVCB", 65: "HTTPS",
	108: "EUI48", 109: "EUI64", 249: "TKEY", 250: "TSIG", 251: "IXFR",
	252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
}
