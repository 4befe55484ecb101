package kafka

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestWindow(t *testing.T) {
	w := newWindow(100, nil, 10)
	for offset := int64(100); offset < 110; offset++ {
		if got := w.admit(offset, 5); got != admitTake {
			t.Fatalf("admit %d: %v", offset, got)
		}
	}
	if got := w.admit(110, 5); got != admitFull {
		t.Fatalf("an eleventh: %v", got)
	}
	if got := w.admit(105, 5); got != admitSkip {
		t.Fatalf("one that was seen: %v", got)
	}
	if w.bytes != 50 || w.length() != 10 {
		t.Fatalf("bytes %d, length %d", w.bytes, w.length())
	}
	for _, offset := range []int64{101, 103, 104} {
		if !w.finish(offset, 5) || w.finish(offset, 5) {
			t.Fatalf("finish %d", offset)
		}
	}
	if w.base != 100 || !slices.Equal(w.finished(), []span{{101, 102}, {103, 105}}) {
		t.Fatalf("base %d, finished %v", w.base, w.finished())
	}
	w.finish(100, 5)
	if w.base != 102 || w.bytes != 30 {
		t.Fatalf("base %d, bytes %d", w.base, w.bytes)
	}
	if w.finish(99, 5) || w.finish(110, 5) {
		t.Fatal("outside of the window")
	}
	if got := w.admit(111, 5); got != admitTake { // 110 does not exist
		t.Fatalf("after a gap: %v", got)
	}
	for offset := int64(102); offset < 110; offset++ {
		w.finish(offset, 5)
	}
	if w.base != 111 || w.length() != 1 {
		t.Fatalf("base %d: the gap is finished", w.base)
	}
	w.finish(111, 5)
	if got := w.admit(1_000_000, 5); got != admitTake || w.base != 1_000_000 {
		t.Fatalf("a gap larger than the window while nothing is unfinished: %v, base %d", got, w.base)
	}
	if got := w.admit(2_000_000, 5); got != admitFull {
		t.Fatalf("a gap larger than the window behind an unfinished one: %v", got)
	}
}

func TestWindowBeginsWithFinished(t *testing.T) {
	w := newWindow(50, []span{{51, 53}, {55, 56}}, 10)
	var taken []int64
	for offset := int64(50); offset < 58; offset++ {
		if w.admit(offset, 1) == admitTake {
			taken = append(taken, offset)
		}
	}
	if !slices.Equal(taken, []int64{50, 53, 54, 56, 57}) {
		t.Fatalf("taken %v", taken)
	}
	if !slices.Equal(w.finished(), []span{{51, 53}, {55, 56}}) {
		t.Fatalf("finished %v", w.finished())
	}
	// The first record may lie behind spans that were compacted since.
	w = newWindow(50, []span{{51, 53}, {55, 56}, {60, 62}}, 10)
	if got := w.admit(55, 1); got != admitSkip || w.base != 56 {
		t.Fatalf("%v, base %d", got, w.base)
	}
	if got := w.admit(59, 1); got != admitTake || !slices.Equal(w.finished(), []span{{60, 62}}) {
		t.Fatalf("%v, finished %v", got, w.finished())
	}
}

// TestWindowProperties compares a window with a map, through restarts.
func TestWindowProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.Int64Range(0, 1<<40).Draw(t, "start")
		most := rapid.IntRange(1, 200).Draw(t, "most")
		w := newWindow(start, nil, most)
		unfinished, done := map[int64]bool{}, map[int64]bool{}
		log := start // what the log was read to
		var records []int64
		next := start
		check := func() {
			oldest := w.next
			for offset := range unfinished {
				oldest = min(oldest, offset)
			}
			if w.base != oldest {
				t.Fatalf("base %d, oldest unfinished %d", w.base, oldest)
			}
			if w.length() > most {
				t.Fatalf("length %d over %d", w.length(), most)
			}
			if w.bytes != len(unfinished) {
				t.Fatalf("bytes %d, unfinished %d", w.bytes, len(unfinished))
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) {
				offset := next + rapid.Int64Range(0, 5).Draw(t, "gap")
				switch w.admit(offset, 1) {
				case admitTake:
					if done[offset] {
						t.Fatalf("%d was finished", offset)
					}
					unfinished[offset] = true
				case admitSkip:
					if !done[offset] {
						t.Fatalf("%d was not finished", offset)
					}
				case admitFull:
					if len(unfinished) == 0 {
						t.Fatal("full with nothing unfinished")
					}
					return
				}
				records = append(records, offset)
				next, log = offset+1, max(log, offset+1)
				check()
			},
			"finish": func(t *rapid.T) {
				if len(records) == 0 {
					return
				}
				offset := rapid.SampledFrom(records).Draw(t, "offset")
				if changed := w.finish(offset, 1); changed != unfinished[offset] {
					t.Fatalf("finish %d changed %t", offset, changed)
				}
				if unfinished[offset] {
					delete(unfinished, offset)
					done[offset] = true
				}
				check()
			},
			"restart": func(t *rapid.T) {
				spans := decodeMetadata(w.base, encodeMetadata(w.base, w.finished()))
				base := w.base
				w = newWindow(base, spans, most)
				clear(unfinished)
				before := records
				records = nil
				for _, offset := range before { // the same log comes again
					if offset < base {
						continue
					}
					switch w.admit(offset, 1) {
					case admitTake:
						if done[offset] {
							t.Fatalf("%d comes again although it was finished", offset)
						}
						unfinished[offset] = true
					case admitSkip:
						if !done[offset] {
							t.Fatalf("%d is lost", offset)
						}
					case admitFull:
						t.Fatalf("%d did fit before", offset)
					}
					records = append(records, offset)
				}
				next = log
				check()
			},
		})
	})
}

