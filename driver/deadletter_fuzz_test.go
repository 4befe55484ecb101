package driver_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Whatever metadata lies in a dead letter topic: it is read, and what was read is
// written so that it is read the same.
func FuzzParseDeadLetter(f *testing.F) {
	f.Add(driver.HeaderDeadReason, "exhausted", driver.HeaderDeadAttempts, "3", "eventType", "a.b.c", []byte(`{}`))
	f.Add(driver.HeaderDeadTime, "2026-01-02T03:04:05.000Z", driver.HeaderDeadSubscription, "billing.x", driver.HeaderDeadReason, "", []byte(nil))
	f.Add(driver.HeaderDeadAttempts, "many", driver.HeaderDeadTime, "yesterday", driver.HeaderDeadError, "\xff", []byte("\xff"))
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, name3, value3 string, body []byte) {
		headers := driver.Headers{{Name: name1, Value: value1}, {Name: name2, Value: value2}, {Name: name3, Value: value3}}
		letter, err := driver.ParseDeadLetter(headers, body)
		if err != nil && len(err.Error()) > 300 {
			t.Fatalf("an error of %d bytes", len(err.Error()))
		}
		written := driver.DeadLetterHeaders(&letter, 1<<20, 1<<20)
		back, err := driver.ParseDeadLetter(written, body)
		if err != nil {
			t.Fatalf("%q was written and is not read: %v", written, err)
		}
		if year := letter.FailedAt.UTC().Year(); year < 0 || year > 9999 {
			t.Fatalf("it failed in the year %d", year)
		}
		letter.Err = driver.Cut(letter.Err, 1<<20) // valid UTF-8
		letter.Stack = driver.Cut(letter.Stack, 1<<20)
		letter.FailedAt = letter.FailedAt.UTC().Truncate(time.Millisecond)
		if back.FailedAt = back.FailedAt.UTC(); !reflect.DeepEqual(back, letter) {
			t.Fatalf("wrote %+v\nread %+v", letter, back)
		}
	})
}

// What went wrong is said by whoever gave the event up, and not by the event:
// headers of those names that it came with do not count.
func TestADeadLetterIsNotForged(t *testing.T) {
	letter := driver.DeadLetter{
		Subscription: "billing.x", Reason: "exhausted", Channel: "a.b.c", ID: "1", Body: []byte(`{}`),
		Headers: driver.Headers{{Name: driver.HeaderDeadReason, Value: "forged"}, {Name: driver.HeaderDeadStack, Value: "forged"}, {Name: "eventType", Value: "a.b.c"}},
	}
	read, err := driver.ParseDeadLetter(driver.DeadLetterHeaders(&letter, 100, 100), letter.Body)
	if err != nil {
		t.Fatal(err)
	}
	if read.Reason != "exhausted" || read.Stack != "" || len(read.Headers) != 1 {
		t.Errorf("read %+v", read)
	}
}

func FuzzCut(f *testing.F) {
	f.Add("text", 3)
	f.Add("\xff\xff\xff", 4)
	f.Add("😀😀😀", 9)
	f.Fuzz(func(t *testing.T, text string, most int) {
		if got := driver.Cut(text, most); most >= 0 && len(got) > most {
			t.Fatalf("%q was cut to %q, of more than %d bytes", text, got, most)
		}
	})
}
