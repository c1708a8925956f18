/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The programs of two layouts, of which the new ones take over from the previous ones;
 * and a roll-back, which is the same the other way round: handover.h, takeover.go. The
 * daemon that starts is the one of the new programs.
 *
 * A key is asked for twice, in two attempts. What the programs of a layout do with a
 * packet is one step here (see table.pml), and so is what becomes of a record (see
 * ring.pml). The daemon can be killed between any two of its steps; a packet does not
 * take longer than a daemon that starts again. Packets of one key come one after the
 * other.
 */
#include "safeguards.pml"

/*
 * One kill, after which either daemon starts; with -DROLL_BACK two, and from the first on
 * the daemon of the previous programs (8 million states, 1 GB: by hand). With two kills and both daemons there is an order
 * that is known to report an exchange twice: new programs and previous ones begin it
 * between BOTH and FINISH, and while it is open there is a roll-back and an upgrade again,
 * which removes the note of it.
 */
#if defined(ROLL_BACK) || defined(NO_AHEAD_FINISH)
#define KILLS 2
#define next_daemon 0
#else
#define KILLS 1
#define next_daemon 1
#endif
#define NONE 2 /* no layout */

/* Events. */
#define answer_of(attempt) (attempt)
#define timeout_of(attempt) ((attempt) + 2)

/* enum flat_phase; UNUSED: there is no such state. */
mtype = { UNUSED, ALONE, WATCH, BOTH, AFTER, FINISH }

/* Whose the element of flat_seen for the key is. */
mtype = { NOBODYS, THEIRS, OURS }

typedef layout_state {
	mtype phase;
	byte open; /* which attempt is open; 0: none */
	byte sent; /* when it was sent first, as these programs saw it */
	mtype seen;
	byte seen_at;
	byte since /* both_ns */
}
layout_state layout[2];
chan ring[2] = [4] of { byte, byte, byte, byte } /* sequence, event, sent, end */

byte front = 0, behind = NONE; /* whose programs are attached */
byte passing;		       /* the packet that is on its way through them, by turns 1 and 2 */
byte now;
byte last[2]; /* of the sequence numbers */

byte due;		   /* since when attempt 1 is overdue; 0: it is not */
bool sent_all, is_settled; /* the packets are sent; the daemon has taken over */
bool is_reading;	   /* the daemon reads the rings and sweeps */
byte mine = 1;		   /* whose daemon this is */
#define other (1 - mine)

#define is_attached(l) (front == (l) || behind == (l))
#define is_new(l) (layout[l].phase == BOTH || layout[l].phase == AFTER)

#ifdef NO_SEEN_LIMIT
#define is_theirs(l) (layout[l].seen == THEIRS)
#else
#define is_theirs(l) (layout[l].seen == THEIRS && !(due && layout[l].seen_at <= due))
#endif

inline record(l, event, end_)
{
#ifdef NO_ONE_SEQUENCE
	last[l]++;
	ring[l]!last[l], event, layout[l].sent, end_
#else
	last[0]++;
	ring[l]!last[0], event, layout[l].sent, end_
#endif
}

inline clear_seen(l)
{
	layout[l].seen = NOBODYS;
	layout[l].seen_at = 0
}

inline close_request(l)
{
	layout[l].open = 0;
	layout[l].sent = 0
}

inline note(l, whose, at_)
{
	layout[l].seen = whose;
	layout[l].seen_at = at_
}

inline begin(l, attempt)
{
	layout[l].open = attempt;
	layout[l].sent = at
}

/* The programs of a layout see a request. */
inline ask(l, attempt)
{
	d_step {
		now++;
		at = now;
		phase = layout[l].phase;
		if
		:: layout[l].open /* a repeat */
		:: !layout[l].open && (phase == FINISH || phase == UNUSED)
		:: !layout[l].open && phase == ALONE -> begin(l, attempt)
		:: !layout[l].open && is_new(l) && is_theirs(l)
		:: else ->
			if
			:: phase != ALONE && is_theirs(l)
			:: phase == WATCH && !is_theirs(l) ->
#ifndef NO_SEEN_THEIRS
				if
				:: layout[l].seen != OURS -> note(l, THEIRS, at)
				:: else
				fi
#else
				skip
#endif
			:: phase == BOTH && !is_theirs(l) ->
#ifdef NO_SEEN_OURS
				skip;
#elif defined(NO_SEEN_FIRST)
				note(l, OURS, at);
#else
				if
				:: layout[l].seen != OURS -> note(l, OURS, at)
				:: else
				fi;
#endif
				begin(l, attempt)
			:: phase == AFTER && !is_theirs(l) -> begin(l, attempt)
			:: else
			fi
		fi;
		at = 0;
		phase = 0
	}
}

