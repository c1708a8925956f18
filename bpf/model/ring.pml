/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the end of an exchange to an output: the claim program, the ring, the reader,
 * and a daemon that is killed and starts again.
 *
 * There are two exchanges. What table.pml takes apart is one step here. The ring has
 * room for three records, of which a claim leaves two free: "a quarter".
 */
#include "safeguards.pml"

#define EXCHANGES 2
#define KILLS 2
#define ROUNDS 8 /* of sweep and reader, in which all must be reported */

/* Events: an exchange with its answer or its timeout, and a late answer. */
#define answer_of(exchange) (exchange)
#define timeout_of(exchange) (exchange + 2)
#define late_of(exchange) (exchange + 4)

#define SIZE 3
#define QUARTER 2
typedef ring_record {
	byte sequence, event; /* event 0: discarded */
	bool busy
}
ring_record ring[SIZE];
byte produced, consumed; /* positions */
#define room() (SIZE - (produced - consumed))

byte last; /* of the sequence numbers */
bool open[EXCHANGES + 1], recent[EXCHANGES + 1];
byte finished, timed_out, late;
bit refusals; /* the last bit of how many claims were refused, ever */
byte running; /* answers that may still come */

inline number(sequence_)
{
	d_step { last++; sequence_ = last }
}

inline reserve(at)
{
	at = produced;
	produced++;
	ring[at % SIZE].busy = true
}

inline submit(at, sequence_, event_)
{
	d_step {
		ring[at % SIZE].sequence = sequence_;
		ring[at % SIZE].event = event_;
		ring[at % SIZE].busy = false
	}
}

/* A packet answers an exchange, unless it never comes. */
proctype Answer(byte exchange)
{
	byte at, sequence, event;

	if
	:: goto out
	:: d_step { open[exchange] -> open[exchange] = false; finished++; event = answer_of(exchange) }
	:: d_step { recent[exchange] -> recent[exchange] = false; late++; event = late_of(exchange) }
	fi;
	number(sequence);
	d_step {
		assert(room() > 0); /* or it is lost, for timeouts that could wait */
		reserve(at)
	}
	submit(at, sequence, event);
out:
	atomic { at = 0; sequence = 0; event = 0; running-- }
}

/*
 * The claim program, run by the daemon for the exchange in `claim`. A kill of the
 * daemon does not end it: the next daemon has the lock only after it.
 */
byte claim;
bool verdict;

inline break_seal(owned)
{
	d_step {
		owned = open[claim];
		open[claim] = false
	}
}

active proctype Claim()
{
	byte at, sequence;
	bool owned;

end:	do
	:: claim != 0 ->
#ifdef NO_RESERVE_FIRST
		break_seal(owned);
		if
		:: !owned -> goto out
		:: else
		fi;
#endif
#ifndef NO_QUARTER
		if
		:: room() <= QUARTER -> refusals = 1 - refusals; goto out
		:: else
		fi;
#endif
		atomic {
			if
			:: room() > 0 -> reserve(at)
			:: else -> refusals = 1 - refusals; goto out
			fi
		}
#ifdef NO_NUMBER_OWNED
		number(sequence);
#endif
#ifndef NO_RESERVE_FIRST
		break_seal(owned);
		if
		:: !owned -> submit(at, 0, 0); goto out
		:: else
		fi;
#endif
#if !defined(NO_NUMBER_OWNED) && !defined(NO_NUMBER_IN_RUN)
		number(sequence);
#endif
#ifndef NO_COUNT_IN_RUN
		timed_out++;
#endif
		recent[claim] = true;
		submit(at, sequence, timeout_of(claim));
#ifdef NO_COUNT_IN_RUN
		verdict = true;
#endif
out:		atomic { owned = false; at = 0; sequence = 0; claim = 0 }
	od
}

/*
 * The mark, in a pinned map: how many records end before which position of the ring.
 * It changes as a whole (of two copies a word says which one counts).
 */
byte marked_records, marked_position;

/* The daemon's own memory, which a kill ends. */
byte next, records, rounds;
bit refusals_before;
bool is_refused;
byte held_sequence, held_event;

inline try_claim(exchange)
{
	if
	:: open[exchange] && !is_refused ->
		d_step { refusals_before = refusals; verdict = false; claim = exchange }
		claim == 0;
#ifdef NO_COUNT_IN_RUN
		if
		:: verdict -> timed_out++
		:: true /* before Linux 5.13 a signal hides the verdict */
		fi;
#endif
		is_refused = refusals != refusals_before
	:: else
	fi
}

/* sweep claims what is open and overdue, until a claim is refused. */
inline sweep()
{
	try_claim(1);
	try_claim(2);
	is_refused = false /* now let the reader make room */
}

inline mark()
{
	d_step { marked_records = records; marked_position = next }
}

/* commit lets the kernel reuse what every output has. */
inline commit()
{
	if
	:: consumed != next ->
#ifdef NO_MARK_FIRST
		consumed = next;
		mark()
#else
		mark();
		consumed = next
#endif
	:: else
	fi
}

/* read takes the next record, if there is one, and hands it to the outputs. */
inline read()
{
	if
	:: next != produced && !ring[next % SIZE].busy ->
		d_step {
			held_sequence = ring[next % SIZE].sequence;
			held_event = ring[next % SIZE].event;
			next++
		}
		if
		:: held_event == 0
		:: else ->
#ifdef NO_NUMBER_IN_RUN
			if
			:: held_event == timeout_of(1) || held_event == timeout_of(2) ->
				number(held_sequence)
			:: else
			fi;
#endif
			records++;
#ifdef NO_DELIVER_FIRST
			commit();
#endif
			deliver(held_sequence, held_event)
		fi;
		d_step { held_sequence = 0; held_event = 0 }
	:: else
	fi
}

/* adopt is what a daemon does first: it reads on from the mark. */
inline adopt()
{
	d_step { held_sequence = 0; held_event = 0; rounds = 0; is_refused = false }
	records = marked_records;
#ifndef NO_MARK_FIRST
	consumed = marked_position;
#endif
	next = consumed
}

bool kill;

active proctype Killer()
{
	byte kills;

end:	do
	:: atomic { kills < KILLS && !kill -> kill = true; kills++ }
	od
}

proctype Daemon()
{
start:
	{
		claim == 0; /* the lock */
		adopt();
		do
		:: running == 0 && !open[1] && !open[2] && next == produced && consumed == next -> break
		:: else ->
			sweep();
			read();
			commit();
			rounds = (running == 0 -> rounds + 1 : 0);
			assert(rounds <= ROUNDS) /* or it never ends */
		od
	} unless {
		kill -> kill = false; goto start
	};

	/* All is reported, each once, and the books balance. */
	assert(is_delivered(answer_of(1)) != is_delivered(timeout_of(1)));
	assert(is_delivered(answer_of(2)) != is_delivered(timeout_of(2)));
	assert(finished + timed_out == EXCHANGES);
	assert(finished + timed_out + late == last); /* a gap would be a loss */
	assert(records == last)
}

init {
	atomic {
		open[1] = true;
		open[2] = true;
		running = 2;
		run Answer(1);
		run Answer(2);
		run Daemon()
	}
}
