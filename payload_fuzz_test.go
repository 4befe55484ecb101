package tidings_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
)

type (
	currency string
	leaves   struct {
		Yes      bool           `json:"yes"`
		Small    int8           `json:"small,omitempty"`
		Whole    int            `json:"whole"`
		Long     int64          `json:"long,string"`
		Byte     uint8          `json:"byte"`
		Big      uint64         `json:"big"`
		Half     float32        `json:"half"`
		Float    float64        `json:"float,omitzero"`
		Text     string         `json:"text"`
		Currency currency       `json:"currency"`
		At       time.Time      `json:"at"`
		Wait     time.Duration  `json:"wait"`
		Month    time.Month     `json:"month"`
		ID       uuid.UUID      `json:"id"`
		Amount   *big.Int       `json:"amount"`
		Raw      []byte         `json:"raw"`
		NoTag    string         //nolint:tagliatelle // a field without a tag is one of the cases
		Odd      string         `json:"ödd<&>"`
		Optional *string        `json:"optional,omitempty"`
		When     *time.Time     `json:"when"`
		Numbers  []int          `json:"numbers"`
		Floats   []float64      `json:"floats,omitempty"`
		Texts    []string       `json:"texts"`
		Flags    []bool         `json:"flags"`
		Raws     [][]byte       `json:"raws"`
		ByName   map[string]int `json:"byName"`
	}
	Below struct {
		Below string `json:"below"`
	}
	every struct {
		Below
		Leaf   leaves                       `json:"leaf"`
		Leaves []leaves                     `json:"leaves"`
		Named  map[string]leaves            `json:"named"`
		Next   *leaves                      `json:"next,omitempty"`
		Lists  map[string][]*leaves         `json:"lists"`
		Nested map[string]map[string]string `json:"nested"`
	}
)

var everyKind = tidings.Define[every]("fuzz.payload.filled", 1, tidings.Repeatable)

