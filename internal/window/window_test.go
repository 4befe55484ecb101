package window

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestWindow(t *testing.T) {
	w := New(100, nil, 10)
	for offset := int64(100); offset < 110; offset++ {
		if got := w.Admit(offset, 5); got != Take {
			t.Fatalf("admit %d: %v", offset, got)
		}
	}
	if got := w.Admit(110, 5); got != Full {
		t.Fatalf("an eleventh: %v", got)
	}
	if got := w.Admit(105, 5); got != Skip {
		t.Fatalf("one that was seen: %v", got)
	}
	if w.Bytes != 50 || w.Length() != 10 {
		t.Fatalf("bytes %d, length %d", w.Bytes, w.Length())
	}
	for _, offset := range []int64{101, 103, 104} {
		if !w.Finish(offset, 5) || w.Finish(offset, 5) {
			t.Fatalf("finish %d", offset)
		}
	}
	if w.Base != 100 || !slices.Equal(w.Finished(), []Span{{101, 102}, {103, 105}}) {
		t.Fatalf("base %d, finished %v", w.Base, w.Finished())
	}
	w.Finish(100, 5)
	if w.Base != 102 || w.Bytes != 30 {
		t.Fatalf("base %d, bytes %d", w.Base, w.Bytes)
	}
	if w.Finish(99, 5) || w.Finish(110, 5) {
		t.Fatal("outside of the window")
	}
	if got := w.Admit(111, 5); got != Take { // 110 does not exist
		t.Fatalf("after a gap: %v", got)
	}
	for offset := int64(102); offset < 110; offset++ {
		w.Finish(offset, 5)
	}
	if w.Base != 111 || w.Length() != 1 {
		t.Fatalf("base %d: the gap is finished", w.Base)
	}
	w.Finish(111, 5)
	if got := w.Admit(1_000_000, 5); got != Take || w.Base != 1_000_000 {
		t.Fatalf("a gap larger than the window while nothing is unfinished: %v, base %d", got, w.Base)
	}
	if got := w.Admit(2_000_000, 5); got != Full {
		t.Fatalf("a gap larger than the window behind an unfinished one: %v", got)
	}
}

func TestWindowBeginsWithFinished(t *testing.T) {
	w := New(50, []Span{{51, 53}, {55, 56}}, 10)
	var taken []int64
	for offset := int64(50); offset < 58; offset++ {
		if w.Admit(offset, 1) == Take {
			taken = append(taken, offset)
		}
	}
	if !slices.Equal(taken, []int64{50, 53, 54, 56, 57}) {
		t.Fatalf("taken %v", taken)
	}
	if !slices.Equal(w.Finished(), []Span{{51, 53}, {55, 56}}) {
		t.Fatalf("finished %v", w.Finished())
	}
	// The first record may lie behind spans that were compacted since.
	w = New(50, []Span{{51, 53}, {55, 56}, {60, 62}}, 10)
	if got := w.Admit(55, 1); got != Skip || w.Base != 56 {
		t.Fatalf("%v, base %d", got, w.Base)
	}
	if got := w.Admit(59, 1); got != Take || !slices.Equal(w.Finished(), []Span{{60, 62}}) {
		t.Fatalf("%v, finished %v", got, w.Finished())
	}
}

