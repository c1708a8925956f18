/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * table.h: who owns an exchange, and that nothing stays behind when it is over.
 *
 * Two keys, A and B, name the same slot. Beside it there is a hash map with room for
 * one request, and the memory of recent requests. Each process is one run of a
 * program, on its own CPU; each statement that reads or writes what they share
 * is a step, between two of which the others may run. With -DFLAT510 there are no
 * slots: as if another had this one for ever.
 */
#include "safeguards.pml"

#define NOBODY 0
#define A 1
#define B 2
#define ALIEN 3

/*
 * Packets that ask, by number, which is also the time when they are sent. 2 is 1 sent
 * again while the program still looks at 1, 4 is another attempt with the same key.
 */
#define PACKETS 5
#define key_of(packet) ((packet) == 3 -> B : A)
#define attempt_of(packet) ((packet) == 2 -> 1 : (packet))

/* The seal of the request that a packet began; the C code has hash ^ first_ns. */
#define BROKEN 0
#ifdef NO_KEY_IN_SEAL
#define seal_of(key, packet) (packet)
#else
#define seal_of(key, packet) ((packet) + PACKETS * (key))
#endif

/* Where a request can lie. */
#define SLOT 0
#define ELEMENT 1
#define NOWHERE 2
typedef request {
	byte key; /* of the one in the slot */
	byte first;
	byte seal
}
request place[2];

/* The word of the slot, and of the hash map whose key has the element. */
byte tag, others;
byte linked;
bool taken, locked;

/*
 * The memory of requests that are not open any more, with room for one. Its seal is not
 * that of an open request, which has been in the same memory.
 */
typedef recent_request {
	byte key;
	byte first;
	byte seal
}
recent_request recent;
#ifdef NO_RECENT_DIFFERS
#define recent_seal_of(key, packet) seal_of(key, packet)
#else
#define recent_seal_of(key, packet) (seal_of(key, packet) + 100)
#endif

/* The books: of each packet, how what it began has ended. */
mtype = { FINISHED, TIMED_OUT, REPLACED, TABLE_FULL }
mtype ended[PACKETS];
bool begun[PACKETS], sent[PACKETS], answered[PACKETS], forgotten[PACKETS];
byte open[3]; /* of a key, the packet that began what is open */
byte running;

inline book_begun(packet)
{
	assert(open[key_of(packet)] == NOBODY); /* or one exchange is there twice */
	open[key_of(packet)] = packet;
	begun[packet] = true
}

inline book_ended(packet, how)
{
	assert(begun[packet] && ended[packet] == 0); /* or it is reported twice */
	ended[packet] = how;
	open[key_of(packet)] = NOBODY
}

/* The variables of a program run. */
mtype = { ENTERED, EXISTS, FULL }
#define PROGRAM                   \
	byte at = NOWHERE, first, seal; \
	bool owned;               \
	mtype entered

/* find sets `at` to where the request of this key lies. */
inline find(key_)
{
	if
	:: tag == key_ -> at = SLOT
	:: tag != key_ && others -> at = ELEMENT
	:: tag != key_ && !others -> at = NOWHERE
	fi;
	if
	:: at == SLOT && place[SLOT].key != key_ -> at = NOWHERE /* not yet, or no more */
	:: at == ELEMENT && linked != key_ -> at = NOWHERE
	:: else
	fi
}

/* own breaks the seal of the request found, and says in `owned` whether it was whole. */
inline own(key_, expected, how)
{
	first = expected;
	d_step {
#ifdef NO_SEAL
		owned = place[at].first != 0;
#else
		owned = place[at].seal == seal_of(key_, first);
#endif
		if
		:: owned ->
			assert(key_of(first) == key_); /* or one request has another's answer */
			place[at].seal = BROKEN;
			book_ended(first, how);
			answered[first] = (how == FINISHED)
		:: else
		fi
	}
}

/* write puts a request into a place. It belongs to nobody until it is sealed. */
inline write(where, packet)
{
	place[where].first = packet;
#ifdef NO_SEAL_LAST
	place[where].seal = seal_of(key_of(packet), packet)
#endif
}

inline seal_it(where, packet)
{
#ifdef NO_SEAL_LAST
	skip
#else
	place[where].seal = seal_of(key_of(packet), packet)
#endif
}

