package bpf

import (
	"testing"
	"time"

	"github.com/flatd/flatd/flows"
)

// handshake has the programs report one record.
func (k *kernel) handshake(isn uint32) {
	k.t.Helper()
	k.out(flow4.syn(k.t, isn))
	k.in(flow4.back().synAck(k.t, isn+1))
}

// sequences reads what is in the ring, without committing it.
func sequences(r *Reader) (all []uint64, positions []uint64) {
	for {
		raw, position, ok := r.Next()
		if !ok {
			return all, positions
		}
		all = append(all, (*(*kernelFlatRecord)(ptr(raw))).Sequence)
		positions = append(positions, position)
	}
}

func TestWhatIsNotCommittedIsReadAgain(t *testing.T) {
	k := openKernel(t)
	for i := range uint32(5) {
		k.handshake(i)
	}
	first, positions := sequences(k.reader)
	if len(first) != 5 {
		t.Fatalf("%d records, want 5", len(first))
	}
	k.reader.commitTo(positions[2] - recordHeader)

	again, err := k.Requests.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	second, _ := sequences(again)
	if len(second) != 3 || second[0] != first[2] {
		t.Errorf("after a commit before %d the next reader has %v, want %v", first[2], second, first[2:])
	}
	again.Commit()
	if n := again.Outstanding(); n != 0 {
		t.Errorf("%d bytes outstanding after a commit of all", n)
	}
}

func TestAFullRingIsCountedAndReadOn(t *testing.T) {
	k := openKernel(t)
	const record = flows.RecordSize + recordHeader
	room := k.reader.Size() / record
	for i := range uint32(room + 10) {
		k.handshake(i)
	}
	lost, err := k.Count(RingFull)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := sequences(k.reader)
	if uint64(len(got))+lost != uint64(room+10) || lost == 0 {
		t.Errorf("read %d and lost %d of %d", len(got), lost, room+10)
	}
	k.reader.Commit()
	k.handshake(1 << 30)
	after, _ := sequences(k.reader)
	// The sequence numbers prove the loss exactly.
	if want := got[len(got)-1] + lost + 1; len(after) != 1 || after[0] != want {
		t.Errorf("sequence after the loss is %v, want %d", after, want)
	}
}

func TestWaitEndsByRecordAndByWake(t *testing.T) {
	k := openKernel(t)
	woken := make(chan error, 1)
	go func() { woken <- k.reader.Wait(time.Hour) }()
	k.handshake(1)
	if err := <-woken; err != nil {
		t.Fatal(err)
	}
	sequences(k.reader)
	k.reader.Commit()
	go func() { woken <- k.reader.Wait(time.Hour) }()
	k.reader.Wake()
	if err := <-woken; err != nil {
		t.Fatal(err)
	}
}
