package sqlstore

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/tidings-go/tidings/driver"
)

// The short way writes what the long one does, and reads nothing that the long one
// would read otherwise.
func FuzzPlainHeaders(f *testing.F) {
	f.Add("eventType", "identity.user.created", "odd", "\xff")
	f.Add("a", `"],["b","c`, "", "é <&> \\ \n")
	f.Add("plain", "", "", "x")
	f.Fuzz(func(t *testing.T, name, value, name2, value2 string) {
		headers := driver.Headers{{Name: name, Value: value}, {Name: name2, Value: value2}}
		text, err := encodeHeaders(headers)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid([]byte(text)) {
			t.Fatalf("no JSON: %s", text)
		}
		if plain, ok := encodePlain(headers); ok {
			long, err := json.Marshal([][]string{{name, value}, {name2, value2}})
			if err != nil || plain != string(long) {
				t.Errorf("short %s, long %s, %v", plain, long, err)
			}
		}
		got, err := decodeHeaders(text)
		if err != nil || !slices.Equal(got, headers) {
			t.Errorf("%q became %q: %v", headers, got, err)
		}
		foreign, err := json.MarshalIndent([][]string{{"a", value}, {"b", value2}}, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeHeaders(string(foreign)); err != nil || len(got) != 2 {
			t.Errorf("%s: %v %v", foreign, got, err)
		}
	})
}
