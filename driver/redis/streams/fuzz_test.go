package streams

import (
	"encoding/json"
	"testing"
)

// What is taken for an id of an entry is one, and is written so that Redis and we
// read it the same.
func FuzzParseID(f *testing.F) {
	for _, text := range []string{"1-2", "1", "0-0", "18446744073709551615-18446744073709551615", "-1", "1-", "1-2-3", "+1-2", " 1", "1e3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := parseID(text)
		if err != nil {
			return
		}
		if back, err := parseID(parsed.String()); err != nil || back != parsed {
			t.Fatalf("%q is read as %v and written as %s", text, parsed, parsed)
		}
		if last := (id{^uint64(0), ^uint64(0)}); parsed != last && parsed.next().compare(parsed) <= 0 {
			t.Fatalf("%v comes after %v", parsed, parsed.next())
		}
	})
}

// An entry of any fields: its size is that of what it has, and one that no
// publisher of ours wrote is given up with everything in its body.
func FuzzEntry(f *testing.F) {
	f.Add("body", "{}", "key", "u-1")
	f.Add("eventType", "a.b.c", "body", "\xff")
	f.Add("name", "Ada", "", "")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		e := entry{fields: []string{name1, value1, name2, value2}}
		m, giveUp := e.message("a.b.c")
		if m.Size != len(name1)+len(value1)+len(name2)+len(value2) {
			t.Fatalf("size %d of %q", m.Size, []string{name1, value1, name2, value2})
		}
		if foreigner := name1 != "body" && name2 != "body"; foreigner != (giveUp != "") {
			t.Fatalf("given up as %q", giveUp)
		}
		if giveUp != "" && !json.Valid(m.Body) {
			t.Fatalf("the body %q of a foreign entry is not JSON", m.Body)
		}
	})
}
