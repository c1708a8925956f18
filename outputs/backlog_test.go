package outputs

import "testing"

func TestBacklog(t *testing.T) {
	var pool Pool
	b := newBacklog(4)
	check := func(what string, length int, position uint64) {
		t.Helper()
		got, ok := b.position()
		if b.len() != length || got != position || ok != (position != 0) {
			t.Errorf("%s: %d items, the first at %d, %v; want %d, %d", what, b.len(), got, ok, length, position)
		}
	}
	check("empty", 0, 0)
	if b.pop() != nil {
		t.Error("an item from nowhere")
	}
	b.push(pool.Get())
	check("no position", 1, 0)
	for n := uint64(1); n <= 3; n++ {
		b.push(item(&pool, n))
	}
	check("full", 4, 100)
	popped := []*Item{b.pop(), b.pop(), b.pop()}
	check("two popped", 1, 300)
	b.unpop(popped[1:])
	check("the second put back", 3, 100)
	b.pop()
	for n := uint64(4); n <= 5; n++ {
		b.push(item(&pool, n))
	}
	check("around the corner", 4, 200)
	for n := uint64(2); n <= 5; n++ {
		if i := b.pop(); i.Event.Sequence != n {
			t.Errorf("event %d in place of %d", i.Event.Sequence, n)
		}
	}
	check("empty again", 0, 0)
}