/* insert_in_map may find the map full at any time: there are other slots. */
inline insert_in_map(key_, packet)
{
	atomic {
		!locked; /* the bucket, by the kernel */
		if
		:: linked == key_ -> entered = EXISTS
		:: linked != key_ -> entered = FULL
		:: linked != key_ && !taken -> taken = true; locked = true; entered = ENTERED
		fi
	}
	if
	:: entered == ENTERED ->
		write(ELEMENT, packet);
		d_step { linked = key_; locked = false; book_begun(packet) }
		seal_it(ELEMENT, packet)
	:: else
	fi
}

/*
 * enter takes a request in: into the slot if that is free and the map has no request
 * of this slot, else into the map. So one key is never in both.
 */
inline enter(key_, packet)
{
	entered = 0;
#ifdef NO_ONE_WORD
	if
	:: tag == NOBODY ->
		if
		:: others && linked == key_ -> entered = EXISTS
		:: else ->
			d_step {
				if
				:: tag == NOBODY -> tag = key_; entered = ENTERED; book_begun(packet)
				:: else
				fi
			}
		fi
	:: tag == key_ -> entered = EXISTS
	:: else
	fi;
#else
	d_step {
		if
		:: tag == NOBODY && !others -> tag = key_; entered = ENTERED; book_begun(packet)
		:: else
		fi
	}
#endif
	if
	:: entered == ENTERED ->
		write(SLOT, packet);
		place[SLOT].key = key_;
		seal_it(SLOT, packet)
	:: entered == EXISTS
	:: entered == 0 ->
		d_step { /* one fetch-and-add: the tag is what it returned */
#ifndef NO_OTHERS_FIRST
			others++;
#endif
			if
			:: tag == key_ -> entered = EXISTS
			:: else
			fi
		}
		if
		:: entered == 0 -> insert_in_map(key_, packet)
		:: else
		fi;
		if
#ifdef NO_OTHERS_FIRST
		:: entered == ENTERED -> others++
#else
		:: entered != ENTERED -> others--
#endif
		:: else
		fi
	fi
}

/* remove takes out the request that its caller owns. */
inline remove(key_)
{
	find(key_);
	assert(at != NOWHERE); /* or it stays for ever */
	if
	:: at == SLOT ->
#ifdef NO_KEY_FIRST
		tag = NOBODY;
		place[SLOT].key = NOBODY
#else
		place[SLOT].key = NOBODY;
		tag = NOBODY
#endif
	:: at == ELEMENT ->
		atomic { !locked; assert(linked == key_); linked = NOBODY; taken = false }
		others--
	fi
}

/* recall moves a request into the recent memory. */
inline recall(key_, packet)
{
	d_step {
		forgotten[recent.first] = true;
		recent.key = key_;
		recent.first = packet;
		recent.seal = recent_seal_of(key_, packet)
	}
}

/* own_recent is own for the recent memory. */
inline own_recent(key_)
{
	owned = recent.key == key_ && recent.seal != BROKEN;
	if
	:: owned ->
		d_step { /* the element may be another key's by now */
			first = recent.first;
#ifdef NO_RECENT_KEY
			seal = recent.seal
#else
			seal = recent_seal_of(key_, first)
#endif
		}
	:: else -> first = 0
	fi;
	d_step {
#ifdef NO_RECENT_SEAL
		owned = first != 0 && recent.first != 0; /* who deletes the element */
		recent.first = 0;
#else
		owned = owned && recent.seal == seal;
#endif
		seal = 0;
		if
		:: owned ->
			assert(key_of(first) == key_); /* or one request has another's late answer */
			assert(ended[first] == TIMED_OUT || ended[first] == TABLE_FULL);
			assert(!answered[first]); /* or it is reported late twice */
			recent.seal = BROKEN;
			answered[first] = true
		:: else
		fi
	}
}

