package bpf

import (
	"encoding/binary"
	"unsafe"
)

// What the kernel half computes too: half.h, attempt.h and question.h.

func mixed(hash, more uint64) uint64 {
	hash ^= more
	hash ^= hash >> 32
	hash *= 0x9e3779b97f4a7c15
	return hash ^ hash>>29
}

// flowHash is flow_hash of half.h, of the flow with the ends of a key.
func flowHash(seed uint64, key *kernelFlatKey) uint64 {
	word := func(i int) uint64 { return *(*uint64)(unsafe.Add(unsafe.Pointer(key), 8*i)) }
	local, remote := mixed(seed, word(1)), mixed(^seed, word(3))
	if word(0)|word(2) != 0 {
		local, remote = mixed(local, word(0)), mixed(remote, word(2))
	}
	return mixed(local+3*remote, uint64(key.Ifindex)<<32|uint64(uint32(key.LocalPort)<<16|uint32(key.RemotePort)))
}

// keyHash is what set_exchange of half.h makes of a key: the same for a request and its answer.
func keyHash(seed uint64, key *kernelFlatKey) uint64 {
	return mixed(flowHash(seed, key), key.Id) | 1<<63
}

// seenHash is attempt_hash of attempt.h, of a key.
func seenHash(seed uint64, side uint8, key *kernelFlatKey, isn uint32) uint64 {
	return mixed(keyHash(seed, key), uint64(side)<<32|uint64(isn))
}

// questionHash is what read_question of question.h returns for a question as on the wire.
func questionHash(seed uint64, question []byte) uint64 {
	length := nameLength(question)
	if length == 0 || length+4 > len(question) {
		return 0
	}
	hash := seed
	for i := 0; ; i += 8 {
		var octets [8]byte
		n := copy(octets[:], question[i:length])
		for j, c := range octets {
			if 'A' <= c && c <= 'Z' {
				octets[j] = c + 'a' - 'A'
			}
		}
		hash = mixed(hash, binary.NativeEndian.Uint64(octets[:]))
		if n < 8 {
			break
		}
	}
	var typeAndClass [8]byte
	copy(typeAndClass[:], question[length:length+4])
	hash = mixed(hash, binary.NativeEndian.Uint64(typeAndClass[:])) >> (64 - dnsIDShift)
	return max(hash, 1)
}

// nameLength is the octets of the name that a question begins with, 0 if it has no end.
func nameLength(question []byte) int {
	for at := 0; at < len(question) && at <= 254; at += int(question[at]) + 1 {
		switch label := question[at]; {
		case label == 0:
			return at + 1
		case label > 63:
			return 0
		}
	}
	return 0
}