func TestMetadata(t *testing.T) {
	every := func(from, to, step int64) (spans []span) {
		for offset := from; offset < to; offset += step {
			spans = append(spans, span{offset, offset + 1})
		}
		return spans
	}
	for name, c := range map[string]struct {
		position int64
		finished []span
	}{
		"none":           {5, nil},
		"one":            {5, []span{{7, 8}}},
		"at once":        {5, []span{{6, 9}}},
		"runs":           {0, []span{{1, 3}, {100, 2000}, {19_000, 20_000}}},
		"every other":    {1 << 50, every(1<<50+1, 1<<50+maxWindow, 2)},
		"every third":    {7, every(9, 7+maxWindow, 3)},
		"the last alone": {7, []span{{7 + maxWindow - 1, 7 + maxWindow}}},
		"all but one":    {7, []span{{8, 9000}, {9001, 7 + maxWindow}}},
	} {
		text := encodeMetadata(c.position, c.finished)
		if len(text) > maxMetadata {
			t.Errorf("%s: %d characters", name, len(text))
		}
		if got := decodeMetadata(c.position, text); !slices.Equal(got, c.finished) {
			t.Errorf("%s: got %v, want %v", name, got, c.finished)
		}
		if text != "" && decodeMetadata(c.position+1, text) != nil {
			t.Errorf("%s: accepted for another position", name)
		}
	}
	if got := encodeMetadata(0, every(1, maxWindow, 2)); len(got) < 3000 {
		t.Errorf("a full bitmap has %d characters", len(got))
	}
	beyond := encodeMetadata(0, []span{{1, 2}, {maxWindow - 1, maxWindow + 5}, {maxWindow + 10, maxWindow + 11}})
	if got := decodeMetadata(0, beyond); !slices.Equal(got, []span{{1, 2}, {maxWindow - 1, maxWindow}}) {
		t.Errorf("beyond what can be described: %v", got)
	}
}

func TestForeignMetadataIsEmpty(t *testing.T) {
	good := encodeMetadata(10, []span{{12, 13}})
	raw, err := base64.RawStdEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	other := func(change func([]byte) []byte) string {
		return base64.RawStdEncoding.EncodeToString(change(slices.Clone(raw)))
	}
	for name, text := range map[string]string{
		"a member id":     "kgo-2f6d8a5e-7d0e-4b43-9c7c-6fa3a1f7a111",
		"letters":         "metadata",
		"too long":        strings.Repeat("A", maxMetadata+1),
		"a newer version": other(func(b []byte) []byte { b[0] += 0x10; return b }),
		"an unknown kind": other(func(b []byte) []byte { b[0] += 7; return b }),
		"another check":   other(func(b []byte) []byte { b[1]++; return b }),
		"cut":             other(func(b []byte) []byte { return b[:len(b)-1] }),
		"only a head":     other(func(b []byte) []byte { return b[:2] }),
	} {
		if got := decodeMetadata(10, text); got != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(int64(0), "")
	f.Add(int64(10), encodeMetadata(10, []span{{12, 13}, {15, 80}}))
	f.Add(int64(3), encodeMetadata(3, []span{{4, 5}, {6, 7}, {8, 9}, {10, 11}, {12, 13}, {14, 15}}))
	f.Add(int64(1), "EQAB")
	f.Fuzz(func(t *testing.T, position int64, text string) {
		finished := decodeMetadata(position, text)
		before := position // what is at position is never finished
		for _, s := range finished {
			if s.from <= before || s.to <= s.from || s.to > position+maxWindow+1 {
				t.Fatalf("position %d: %v", position, finished)
			}
			before = s.to
		}
		if finished == nil {
			return
		}
		w := newWindow(position, finished, maxWindow)
		if got := decodeMetadata(position, encodeMetadata(position, w.finished())); !slices.Equal(got, finished) {
			t.Fatalf("again: got %v, want %v", got, finished)
		}
	})
}