/* A packet asks. */
proctype Request(byte key, packet)
{
	PROGRAM;

	packet != 4 || sent[1];
	d_step { /* see is_known_repeat() */
		if
		:: recent.key == key && recent.seal != BROKEN && attempt_of(recent.first) == attempt_of(packet) ->
			owned = true
		:: recent.key == key && recent.seal != BROKEN && attempt_of(recent.first) != attempt_of(packet) ->
			forgotten[recent.first] = true;
			recent.seal = BROKEN
		:: else
		fi
	}
	if
	:: owned -> goto known
	:: else
	fi;
	enter(key, packet);
	if
	:: entered == EXISTS ->
		find(key);
		if
		:: at != NOWHERE ->
			first = place[at].first;
			if
			:: attempt_of(first) != attempt_of(packet) ->
				own(key, first, REPLACED);
				if
				:: owned ->
					remove(key);
					enter(key, packet);
					if
					:: entered == EXISTS -> entered = FULL /* counted as that */
					:: else
					fi
				:: else /* that one just ends: this is counted as a repeat of it */
				fi
			:: else /* a repeat */
			fi
		:: else
		fi
	:: else
	fi;
	if
	:: entered == FULL ->
		d_step { begun[packet] = true; ended[packet] = TABLE_FULL; recall(key, packet) }
	:: else
	fi;
known:	atomic { sent[packet] = true; running--; at = 0; first = 0; seal = 0; owned = false; entered = 0 }
}

/* A packet answers, as a rule what was last sent. */
proctype Answer(byte key)
{
	PROGRAM;
	byte asked;
	bool missed;

	atomic {
		sent[1] || sent[2] || sent[4];
		asked = open[key];
		asked = (sent[asked] -> asked : NOBODY)
	}
#ifdef NO_OPEN_FIRST
	own_recent(key);
	if
	:: owned -> goto out
	:: else
	fi;
#endif
	find(key);
	if
	:: at != NOWHERE ->
		first = place[at].first;
		own(key, first, FINISHED);
		if
		:: owned ->
			remove(key);
			goto out
		:: else -> goto out /* it is just ending: counted as an answer to that */
		fi
	:: else -> missed = true
	fi;
#ifndef NO_OPEN_FIRST
	own_recent(key);
	if
	:: owned -> goto out
	:: else
	fi;
#endif
	/*
	 * Nobody waits for this answer. Or it comes in the middle of a claim, when the seal
	 * is broken but the request is not a recent one yet: then the timeout alone is
	 * reported, and the answer is counted as unmatched.
	 */
	assert(!missed || asked == NOBODY || answered[asked] || forgotten[asked] || ended[asked] == REPLACED);
out:	atomic { running--; at = 0; first = 0; seal = 0; owned = false; entered = 0; asked = 0; missed = false }
}

/* claim is run by the sweep for a request that it has read in the table. */
inline claim(where)
{
	packet = place[where].first; /* what user space saw */
	if
	:: sent[packet] ->
		find(key_of(packet));
		if
		:: at != NOWHERE ->
#ifdef NO_FIRST_IN_CLAIM
			first = place[at].first;
			own(key_of(packet), first, TIMED_OUT);
			assert(!owned || first == packet); /* or what is not overdue times out */
#else
			own(key_of(packet), packet, TIMED_OUT);
#endif
			if
			:: owned ->
#ifdef NO_RECENT_FIRST
				remove(key_of(packet));
				recall(key_of(packet), packet)
#else
				place[at].seal = recent_seal_of(key_of(packet), packet); /* it is copied from there */
				recall(key_of(packet), packet);
				remove(key_of(packet))
#endif
			:: else
			fi
		:: else
		fi
	:: else
	fi
}

proctype Sweep()
{
	PROGRAM;
	byte packet;

	if /* once while the others run */
	:: claim(SLOT)
	:: claim(ELEMENT)
	:: skip
	fi;
	running == 0;
	claim(SLOT);
	claim(ELEMENT);

	/* Nothing stays behind, and the books balance. */
#ifdef FLAT510
	assert(tag == ALIEN && others == 1);
#else
	assert(tag == NOBODY && others == 0);
#endif
	assert(!taken && linked == NOBODY);
	for (packet : 1 .. PACKETS - 1) {
		assert(!begun[packet] || ended[packet])
	}
}

init {
	atomic {
#ifdef FLAT510
		tag = ALIEN;
		others = 1;
#endif
		if
		:: running = 4; run Request(A, 1); run Request(A, 4); run Answer(A); run Answer(A)
		:: running = 3; run Request(A, 1); run Request(A, 4); run Answer(A)
		:: running = 3; run Request(A, 1); run Request(A, 2); run Request(B, 3)
		:: running = 3; run Request(A, 1); run Request(B, 3); run Answer(A)
		fi;
		run Sweep()
	}
}
