package bpf

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf/testbed"
)

const limit = 10 * time.Second

// unconfirmed lists the source ports of the timeouts that wait for delivery.
func (k *kernel) unconfirmed() (numbers []uint64, ports []uint16) {
	k.UnconfirmedTimeouts(func(t Timeout) {
		numbers = append(numbers, t.Number)
		ports = append(ports, (*kernelFlatKey)(ptr(t.Key)).LocalPort)
		if t.LimitNs != uint64(limit) || t.Side != SideClient || len(t.Pending) == 0 {
			k.t.Errorf("timeout %+v", t)
		}
	})
	return numbers, ports
}

// balances checks that each request is in one place of the books.
func (k *kernel) balances() {
	k.t.Helper()
	c, err := k.Counters()
	if err != nil {
		k.t.Fatal(err)
	}
	swept, err := k.Sweep(BootTime(), 1<<62, func(uint8, []byte, []byte, []byte) {})
	if err != nil {
		k.t.Fatal(err)
	}
	open := uint64(swept.OpenOurs + swept.OpenTheirs)
	if c[Requests] != c[Finished]+c[TimedOut]+c[HalfOpen]+open+c[Replaced]+c[PendingFull] {
		k.t.Errorf("requests %d != finished %d + timed out %d + half open %d + open %d + replaced %d + full %d",
			c[Requests], c[Finished], c[TimedOut], c[HalfOpen], open, c[Replaced], c[PendingFull])
	}
}

func TestTimeoutsOutliveTheDaemonUntilConfirmed(t *testing.T) {
	path := testbed.BPFFS(t)
	first := session(t, path)
	question := flow4.port(53).dns(t, 7, nil)
	first.out(flow4.syn(t, 1))
	first.out(question)
	if swept, _ := first.sweep(time.Minute, limit); swept.TimedOut != 2 || first.LastTimeout() != 2 {
		t.Fatalf("swept %+v, last timeout %d; want 2", swept, first.LastTimeout())
	}
	first.leave()

	second := session(t, path)
	var asked []byte
	second.UnconfirmedTimeouts(func(t Timeout) {
		if (*kernelFlatKey)(ptr(t.Key)).Kind == kindDNS {
			asked = bytes.Clone(t.Question)
		}
	})
	if len(asked) == 0 || !bytes.Contains(question, asked) {
		t.Errorf("question %x, want that of %x", asked, question)
	}
	if numbers, _ := second.unconfirmed(); len(numbers) != 2 || numbers[0] != 1 || numbers[1] != 2 {
		t.Fatalf("unconfirmed %v, want 1 and 2", numbers)
	}
	if swept, _ := second.sweep(time.Minute, limit); swept.TimedOut != 0 {
		t.Errorf("swept again: %+v", swept)
	}
	second.ConfirmTimeouts(1)
	second.balances()
	second.leave()

	third := session(t, path)
	if numbers, _ := third.unconfirmed(); len(numbers) != 1 || numbers[0] != 2 {
		t.Errorf("unconfirmed %v, want 2 alone", numbers)
	}
	third.ConfirmTimeouts(2)
	third.leave()
	if numbers, _ := session(t, path).unconfirmed(); numbers != nil {
		t.Errorf("unconfirmed %v, want none", numbers)
	}
}

// openRequest is the one that this host has open.
func (k *kernel) openRequest() *claimed {
	k.t.Helper()
	var c *claimed
	err := k.eachRequest(func(at place, key *kernelFlatKey, p *kernelFlatPending) error {
		if isOpen(p) && at.side == SideClient {
			c = &claimed{side: SideClient, limitNs: uint64(limit), key: *key, pending: *p}
		}
		return nil
	})
	if err != nil || c == nil {
		k.t.Fatalf("open request %+v, %v", c, err)
	}
	return c
}

// A daemon may be killed between any two steps of a claim; whichever it was,
// the request ends up claimed once or not at all.
func TestAClaimCutShortIsResolved(t *testing.T) {
	intend := func(k *kernel, c *claimed) error { k.ledger.intend(*c); return nil }
	grant := func(k *kernel, c *claimed) error {
		granted, err := k.granted(c)
		if err == nil && !granted {
			err = errors.New("not granted")
		}
		return err
	}
	enter := func(k *kernel, _ *claimed) error { k.ledger.enter(); return nil }
	for _, test := range []struct {
		name    string
		steps   []func(*kernel, *claimed) error
		claimed int // before the next daemon's first sweep
	}{
		{"before it began", nil, 0},
		{"intended", []func(*kernel, *claimed) error{intend}, 0},
		{"granted", []func(*kernel, *claimed) error{intend, grant}, 1},
		{"entered", []func(*kernel, *claimed) error{intend, grant, enter}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := testbed.BPFFS(t)
			first := session(t, path)
			first.out(flow4.syn(t, 1))
			c := first.openRequest()
			for _, step := range test.steps {
				if err := step(first, c); err != nil {
					t.Fatal(err)
				}
			}
			first.leave()

			second := session(t, path)
			if numbers, _ := second.unconfirmed(); len(numbers) != test.claimed {
				t.Errorf("%d claimed, want %d", len(numbers), test.claimed)
			}
			second.sweep(time.Minute, limit)
			second.out(flow4.syn(t, 1)) // a retransmit, which is no new request
			second.sweep(time.Minute, limit)
			numbers, ports := second.unconfirmed()
			if len(numbers) != 1 || ports[0] != c.key.LocalPort {
				t.Errorf("timeouts %v of ports %v, want one of %d", numbers, ports, c.key.LocalPort)
			}
			second.balances()
			second.leave()
			if numbers, _ := session(t, path).unconfirmed(); len(numbers) != 1 {
				t.Errorf("the next daemon finds timeouts %v", numbers)
			}
		})
	}
}