/* The programs of a layout see an answer. */
inline answer(l)
{
	d_step {
		now++;
#ifndef NO_FORGET_SEEN
		if
		:: layout[l].phase != ALONE && layout[l].seen == THEIRS -> clear_seen(l)
		:: else
		fi;
#endif
		if
		:: layout[l].open ->
			record(l, answer_of(layout[l].open), now);
			close_request(l)
		:: else
		fi
	}
}

/* A packet passes those programs that were there when it came. */
inline pass(is_answer, attempt)
{
	atomic {
		passing = (packets -> 2 : 1);
		packets = !packets;
		first = front;
		second = behind
	}
	if
	:: is_answer -> answer(first)
	:: else -> ask(first, attempt)
	fi;
	if
	:: second == NONE
	:: second != NONE && is_answer -> answer(second)
	:: second != NONE && !is_answer -> ask(second, attempt)
	fi;
	atomic { passing = 0; first = NONE; second = NONE }
}

proctype Traffic()
{
	byte first, second, at;
	mtype phase;
	bool packets;

	pass(false, 1);
	pass(false, 1); /* which passes unseen where nothing has changed in between */
	if
	:: pass(true, 1)
	:: due = now; is_delivered(timeout_of(1)) && layout[0].open != 1 && layout[1].open != 1
		/* who asks now asks anew: until it is swept, it is a repeat */
	fi;
	pass(false, 2);
	pass(true, 2);
	sent_all = true
}

#define is_overdue(l) (due && layout[l].open == 1)

/* sweep ends a layout's request that is overdue: in one step, see ring.pml. */
inline sweep(l)
{
	d_step {
		record(l, timeout_of(1), due);
		close_request(l)
	}
}

/* Have programs with these notes begun what a record is about, before it ended? */
#if defined(NO_SEEN_SINCE)
#define began(l) (layout[l].seen == OURS)
#else
#define began(l) (layout[l].seen == OURS && layout[l].since <= end && layout[l].seen_at <= end)
#endif

/* Have the others taken over from these programs after these had begun it? */
#ifdef NO_BOTH_SINCE
#define is_from_before(l) true
#else
#define is_from_before(l) (layout[1 - (l)].since > layout[l].since || sent < layout[l].since)
#endif

inline take_record(l)
{
	ring[l]?sequence, event, sent, end;
	if
	:: layout[other].phase != UNUSED && is_from_before(l) && began(1 - (l))
	:: else -> deliver(sequence, event)
	fi;
	sequence = 0;
	event = 0;
	sent = 0;
	end = 0
}

/* What the daemon does all the time, for both layouts. */
proctype Pipeline()
{
	byte sequence, event, sent, end;

	do
	:: atomic { is_reading && is_overdue(mine) -> sweep(mine) }
	:: atomic { is_reading && is_overdue(other) -> sweep(other) }
	:: d_step { is_reading && nempty(ring[0]) -> take_record(0) }
	:: d_step { is_reading && nempty(ring[1]) -> take_record(1) }
	:: sent_all && is_settled && !layout[0].open && !layout[1].open && empty(ring[0]) && empty(ring[1]) ->
		break
	od;
	assert(is_delivered(answer_of(1)) != is_delivered(timeout_of(1)));
	assert(is_delivered(answer_of(2)))
}

/* grace waits until a packet that is on its way through the programs is through. */
inline grace()
{
	waited_for = passing;
	waited_for == 0 || waited_for != passing;
	waited_for = 0
}

/* attach puts programs in front, unless they are attached: then they stay where they are. */
inline attach(l)
{
	d_step {
		if
		:: !is_attached(l) -> behind = front; front = l
		:: else
		fi
	}
}

/* detach and remove take away the programs of a layout, and its state. */
inline detach(l)
{
	d_step {
		if
		:: front == l -> front = behind; behind = NONE
		:: behind == l -> behind = NONE
		:: else
		fi
	}
}

inline remove(l)
{
	grace(); /* as the maps stay until their programs have ended */
	d_step {
		do
		:: ring[l]?_, _, _, _
		:: empty(ring[l]) -> break
		od;
		layout[l].phase = UNUSED;
		layout[l].since = 0;
		clear_seen(l);
		close_request(l)
	}
}