// TestWindowProperties compares a window with a map, through restarts.
func TestWindowProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.Int64Range(0, 1<<40).Draw(t, "start")
		most := rapid.IntRange(1, 200).Draw(t, "most")
		w := New(start, nil, most)
		unfinished, done := map[int64]bool{}, map[int64]bool{}
		log := start // what the log was read to
		var records []int64
		next := start
		check := func() {
			oldest := w.Next
			for offset := range unfinished {
				oldest = min(oldest, offset)
			}
			if w.Base != oldest {
				t.Fatalf("base %d, oldest unfinished %d", w.Base, oldest)
			}
			if w.Length() > most {
				t.Fatalf("length %d over %d", w.Length(), most)
			}
			if w.Bytes != len(unfinished) {
				t.Fatalf("bytes %d, unfinished %d", w.Bytes, len(unfinished))
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) {
				offset := next + rapid.Int64Range(0, 5).Draw(t, "gap")
				switch w.Admit(offset, 1) {
				case Take:
					if done[offset] {
						t.Fatalf("%d was finished", offset)
					}
					unfinished[offset] = true
				case Skip:
					if !done[offset] {
						t.Fatalf("%d was not finished", offset)
					}
				case Full:
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
				if changed := w.Finish(offset, 1); changed != unfinished[offset] {
					t.Fatalf("finish %d changed %t", offset, changed)
				}
				if unfinished[offset] {
					delete(unfinished, offset)
					done[offset] = true
				}
				check()
			},
			"restart": func(t *rapid.T) {
				spans := Decode(w.Base, Encode(w.Base, w.Finished()))
				base := w.Base
				w = New(base, spans, most)
				clear(unfinished)
				before := records
				records = nil
				for _, offset := range before { // the same log comes again
					if offset < base {
						continue
					}
					switch w.Admit(offset, 1) {
					case Take:
						if done[offset] {
							t.Fatalf("%d comes again although it was finished", offset)
						}
						unfinished[offset] = true
					case Skip:
						if !done[offset] {
							t.Fatalf("%d is lost", offset)
						}
					case Full:
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
	every := func(from, to, step int64) (spans []Span) {
		for offset := from; offset < to; offset += step {
			spans = append(spans, Span{offset, offset + 1})
		}
		return spans
	}
	for name, c := range map[string]struct {
		position int64
		finished []Span
	}{
		"none":           {5, nil},
		"one":            {5, []Span{{7, 8}}},
		"at once":        {5, []Span{{6, 9}}},
		"runs":           {0, []Span{{1, 3}, {100, 2000}, {19_000, 20_000}}},
		"every other":    {1 << 50, every(1<<50+1, 1<<50+Most, 2)},
		"every third":    {7, every(9, 7+Most, 3)},
		"the last alone": {7, []Span{{7 + Most - 1, 7 + Most}}},
		"all but one":    {7, []Span{{8, 9000}, {9001, 7 + Most}}},
	} {
		text := Encode(c.position, c.finished)
		if len(text) > MostText {
			t.Errorf("%s: %d characters", name, len(text))
		}
		if got := Decode(c.position, text); !slices.Equal(got, c.finished) {
			t.Errorf("%s: got %v, want %v", name, got, c.finished)
		}
		if text != "" && Decode(c.position+1, text) != nil {
			t.Errorf("%s: accepted for another position", name)
		}
	}
	if got := Encode(0, every(1, Most, 2)); len(got) < 3000 {
		t.Errorf("a full bitmap has %d characters", len(got))
	}
	beyond := Encode(0, []Span{{1, 2}, {Most - 1, Most + 5}, {Most + 10, Most + 11}})
	if got := Decode(0, beyond); !slices.Equal(got, []Span{{1, 2}, {Most - 1, Most}}) {
		t.Errorf("beyond what can be described: %v", got)
	}
}

func TestForeignMetadataIsEmpty(t *testing.T) {
	good := Encode(10, []Span{{12, 13}})
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
		"too long":        strings.Repeat("A", MostText+1),
		"a newer version": other(func(b []byte) []byte { b[0] += 0x10; return b }),
		"an unknown kind": other(func(b []byte) []byte { b[0] += 7; return b }),
		"another check":   other(func(b []byte) []byte { b[1]++; return b }),
		"cut":             other(func(b []byte) []byte { return b[:len(b)-1] }),
		"only a head":     other(func(b []byte) []byte { return b[:2] }),
	} {
		if got := Decode(10, text); got != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(int64(0), "")
	f.Add(int64(10), Encode(10, []Span{{12, 13}, {15, 80}}))
	f.Add(int64(3), Encode(3, []Span{{4, 5}, {6, 7}, {8, 9}, {10, 11}, {12, 13}, {14, 15}}))
	f.Add(int64(1), "EQAB")
	f.Fuzz(func(t *testing.T, position int64, text string) {
		finished := Decode(position, text)
		before := position // what is at position is never finished
		for _, s := range finished {
			if s.From <= before || s.To <= s.From || s.To > position+Most+1 {
				t.Fatalf("position %d: %v", position, finished)
			}
			before = s.To
		}
		if finished == nil {
			return
		}
		w := New(position, finished, Most)
		if got := Decode(position, Encode(position, w.Finished())); !slices.Equal(got, finished) {
			t.Fatalf("again: got %v, want %v", got, finished)
		}
	})
}
