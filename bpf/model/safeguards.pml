/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The models of flatd's kernel half, in Promela:
 *
 *   table.pml     who owns an exchange: request, repeat, answer, claim
 *   ring.pml      from there to an output: claim, ring, reader, a daemon that is killed
 *   takeover.pml  two layouts, one of which takes over from the other, and back
 *
 * model_test.go has spin look at every order in which their steps can run. It demands
 * that each exchange is reported exactly once, none is lost, and no slot and no count
 * stays behind. By hand, with NAME one of the safeguards below:
 *
 *   spin -a -DNO_NAME table.pml && gcc -o pan pan.c && ./pan -m100000 && spin -t -p -g -DNO_NAME table.pml
 *
 * Each safeguard below is something that the design needs. -DNO_NAME takes it out, and
 * the test demands that spin then finds an error. In the code, a comment "model: NAME"
 * marks the place that is the safeguard: in the programs (C) or in user space (Go).
 *
 *   name            model     code  what it is; else: what goes wrong without it
 *
 *   SEAL            table     C     whoever ends an exchange first breaks its seal, by compare-and-swap; else: answer and claim both report it
 *   KEY_IN_SEAL     table     C     the seal is made of key and time; else: a program that still holds reused memory ends another key's request
 *   SEAL_LAST       table     C     a request is sealed after it is in its place, slot or map; else: it can be ended before it can be removed, and stays
 *   KEY_FIRST       table     C     remove clears the key before it frees the slot; else: it clears the key of the slot's next request
 *   ONE_WORD        table     C     tag and number of others are one word, the slot is taken only if both are 0; else: two CPUs enter one request twice
 *   OTHERS_FIRST    table     C     others is raised before the request goes into the map; else: a repeat does not find it and enters it again
 *   FIRST_IN_CLAIM  table     C     a claim names the time of its request; else: it ends a newer request with the same key
 *   RECENT_FIRST    table     C     a claim makes the request a recent one before it removes it; else: a late answer finds it in neither memory
 *   RECENT_SEAL     table     C     a recent request has a seal, too: deleting it decides nothing; else: one late answer is reported twice or another is lost
 *   RECENT_DIFFERS  table     C     the seal of a recent request is not the one it had while open; else: who found it open ends it again, amid a claim
 *   RECENT_KEY      table     C     the seal of a recent request is made of the key that was looked for; else: an answer takes reused memory for its request
 *   OPEN_FIRST      table     C     an answer looks for an open request first, then for a recent one; else: it misses one that is just claimed
 *
 *   RESERVE_FIRST   ring      C     a claim reserves room in the ring before it breaks the seal; else: a full ring loses the timeout
 *   NUMBER_OWNED    ring      C     a claim takes its number after it broke the seal; else: a gap in the numbers that is no loss
 *   NUMBER_IN_RUN   ring      C     the claim program numbers the timeout, not its reader; else: read again after a kill it has another number
 *   COUNT_IN_RUN    ring      C     the claim program counts the timeout, not whoever sees its verdict; else: a signal or a kill hides one
 *   QUARTER         ring      C     a claim is refused unless a quarter of the ring stays free; else: answers are lost, for timeouts that could wait
 *   DELIVER_FIRST   ring      Go    a record is committed after every output has it; else: a kill loses it
 *   MARK_FIRST      ring      Go    the pinned mark is set first and the ring follows it, at a start too; else: a kill in between miscounts the records
 *
 *   SEEN_THEIRS     takeover  C     in WATCH the programs note each request that they see; else: they begin its repeat as a request of their own
 *   FORGET_SEEN     takeover  C     an answer removes the note, also where it ends a request of ours; else: nobody begins the next request of that key
 *   SEEN_LIMIT      takeover  C     a note of others lasts as long as a request waits; else: after a timeout the same
 *   GRACE_WATCH     takeover  Go    after the attach, packets on their way get through before COPY looks; else: one is in no note
 *   COPY            takeover  Go    what the previous programs have open is noted; else: the new ones begin a repeat as a request of their own
 *   COPY_AGAIN      takeover  Go    what was answered before it was noted is removed again; else: nobody begins the next request of that key
 *   GRACE_COPY      takeover  Go    packets on their way get through before COPY_AGAIN looks; else: it misses an answer, with the same end
 *   CLEAR_SEEN      takeover  Go    a start that finds WATCH removes all notes first; else: one of a start killed before COPY_AGAIN stays
 *   BOTH            takeover  Go    new programs begin requests before the previous ones stop; else: in between nobody does
 *   GRACE_BOTH      takeover  Go    between these two, packets on their way get through, also after a kill; else: nobody begins one of them
 *   SEEN_OURS       takeover  C     in BOTH they note what they begin, the previous record is dropped; else: both report it
 *   SEEN_FIRST      takeover  C     the first note of a key stays; else: a later one no longer covers the record of the first
 *   SEEN_SINCE      takeover  Go    a note covers what ended after it was made; else: it drops what only the previous programs have
 *   BOTH_SINCE      takeover  Go    what ours began in this take-over is never dropped for the notes of the others; else: each drops it for the other
 *   DRAIN           takeover  Go    previous programs are removed when nothing is open and both rings are read; else: that is lost, or comes twice
 *   AHEAD_FINISH    takeover  Go    a half removed state is removed, not taken over from; else: in WATCH nobody begins anything
 *   ONE_AT_A_TIME   takeover  Go    a roll-back first completes the take-over that it finds; else: notes and order are those of the wrong one
 *   ONE_SEQUENCE    takeover  C     all layouts number from one counter; else: two events have one number
 */

/*
 * What outputs get. A record may come again, after a kill: then its number says that
 * it is the same event.
 */
#define SEQUENCES 8
byte delivered_as[SEQUENCES]; /* of each number, the event */
byte delivered;		      /* a bit for each event */

#define is_delivered(event_) ((delivered >> (event_)) & 1)

inline deliver(sequence_, event_)
{
	d_step {
		if
		:: delivered_as[sequence_] == 0 ->
			assert(!is_delivered(event_)); /* or it has two numbers */
			delivered_as[sequence_] = event_;
			delivered = delivered | (1 << (event_))
		:: else -> assert(delivered_as[sequence_] == event_) /* or two have one */
		fi
	}
}
