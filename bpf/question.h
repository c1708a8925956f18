/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The first question of a DNS message (RFC 1035, 4.1.2), which is part of what an
 * exchange is: two questions with one id are two exchanges.
 */
#pragma once

#include "report.h"

/* The shortest: the root's name, type and class. */
#define QUESTION_MIN 5
#define LABELS_MAX 127 /* of one octet each (RFC 1035, 2.3.4) */
#define NAME_WORDS 32

/* lower makes the ASCII letters among eight octets small ones (RFC 4343). */
static __always_inline __u64 lower(__u64 octets)
{
	const __u64 each = 0x0101010101010101, top = each << 7;
	__u64 low = octets & ~top;
	__u64 from_A = low + each * (0x80 - 'A');
	__u64 beyond_Z = low + each * (0x80 - 'Z' - 1);

	return octets | (from_A & ~beyond_Z & ~octets & top) >> 2;
}

/* first_octets keeps so many octets of eight, fewer than eight, and clears the others. */
static __always_inline __u64 first_octets(__u64 octets, __u32 number)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return octets & ((1ULL << 8 * number) - 1);
#else
	return octets & ~(~0ULL >> 8 * number);
#endif
}

/* name_length returns the octets of the name that a question begins with, or 0 if it has no end. */
static __always_inline __u32 name_length(const struct __sk_buff *skb, const struct flat_question *q)
{
	__u32 at = 0;

	for (int i = 0; i <= LABELS_MAX; i++) {
		__u8 label;

		at = opaque(skb, at); /* the same for the verifier in each round */
		label = q->question[at & 0xff];

		if (!label)
			return at + 1;
		at += label + 1;
		if (label > 63 || at > 254) /* a pointer (RFC 1035, 4.1.4), or too long */
			return 0;
	}
	return 0;
}

/* hash_name is the same for a name in capital and small letters. */
static __always_inline __u64 hash_name(const struct flat_question *q, __u32 length)
{
	const __u64 *words = (const void *)q->question;
	__u64 hash = flat_shared.seed;

	for (__u32 i = 0; i < NAME_WORDS; i++) {
		__u32 left = length - 8 * i;
		__u64 word = words[i];

		if (left < 8)
			return mixed(hash, lower(first_octets(word, left)));
		hash = mixed(hash, lower(word));
	}
	return hash;
}

/*
 * read_question reads into flat_scratch the question that begins at an offset of a
 * packet, of at most so many octets, and returns its hash, less than 2^40. It is 0,
 * and so is the length in flat_scratch, if there is no whole question.
 */
__checked_alone __u64 read_question(struct __sk_buff *skb, __u64 offset, __u64 octets)
{
	struct flat_scratch_values *values = scratch();
	struct flat_question *q;
	__u64 length = octets < QUESTION_MAX ? octets : QUESTION_MAX;
	__u64 hash, type_and_class = 0;
	__u32 name;

	if (!values)
		return 0;
	q = &values->question;
	q->length = 0;
	barrier_var(length);
	if (length < QUESTION_MIN || length > QUESTION_MAX ||
	    bpf_skb_load_bytes(skb, offset, q->question, length))
		return 0;
	name = opaque(skb, name_length(skb, q)); /* one way on for each of them */
	if (!name || name + 4 > length)
		return 0;
	barrier_var(name); /* or clang drops the bound that the verifier wants to see */
	name &= 0xff;
	/* Once more, without what follows it or was there before. */
	__builtin_memset(q->question, 0, sizeof(q->question));
	if (bpf_skb_load_bytes(skb, offset, q->question, name + 4))
		return 0;
	__builtin_memcpy(&type_and_class, &q->question[name], 4);
	q->length = name + 4;
	hash = opaque(skb, mixed(hash_name(q, name), type_and_class)) >> (64 - DNS_ID_SHIFT);
	return hash ? hash : 1;
}
