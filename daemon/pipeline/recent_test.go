package pipeline

import (
	"testing"

	"github.com/flatd/flatd/daemon/api"
	"github.com/flatd/flatd/flows"
)

func TestRecent(t *testing.T) {
	r := NewRecent()
	all := func(*flows.Event) bool { return true }
	add := func(from, to int) {
		for i := from; i < to; i++ {
			r.Add(&flows.Event{Sequence: uint64(i)})
		}
	}
	add(0, api.RecentMax+10) // the first ten are forgotten
	if got := r.Latest(api.RecentMax, all); len(got) != api.RecentMax || got[0].Sequence != 10 || got[api.RecentMax-1].Sequence != api.RecentMax+9 {
		t.Errorf("%d events from %d", len(got), got[0].Sequence)
	}
	odd := func(e *flows.Event) bool { return e.Sequence%2 == 1 }
	if got := r.Latest(2, odd); len(got) != 2 || got[0].Sequence != api.RecentMax+7 || got[1].Sequence != api.RecentMax+9 {
		t.Errorf("the latest two odd ones: %v", got)
	}

	past, f, err := r.Follow(0, 1, all)
	if err != nil || len(past) != 1 {
		t.Fatalf("follow: %d events, %v", len(past), err)
	}
	// A follower that does not read holds nobody up, and is told what it missed.
	add(5000, 5000+followerRoom+7)
	if first := <-f.Events; first.Sequence != 5000 {
		t.Errorf("the first one followed is %d, want 5000", first.Sequence)
	}
	if missed := r.TakeMissed(f); missed != 7 {
		t.Errorf("missed %d, want 7", missed)
	}
	if missed := r.TakeMissed(f); missed != 0 {
		t.Errorf("told twice: %d", missed)
	}
	for range FollowersMax - 1 {
		if _, _, err := r.Follow(0, 0, all); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.Follow(0, 0, all); err == nil {
		t.Error("one follower too many is let in")
	}
	r.Unfollow(f)
	if _, _, err := r.Follow(0, 0, all); err != nil {
		t.Errorf("no room after one has gone: %v", err)
	}
}

// One user cannot take the places of others, nor all users those of root.
func TestFollowersOfUsers(t *testing.T) {
	r := NewRecent()
	all := func(*flows.Event) bool { return true }
	follow := func(user, n int) (let int) {
		for range n {
			if _, _, err := r.Follow(user, 0, all); err == nil {
				let++
			}
		}
		return let
	}
	for _, c := range []struct{ user, want int }{{1000, followersOfUser}, {1001, FollowersMax - followersRoot - followersOfUser}, {1002, 0}, {0, followersRoot}} {
		if let := follow(c.user, 2*FollowersMax); let != c.want {
			t.Errorf("%d followers of user %d are let in, want %d", let, c.user, c.want)
		}
	}
}
