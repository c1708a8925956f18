package outputs

import "testing"

func TestBacklog(t *testing.T) {
	var pool Pool
	b := newBacklog(4)
	check := func(what string, length int) {
		t.Helper()
		if b.len() != length {
			t.Errorf("%s: %d items, want %d", what, b.len(), length)
		}
	}
	check("empty", 0)
	if b.pop() != nil {
		t.Error("an item from nowhere")
	}
	for n := uint64(0); n <= 3; n++ {
		b.push(item(&pool, n))
	}
	check("full", 4)
	popped := []*Item{b.pop(), b.pop(), b.pop()}
	check("three popped", 1)
	b.unpop(popped[1:])
	check("two put back", 3)
	b.pop()
	for n := uint64(4); n <= 5; n++ {
		b.push(item(&pool, n))
	}
	check("around the corner", 4)
	for n := uint64(2); n <= 5; n++ {
		if i := b.pop(); i.Event.Sequence != n {
			t.Errorf("event %d in place of %d", i.Event.Sequence, n)
		}
	}
	check("empty again", 0)
}