// Whatever a payload says: the contract reads what encoding/json reads, writes what
// encoding/json writes, and what it wrote is read as it was.
func FuzzPayload(f *testing.F) {
	full := leaves{
		Yes: true, Small: -128, Whole: -1, Long: 1 << 60, Byte: 255, Big: 1<<64 - 1, Half: 0.5, Float: 1e300, Text: "\u2028<é😀>\\\"\n", Currency: "EUR",
		At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600)), Wait: time.Hour, Month: time.May, ID: uuid.MustParse("11111111-2222-4333-8444-555555555555"),
		Amount: big.NewInt(1 << 62), Raw: []byte{0, 1, 255}, NoTag: "x", Odd: "y", Optional: new(string), When: &time.Time{}, Numbers: []int{1, 2}, Floats: []float64{1.5},
		Texts: []string{"", "a"}, Flags: []bool{true, false}, Raws: [][]byte{nil, {1}}, ByName: map[string]int{"": 0, "a": 1},
	}
	whole, err := json.Marshal(every{Below{"b"}, full, []leaves{full, {}}, map[string]leaves{"a": full}, &full, map[string][]*leaves{"a": {&full, nil}}, map[string]map[string]string{"a": {"b": "c"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	for _, text := range []string{
		`{}`, `null`, `[]`, `{"leaf":null}`, `{"leaf":{"TEXT":"a","text":"b","Text":"c"}}`, `{"leaf":{"yes":1}}`, `{"leaf":{"small":128}}`, `{"leaf":{"long":1}}`, `{"leaf":{"long":"1"}}`,
		`{"leaf":{"whole":1.0}}`, `{"leaf":{"whole":1e2}}`, `{"leaf":{"float":1e999}}`, `{"leaf":{"raw":"!"}}`, `{"leaf":{"raw":[1,2]}}`, `{"leaf":{"at":"2026"}}`, `{"leaf":{"id":"x"}}`,
		`{"leaf":{"text":"\ud800"}}`, "{\"leaf\":{\"text\":\"\xff\"}}", `{"leaves":[{},null,{}]}`, `{"leaves":{}}`, `{"named":{"a":null,"a":{"whole":1}}}`, `{"lists":{"a":[null,{}]}}`,
		`{"unknown":{"deep":[[[1]]]}}`, `{"leaf":{"amount":12345678901234567890123}}`, `{"leaf":{"amount":"1"}}`, `{"leaf":{"month":13}}`, `{"below":"x"}`, `{"leaf":{"numbers":[1],"numbers":[]}}`,
		`{"leaf":{"optional":null,"when":"0000-01-01T00:00:00Z"}}`, `{"leaf":{}} x`, `{"leaf":{"byName":{"\u0061":1,"a":2}}}`, strings.Repeat(`{"leaf":`, 200) + "1" + strings.Repeat("}", 200),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		got, err := tidings.PayloadOf(everyKind, raw)
		if !bytes.Equal(raw, before) {
			t.Fatal("decoding changed the bytes")
		}
		var want every
		wantErr := json.Unmarshal(raw, &want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: %v, encoding/json says %v", raw, err, wantErr)
		}
		shown := everyKind.Masked(raw)
		if trimmed := bytes.TrimSpace(raw); json.Valid(raw) && trimmed[0] == '{' != json.Valid([]byte(shown)) {
			t.Fatalf("%q is shown as %q", raw, shown)
		}
		if err != nil {
			return
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: read %+v, encoding/json reads %+v", raw, got, want)
		}
		e := everyKind.New("a", got)
		if !reflect.DeepEqual(e.Payload(), got) {
			t.Fatalf("the copy is %+v of %+v", e.Payload(), got)
		}
		if _, err := tidings.InspectPayload(e); err != nil {
			return
		}
		encoded, err := tidings.EncodePayload(e)
		standard, standardErr := json.Marshal(got)
		if err != nil || standardErr != nil {
			t.Fatalf("%+v passed inspection and is not encoded: %v, encoding/json says %v", got, err, standardErr)
		}
		if !utf8.Valid(encoded) || !sameJSON(t, encoded, standard) {
			t.Fatalf("encoded as %s, by encoding/json as %s", encoded, standard)
		}
		back, err := tidings.PayloadOf(everyKind, encoded)
		if err != nil {
			t.Fatalf("%s was written and is not read: %v", encoded, err)
		}
		again, err := tidings.EncodePayload(everyKind.New("a", back))
		if err != nil || !sameJSON(t, again, encoded) {
			t.Fatalf("wrote %s, read and wrote %s (%v)", encoded, again, err)
		}
		if tidings.DigestOf(everyKind.New("a", got)) != tidings.DigestOf(e) {
			t.Fatal("equal payloads have different digests")
		}
		if shown := tidings.Masked(e); !sameJSON(t, []byte(shown), encoded) { // nothing in it is sensitive
			t.Fatalf("shown as %s, it is %s", shown, encoded)
		}
	})
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var first, second any
	for text, into := range map[string]*any{string(a): &first, string(b): &second} {
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(into); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	if string(a) == string(b) {
		return true
	}
	return reflect.DeepEqual(first, second)
}

// Whatever is in a payload, no value of a sensitive field is shown: text that
// nobody else could have written is put into each of them.
func FuzzMasked(f *testing.F) {
	f.Add("Ada", "a", "b", "level", int64(7))
	f.Add("\"},{", "\\", "\u2028", "email", int64(-1))
	f.Fuzz(func(t *testing.T, name, bank, question, member string, level int64) {
		const secret = "5ecret5ecret"
		for _, text := range []string{name, bank, question, member} {
			if strings.Contains(text, secret) || strings.EqualFold(text, "byBank") {
				return // the names in a map that is not tagged are shown
			}
		}
		p := plantedPerson()
		p.Name, p.Email, p.Level, p.Seal = name, secret, int(level), []byte(secret)
		p.Answers = map[string]string{question: secret, secret: question}
		p.ByBank = map[string]card{bank: {Holder: name, Number: plantedNumber}}
		whole, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		added, err := json.Marshal(map[string]any{member: map[string]string{secret: secret}, "EMAIL": secret, secret: 1})
		if err != nil {
			t.Fatal(err)
		}
		both := append(append(bytes.Clone(whole[:len(whole)-1]), ','), added[1:]...)
		for _, raw := range [][]byte{whole, both, both[:len(both)-3]} {
			shown := personMoved.Masked(raw)
			if strings.Contains(shown, secret) || strings.Contains(shown, "4929123456789012") || strings.Contains(shown, "NWVjcmV0") {
				t.Fatalf("%s is shown as %s", raw, shown)
			}
		}
		if shown := personMoved.Masked(whole); !json.Valid([]byte(shown)) {
			t.Fatalf("%s is shown as %s", whole, shown)
		}
	})
}
