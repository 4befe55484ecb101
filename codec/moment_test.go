package codec

import (
	"testing"
	"time"
)

// A moment is what time.Parse reads as RFC 3339, in UTC and milliseconds, and is
// written so that both read it back.
func FuzzMoment(f *testing.F) {
	for _, text := range []string{
		"2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05+14:00", "0000-01-01T00:00:00Z", "0000-01-01T00:00:00+01:00", "9999-12-31T23:59:59.999999999-01:00",
		"2026-02-30T00:00:00Z", "2026-01-02 03:04:05Z", "2026-01-02T03:04:05", "", "1", "2026-01-02T24:00:00Z", "2026-01-02T03:04:60Z",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		at, known := parseMoment(text)
		parsed, err := time.Parse(time.RFC3339, string(text))
		if known && (err != nil || at.UnixMilli() != parsed.UnixMilli() || at.Location() != time.UTC) {
			t.Fatalf("%q is read as %v; time.Parse says %v, %v", text, at, parsed, err)
		}
		if !known {
			return
		}
		if at.IsZero() {
			return // the first of January of the year 1 is nobody's time
		}
		written := appendMoment(nil, at)
		if len(written) != wireLength {
			t.Fatalf("%q is written as %q", text, written)
		}
		if back, again := parseMoment(written); !again || !back.Equal(at) {
			t.Fatalf("%q is written as %q and read as %v", text, written, back)
		}
	})
}