/* discard removes a state whose programs have begun nothing. */
inline discard(l)
{
	layout[l].phase = FINISH;
	detach(l);
	remove(l)
}

#ifdef NO_AHEAD_FINISH
#define is_ahead (layout[mine].phase == ALONE && is_attached(mine) && layout[other].phase != FINISH)
#else
#define is_ahead (layout[mine].phase == ALONE && is_attached(mine))
#endif

/* find_previous is State.Previous(): what does an earlier start have left? */
inline find_previous()
{
	if
#ifndef NO_ONE_AT_A_TIME
	:: is_attached(mine) && is_new(other) && (layout[mine].phase == ALONE || is_new(mine) && layout[other].since > layout[mine].since) ->
		grace();
		layout[mine].phase = FINISH;
		grace();
		layout[other].phase = AFTER
	:: is_ahead && !is_new(other) && layout[other].phase != UNUSED -> discard(other)
#else
	:: is_ahead && !is_new(other) && layout[other].phase != UNUSED -> discard(other)
#endif
	:: else
	fi;
	if
	:: layout[other].phase != UNUSED && (layout[mine].phase == ALONE || layout[mine].phase == FINISH) ->
		d_step { clear_seen(mine); now++; layout[mine].since = now }
		layout[mine].phase = WATCH
	:: layout[other].phase != UNUSED && layout[mine].phase == WATCH ->
		d_step {
#ifndef NO_CLEAR_SEEN
			clear_seen(mine);
#endif
			now++; layout[mine].since = now
		}
	:: else
	fi
}

/* inherit copies what the previous programs have open, and looks once more. */
inline inherit()
{
#ifdef NO_COPY
	skip
#else
	d_step { copied = layout[other].open != 0; copied_at = layout[other].sent }
	if
	:: copied ->
		d_step {
			if
			:: layout[mine].seen == NOBODYS -> note(mine, THEIRS, copied_at)
			:: else
			fi
		}
#ifndef NO_GRACE_COPY
		grace();
#endif
#ifndef NO_COPY_AGAIN
		if
		:: !layout[other].open -> clear_seen(mine)
		:: else
		fi
#endif
	:: else
	fi;
	d_step { copied = false; copied_at = 0 }
#endif
}

/* take_over is State.TakeOver(). */
inline take_over()
{
	if
	:: layout[mine].phase == WATCH ->
#ifndef NO_GRACE_WATCH
		grace();
#endif
		inherit();
#ifdef NO_BOTH
		layout[other].phase = FINISH;
		grace();
#endif
		layout[mine].phase = BOTH
	:: else
	fi;
	if
	:: layout[mine].phase == BOTH ->
#ifndef NO_GRACE_BOTH
		grace();
#endif
		layout[other].phase = FINISH;
		grace();
		layout[mine].phase = AFTER
	:: else
	fi
}

/* end_take_over removes the previous state once nothing is left to come of it. */
inline end_take_over()
{
#ifndef NO_DRAIN
	!layout[other].open && !(layout[mine].open && layout[mine].sent < layout[mine].since);
#endif
	detach(other);
#ifndef NO_DRAIN
	grace();
	empty(ring[0]) && empty(ring[1]);
#endif
	remove(other)
}

bool kill;

proctype Killer()
{
	byte kills;

end:	do
	:: atomic { kills < KILLS && !kill && !sent_all -> kill = true; kills++ }
	od
}

proctype Daemon()
{
	byte waited_for, copied_at;
	bool copied;

start:
	{
		grace();
		if
		:: layout[mine].phase == UNUSED -> layout[mine].phase = ALONE
		:: else
		fi;
		find_previous();
		is_reading = true;
		attach(mine);
		if
		:: layout[other].phase != UNUSED ->
			take_over();
			end_take_over()
		:: else
		fi;
		layout[mine].phase = ALONE;
		d_step { clear_seen(mine); layout[mine].since = 0; is_settled = true }
	} unless {
		kill ->
			atomic {
				if
				:: mine = 0
				:: next_daemon -> mine = 1
				fi;
				waited_for = 0;
				copied = false;
				copied_at = 0;
				is_reading = false;
				is_settled = false;
				kill = false
			}
			goto start
	}
}

init {
	atomic {
		layout[0].phase = ALONE;
		layout[1].phase = UNUSED;
		layout[0].seen = NOBODYS;
		layout[1].seen = NOBODYS;
		run Traffic();
		run Pipeline();
		run Killer();
		run Daemon()
	}
}
