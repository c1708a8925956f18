package bpf

// edges is how often each has been passed; it keeps them from being one.
var edges [112]uint64

// edge is a place in the code for each number, which the fuzzer distinguishes: below
// edgeRecords for a counter that moved, from there on for a kind, side and result of a
// record.
func edge(n int) {
	switch n {
	case 0:
		edges[0]++
	case 1:
		edges[1]++
	case 2:
		edges[2]++
	case 3:
		edges[3]++
	case 4:
		edges[4]++
	case 5:
		edges[5]++
	case 6:
		edges[6]++
	case 7:
		edges[7]++
	case 8:
		edges[8]++
	case 9:
		edges[9]++
	case 10:
		edges[10]++
	case 11:
		edges[11]++
	case 12:
		edges[12]++
	case 13:
		edges[13]++
	case 14:
		edges[14]++
	case 15:
		edges[15]++
	case 16:
		edges[16]++
	case 17:
		edges[17]++
	case 18:
		edges[18]++
	case 19:
		edges[19]++
	case 20:
		edges[20]++
	case 21:
		edges[21]++
	case 22:
		edges[22]++
	case 23:
		edges[23]++
	case 24:
		edges[24]++
	case 25:
		edges[25]++
	case 26:
		edges[26]++
	case 27:
		edges[27]++
	case 28:
		edges[28]++
	case 29:
		edges[29]++
	case 30:
		edges[30]++
	case 31:
		edges[31]++
	case 32:
		edges[32]++
	case 33:
		edges[33]++
	case 34:
		edges[34]++
	case 35:
		edges[35]++
	case 36:
		edges[36]++
	case 37:
		edges[37]++
	case 38:
		edges[38]++
	case 39:
		edges[39]++
	case 40:
		edges[40]++
	case 41:
		edges[41]++
	case 42:
		edges[42]++
	case 43:
		edges[43]++
	case 44:
		edges[44]++
	case 45:
		edges[45]++
	case 46:
		edges[46]++
	case 47:
		edges[47]++
	case 48:
		edges[48]++
	case 49:
		edges[49]++
	case 50:
		edges[50]++
	case 51:
		edges[51]++
	case 52:
		edges[52]++
	case 53:
		edges[53]++
	case 54:
		edges[54]++
	case 55:
		edges[55]++
	case 56:
		edges[56]++
	case 57:
		edges[57]++
	case 58:
		edges[58]++
	case 59:
		edges[59]++
	case 60:
		edges[60]++
	case 61:
		edges[61]++
	case 62:
		edges[62]++
	case 63:
		edges[63]++
	case 64:
		edges[64]++
	case 65:
		edges[65]++
	case 66:
		edges[66]++
	case 67:
		edges[67]++
	case 68:
		edges[68]++
	case 69:
		edges[69]++
	case 70:
		edges[70]++
	case 71:
		edges[71]++
	case 72:
		edges[72]++
	case 73:
		edges[73]++
	case 74:
		edges[74]++
	case 75:
		edges[75]++
	case 76:
		edges[76]++
	case 77:
		edges[77]++
	case 78:
		edges[78]++
	case 79:
		edges[79]++
	case 80:
		edges[80]++
	case 81:
		edges[81]++
	case 82:
		edges[82]++
	case 83:
		edges[83]++
	case 84:
		edges[84]++
	case 85:
		edges[85]++
	case 86:
		edges[86]++
	case 87:
		edges[87]++
	case 88:
		edges[88]++
	case 89:
		edges[89]++
	case 90:
		edges[90]++
	case 91:
		edges[91]++
	case 92:
		edges[92]++
	case 93:
		edges[93]++
	case 94:
		edges[94]++
	case 95:
		edges[95]++
	case 96:
		edges[96]++
	case 97:
		edges[97]++
	case 98:
		edges[98]++
	case 99:
		edges[99]++
	case 100:
		edges[100]++
	case 101:
		edges[101]++
	case 102:
		edges[102]++
	case 103:
		edges[103]++
	case 104:
		edges[104]++
	case 105:
		edges[105]++
	case 106:
		edges[106]++
	case 107:
		edges[107]++
	case 108:
		edges[108]++
	case 109:
		edges[109]++
	case 110:
		edges[110]++
	case 111:
		edges[111]++
	}
}

const (
	edgeRecords = 64
	edgeResults = 5 // of each kind and side
)
