package sqlstore

import (
	"slices"
	"testing"

	"github.com/tidings-go/tidings/driver"
)

// Headers of any bytes come back as they were.
func FuzzEncodeHeaders(f *testing.F) {
	f.Add("eventType", "a.b.c", "\xff", "\x00")
	f.Add("", "", "hexadecimal", "[")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		headers := driver.Headers{{Name: name1, Value: value1}, {Name: name2, Value: value2}}
		text, err := encodeHeaders(headers)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeHeaders(text); err != nil || !slices.Equal(back, headers) {
			t.Fatalf("%q is written as %s and read as %q (%v)", headers, text, back, err)
		}
	})
}

// Whatever somebody wrote into the column: it is refused, or read as headers that
// are written so that they are read the same.
func FuzzDecodeHeaders(f *testing.F) {
	for _, text := range []string{`[["eventType","a.b.c"]]`, `[["ff","00","hexadecimal"]]`, `[["f","0","hexadecimal"]]`, `[["a"]]`, `[[]]`, `[]`, `null`, `{}`, ``, `[["a","b","c","d"]]`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		headers, err := decodeHeaders(text)
		if err != nil {
			return
		}
		if size := len(headers); size > len(text)/4+1 {
			t.Fatalf("%d headers of %d bytes", size, len(text))
		}
		again, err := encodeHeaders(headers)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeHeaders(again); err != nil || !slices.Equal(back, headers) {
			t.Fatalf("%q is read as %q, written as %q and read as %q (%v)", text, headers, again, back, err)
		}
	})
}
