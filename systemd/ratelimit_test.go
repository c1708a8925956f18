package systemd

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What journald says when it has left out messages of a unit; N_DROPPED is how
// many (SD_MESSAGE_JOURNAL_DROPPED of sd-messages.h).
const messagesDropped = "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e"

// TestJournaldsRateLimit: a journald that takes few messages takes all of
// flatd's, for the unit says so. What it leaves out otherwise is not flatd's
// loss: to flatd it was delivered, and journald tells how much it was.
func TestJournaldsRateLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("boots systemd")
	}
	s := &service{bed: boot(t), t: t}
	if inGuest() {
		t.Skip("another limit is for all of journald")
	}
	s.install(t)
	// Its own limit is 10,000 in 30 s. It takes a few times as many where there
	// is much room on the disk.
	s.write(t, "/etc/systemd/journald.conf.d/50-limit.conf", "[Journal]\nRateLimitIntervalSec=10s\nRateLimitBurst=1000\n")
	s.write(t, "/etc/flatd/flatd.toml.d/60-all.toml", "[outputs.journald]\nprofile = \"all\"\nqueue = 65536\n")
	s.run(t, "systemctl", "restart", "systemd-journald")
	const many = 20000

	// 0 is not to have no limit, but journald's.
	const dropIn = "/etc/systemd/system/flatd.service.d/60-limit.conf"
	s.write(t, dropIn, "[Service]\nLogRateLimitIntervalSec=0\nLogRateLimitBurst=0\n")
	s.run(t, "systemctl", "daemon-reload")
	s.run(t, "systemctl", "enable", "--now", "flatd")
	s.connectPeer(t)
	s.step(t, "without the unit's limit", func(t *testing.T) {
		delivered := s.flood(t, many)
		if stored := s.stored(t); stored >= delivered {
			t.Fatalf("%d entries in the journal of %d: its limit was not reached, so this shows nothing", stored, delivered)
		}
		// Journald tells with the first message that it takes again.
		for late := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			delivered = s.flood(t, 1)
			stored, dropped := s.stored(t), s.droppedByJournald(t)
			if stored+dropped == delivered {
				t.Logf("of %d messages journald has stored %d and dropped %d", delivered, stored, dropped)
				break
			}
			if time.Now().After(late) {
				t.Fatalf("%d entries in the journal and %d dropped by journald, flatd has delivered %d", stored, dropped, delivered)
			}
		}
	})
	s.step(t, "with it", func(t *testing.T) {
		s.run(t, "rm", dropIn)
		s.run(t, "systemctl", "daemon-reload")
		s.run(t, "systemctl", "restart", "flatd")
		before := s.droppedByJournald(t)
		delivered := s.flood(t, many)
		if stored := s.stored(t); stored != delivered {
			t.Errorf("%d entries in the journal, flatd has delivered %d", stored, delivered)
		}
		if dropped := s.droppedByJournald(t) - before; dropped != 0 {
			t.Errorf("journald has dropped %d messages", dropped)
		}
	})
}

// flood has so many connections refused, and returns how many events the journal
// has been given then by this daemon, which has lost none.
func (s *service) flood(t *testing.T, connections int) (delivered int) {
	t.Helper()
	before := s.books(t)
	to := &syscall.SockaddrInet4{Port: closedPort, Addr: [4]byte{192, 0, 2, 2}}
	err := in(s.self.namespace, func() error {
		for range connections {
			if err := refusedOnce(to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(4 * patience); ; time.Sleep(50 * time.Millisecond) {
		b := s.books(t)
		if b.Delivered >= before.Delivered+connections {
			if b.Withheld+b.Failed+b.Dropped != 0 {
				t.Errorf("flatd has not delivered everything: %+v", b)
			}
			return b.Delivered
		}
		if time.Now().After(late) {
			t.Fatalf("%d connections were refused: %+v, before %+v", connections, b, before)
		}
	}
}

func refusedOnce(to syscall.Sockaddr) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Connect(fd, to); !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("connect to a closed port: %w", err)
	}
	return nil
}

// delivery is what flatd says of its output to the journal.
type delivery struct {
	Name                                 string
	Delivered, Withheld, Failed, Dropped int
}

func (s *service) books(t *testing.T) delivery {
	t.Helper()
	var answer struct{ Outputs []delivery }
	if err := json.Unmarshal([]byte(s.curl(t, status)), &answer); err != nil {
		t.Fatal(err)
	}
	for _, o := range answer.Outputs {
		if o.Name == "journald" {
			return o
		}
	}
	t.Fatalf("no output to the journal: %+v", answer)
	return delivery{}
}

// stored counts the events that the journal has of this daemon.
func (s *service) stored(t *testing.T) int {
	t.Helper()
	s.run(t, "journalctl", "--sync")
	lines := s.run(t, "sh", "-c", "journalctl --quiet -u flatd _TRANSPORT=journal _PID="+s.property(t, "flatd", "MainPID")+" | wc -l")
	n, err := strconv.Atoi(strings.TrimSpace(lines))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// droppedByJournald is how many of flatd's messages journald says it has dropped.
func (s *service) droppedByJournald(t *testing.T) (sum int) {
	t.Helper()
	for _, e := range s.journal(t, messagesDropped) {
		sum += int(e.number(t, "N_DROPPED"))
	}
	return sum
}