// An answer that comes between the look and the claim wins.
func TestAnAnswerBeforeTheClaimWins(t *testing.T) {
	k := openKernel(t)
	k.out(flow4.syn(t, 1))
	c := k.openRequest()
	k.in(flow4.back().synAck(t, 2))
	if ok, err := k.claim(c); ok || err != nil {
		t.Errorf("claimed %v, %v", ok, err)
	}
	k.one()
	if ok, err := k.granted(c); ok || err != nil {
		t.Errorf("what the program had reported is granted: %v, %v", ok, err)
	}
	if numbers, _ := k.unconfirmed(); numbers != nil {
		t.Errorf("timeouts %v for an answered request", numbers)
	}
	k.balances()
}

// More timeouts than the ledger has room for are all counted, and the newest
// remembered.
func TestTheLedgerKeepsTheNewestTimeouts(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	const more = 10
	key := kernelFlatKey{Kind: kindTCP}
	for n := range uint32(timeoutsMax + more) {
		key.Id = n
		p := kernelFlatPending{FirstNs: 1 + uint64(n)}
		p.Seal = p.FirstNs ^ keyHash(&key) // seal_of in pending.h
		if err := k.enter(SideClient, &key, &p); err != nil {
			t.Fatal(err)
		}
	}
	k.sweep(time.Minute, limit)
	k.counted(counts{"timed_out": timeoutsMax + more})
	k.leave()
	numbers, _ := session(t, path).unconfirmed()
	if len(numbers) != timeoutsMax || numbers[0] != more+1 || numbers[len(numbers)-1] != timeoutsMax+more {
		t.Errorf("%d timeouts, %d to %d; want the newest %d", len(numbers), numbers[0], numbers[len(numbers)-1], timeoutsMax)
	}
}

// Half-open attempts are counted for good, and take no timeout's room.
func TestHalfOpenAttemptsAreCountedOverRestarts(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	k.out(flow4.syn(t, 1))
	k.sweep(time.Minute, limit)
	for n := range uint16(50) {
		f := flow6
		k.in(f.port(1000+n).syn(t, 1))
	}
	if swept, _ := k.sweep(time.Minute, limit); swept.HalfOpen != 50 {
		t.Errorf("%+v", swept)
	}
	k.leave()
	k = session(t, path)
	k.balances()
	if c, _ := k.Counters(); c[HalfOpen] != 50 || c[TimedOut] != 1 {
		t.Errorf("half open %d, timed out %d; want 50 and 1", c[HalfOpen], c[TimedOut])
	}
	if numbers, _ := k.unconfirmed(); len(numbers) != 1 {
		t.Errorf("timeouts %v, want one", numbers)
	}
}

// The number of records released is right whichever side of the deed a daemon
// was killed on.
func TestReleasedRecordsAreCountedOnce(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	for n := range uint32(5) {
		k.handshake(n)
	}
	_, positions := sequences(k.reader)
	k.Release(k.reader, positions[3], 3)
	k.leave()

	k = session(t, path)
	if got := k.Released(k.reader); got != 3 {
		t.Fatalf("released %d, want 3", got)
	}
	sequences(k.reader)
	// Killed after the entry, before the deed.
	end := k.reader.end(0)
	k.ledger.change(func(b *ledgerBooks) { b.before, b.released = b.released, released{5, end} })
	k.leave()
	k = session(t, path)
	if got := k.Released(k.reader); got != 3 {
		t.Errorf("released %d after an entry without the deed, want 3", got)
	}
	again, _ := sequences(k.reader)
	if len(again) != 2 {
		t.Errorf("%d records come again, want 2", len(again))
	}
	k.Release(k.reader, 0, 5)
	k.leave()
	k = session(t, path)
	if got := k.Released(k.reader); got != 5 {
		t.Errorf("released %d, want 5", got)
	}
}

func TestALedgerOfAnotherLayoutIsRefused(t *testing.T) {
	path := testbed.BPFFS(t)
	session(t, path).leave()
	foreignMap(t, pinOf(path, ledgerPin))
	_, err := Open(path, Auto)
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("another layout")) {
		t.Errorf("error %v", err)
	}
}
