package wire

import (
	"reflect"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// A dead letter comes out of a stream as it went in.
func FuzzDeadLetter(f *testing.F) {
	f.Add("eventType", "a.b.c", "u-1", []byte(`{}`), "exhausted", "no", 3)
	f.Add("aggregateId", "u-1", "u-1", []byte("\xff\x00"), "", "", 0)
	f.Add("key", "forged", "u-1", []byte(nil), "undecodable", "\xff", -1)
	f.Add("body", "forged", "", []byte(`{}`), "undecodable", "x", 1)
	f.Fuzz(func(t *testing.T, name, value, aggregate string, body []byte, reason, failure string, attempts int) {
		letter := driver.DeadLetter{
			Subscription: "billing.x", Reason: reason, Err: failure, Attempts: attempts, Channel: "a.b.c", ID: "1", AggregateID: aggregate, Position: "1-0",
			FailedAt: time.UnixMilli(1).UTC(), Body: append([]byte{}, body...), Headers: driver.Headers{{Name: name, Value: value}},
		}
		back, err := ParseDeadLetter(Fields(driver.DeadLetterHeaders(&letter, 8<<10, 16<<10), letter.AggregateID, letter.Body))
		if err != nil {
			t.Fatal(err)
		}
		if string(back.Body) != string(letter.Body) || back.AggregateID != aggregate || back.Reason != reason || back.Attempts != attempts || back.ID != "1" {
			t.Fatalf("wrote %+v\nread %+v", letter, back)
		}
	})
}

// Whatever an entry has: it is read, and bounded by what it had.
func FuzzParseDeadLetter(f *testing.F) {
	f.Add("body", "{}", "key", "u-1", "deadLetterAttempts", "x")
	f.Add("body", "1", "body", "2", "odd", "")
	f.Fuzz(func(t *testing.T, a, b, c, d, e, g string) {
		fields := []string{a, b, c, d, e, g}
		letter, _ := ParseDeadLetter(fields)
		if odd, _ := ParseDeadLetter(fields[:5]); !reflect.DeepEqual(odd.Body, letter.Body) && e != FieldBody {
			t.Fatalf("a name without a value changed the body: %q, %q", odd.Body, letter.Body)
		}
		size := 0
		for _, h := range letter.Headers {
			size += len(h.Name) + len(h.Value)
		}
		if size+len(letter.Body) > len(a)+len(b)+len(c)+len(d)+len(e)+len(g) {
			t.Fatalf("%q became %+v", fields, letter)
		}
	})
}
