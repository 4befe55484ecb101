package codec

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"testing/quick"
)

// texts are JSON and almost JSON, the first corpus of the fuzz tests.
var texts = []string{
	``, ` `, `{}`, `[]`, ` { } `, `[ ]`, `{"a":1}`, `{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{"a" 1}`, `{a:1}`, `{"a":1 "b":2}`,
	`[1,2]`, `[1,]`, `[,1]`, `[1 2]`, `[`, `]`, `{`, `}`, `{]`, `[}`, `{"a":[{"b":[]}]}`, `{}{}`, `{} x`, "\ufeff{}",
	`null`, `nul`, `nulll`, `true`, `tru`, `false`, `False`, `nil`,
	`0`, `-0`, `01`, `-`, `+1`, `1.`, `.5`, `1.5`, `1e5`, `1E+5`, `1e-`, `1e`, `-1.25e-10`, `1_0`, `0x1`, `NaN`, `12345678901234567890123`,
	`""`, `"a"`, `"`, `"a`, `"\`, `"\"`, `"\n"`, `"\x"`, `"\'"`, `"\u"`, `"\u12"`, `"\u12g4"`, `"\u0000"`, `"\ud83d\ude00"`, `"\ud83d"`,
	`"\ud83dx"`, `"\ud83d\u0041"`, `"\ude00\ud83d"`, `"\ud83d\ud83d\ude00"`, `"\uD83D\n"`, `"\u00e9\/\b\f\r\t\\"`,
	"\"\x00\"", "\"\x1f\"", "\"\n\"", "\"\x7f\"", "\"\xff\"", "\"a\xc3\"", "\"\xed\xa0\x80\"", "\"\xf0\x9f\x98\x80\"", "\"12345678\x1f\"", "\"1234567\xe2\x80\xa8 8\"",
	`{"a":1,"a":2}`, `{"\u0061":1,"a":2}`, `{"":0}`, "\t\r\n{\t\"a\"\r:\n1 }\v", "\f{}", "\u00a0{}",
	strings.Repeat("[", 200) + strings.Repeat("]", 200), strings.Repeat("[", 128) + strings.Repeat("]", 128), strings.Repeat(`{"a":`, 129) + "1" + strings.Repeat("}", 129),
}

func FuzzScan(f *testing.F) {
	for _, text := range texts {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		compareWithEncodingJSON(t, text)
		if !bytes.Equal(text, before) {
			t.Error("the text was changed")
		}
	})
}

func compareWithEncodingJSON(t *testing.T, text []byte) {
	t.Helper()
	deep := depth(text) > maxDepth
	want := json.Valid(text)
	err := valid(text)
	if deep && want && err == nil || !deep && want != (err == nil) || !want && err == nil {
		t.Fatalf("valid(%q) = %v, json.Valid = %v, depth %d", text, err, want, depth(text))
	}
	trimmed := trimSpace(text)
	isObject := err == nil && len(trimmed) > 0 && trimmed[0] == '{'
	if got := checkObject(text, 0); (got == nil) != isObject {
		t.Fatalf("checkObject(%q) = %v, want an object: %v", text, got, isObject)
	}
	members := make(map[string]json.RawMessage)
	err = eachMember(text, 0, func(name []byte, value span) {
		if meant := string(appendUnquoted(nil, name)); memberNamed(unescapedName(name)) != memberNamed([]byte(meant)) {
			t.Errorf("the name %q is not recognised", name)
		}
		members[string(appendUnquoted(nil, name))] = json.RawMessage(text[value.from:value.to])
	})
	if (err == nil) != isObject {
		t.Fatalf("eachMember(%q) = %v, want an object: %v", text, err, isObject)
	}
	if isObject {
		var wanted map[string]json.RawMessage
		if err := json.Unmarshal(text, &wanted); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(members, wanted) {
			t.Fatalf("members of %q are %q, want %q", text, members, wanted)
		}
	}
	if want && len(trimmed) > 0 && trimmed[0] == '"' {
		var wanted string
		if err := json.Unmarshal(text, &wanted); err != nil {
			t.Fatal(err)
		}
		raw := trimmed[1 : len(trimmed)-1]
		if got := string(appendUnquoted(nil, raw)); got != wanted {
			t.Fatalf("%q means %q, want %q", text, got, wanted)
		}
		if isVerbatim(raw) && string(raw) != wanted {
			t.Fatalf("%q is called verbatim, it means %q", raw, wanted)
		}
		checkQuoted(t, wanted)
	}
	checkQuoted(t, string(text))
}

// Text that is only brackets is refused at the limit, not at its end.
func TestDepth(t *testing.T) {
	for _, text := range []string{strings.Repeat("[", 1<<20), strings.Repeat(`{"a":`, 1<<20)} {
		if err := valid([]byte(text)); err == nil || !strings.Contains(err.Error(), "nested deeper than 128 levels") {
			t.Errorf("got %v", err)
		}
	}
}

// depth is how deep brackets nest, given that the text is valid.
func depth(text []byte) int {
	deepest, now, inString := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case !inString && (c == '{' || c == '['):
			now++
			deepest = max(deepest, now)
		case !inString && (c == '}' || c == ']'):
			now--
		}
	}
	return deepest
}

// checkQuoted compares what is written for s with what encoding/json writes: both
// are read back as the same text.
func checkQuoted(t *testing.T, s string) {
	t.Helper()
	quoted := appendQuoted(nil, s)
	standard, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var got, want string
	if err := json.Unmarshal(quoted, &got); err != nil {
		t.Fatalf("%q is written as %s: %v", s, quoted, err)
	}
	if err := json.Unmarshal(standard, &want); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("%q is written as %s and read as %q, want %q", s, quoted, got, want)
	}
	if bytes.Contains(quoted, []byte("\u2028")) || bytes.Contains(quoted, []byte("\u2029")) {
		t.Fatalf("%s has a line separator in it", quoted)
	}
	if raw := quoted[1 : len(quoted)-1]; string(appendUnquoted(nil, raw)) != want {
		t.Fatalf("%s is read back as %q, want %q", quoted, appendUnquoted(nil, raw), want)
	}
}

func TestQuotedTextOfAnyBytes(t *testing.T) {
	if err := quick.Check(func(s string, b []byte) bool {
		checkQuoted(t, s)
		checkQuoted(t, string(b))
		return true
	}, nil); err != nil {
		t.Error(err)
	}
}

// A mark is found wherever it stands in a word and whatever stands around it.
func TestFirstMark(t *testing.T) {
	for _, around := range []byte{'a', ' ', '!', '#', '[', ']', 0x7f, 0x80, 0x9f, 0xa2, 0xdc, 0xff} {
		for size := range 20 {
			for at := range size {
				for c := range 256 {
					text := bytes.Repeat([]byte{around}, size)
					text[at] = byte(c)
					want := size
					if c < ' ' || c == '"' || c == '\\' {
						want = at
					}
					if got := firstMark(text, 0); got != want {
						t.Fatalf("the first mark of %q is at %d, want %d", text, got, want)
					}
					for want = 0; want < size && text[want] < 0x80 && text[want] >= ' ' && text[want] != '"' && text[want] != '\\'; {
						want++
					}
					if got := firstEscape(string(text), 0); got != want {
						t.Fatalf("the first escape of %q is at %d, want %d", text, got, want)
					}
				}
			}
		}
	}
}
