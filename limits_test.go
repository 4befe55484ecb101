package tidings_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

// Hostile records are dead letters that every store takes: what they say of
// themselves is short text without a NUL, and their bytes are kept. The record that
// comes behind them in the same lane is handled.
func TestHostileRecordsAreDeadLetters(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	envelope := func(payload string) string {
		return `{"id":"1","aggregateId":"a","eventType":"numbers.number.chosen","version":1,"payload":` + payload + `}`
	}
	records := map[string]driver.Message{
		"deep":                {Body: []byte(strings.Repeat(`{"a":`, 1<<18))},
		"no JSON":             {Body: []byte("\x00\xff")},
		"a number too large":  {Body: []byte(envelope(`{"number":` + strings.Repeat("9", 1<<20) + `}`))},
		"another type":        {Body: []byte(envelope(`{"number":{"a":[1,2,3]}}`))},
		"ids with a NUL":      {Body: []byte("["), Headers: driver.Headers{{Name: driver.HeaderEventID, Value: "\x00"}, {Name: driver.HeaderAggregateID, Value: "\x00"}, {Name: driver.HeaderEventType, Value: "\x00"}}},
		"ids of no UTF-8":     {Body: []byte("["), Headers: driver.Headers{{Name: driver.HeaderEventID, Value: "\xff"}, {Name: driver.HeaderAggregateID, Value: "\xff"}, {Name: driver.HeaderEventType, Value: "\xff"}}},
		"long ids":            {Body: []byte("["), Headers: driver.Headers{{Name: driver.HeaderEventID, Value: long}, {Name: driver.HeaderAggregateID, Value: long}, {Name: driver.HeaderEventType, Value: long}}},
		"long ids in headers": {Body: []byte(envelope(`{"number":1}`)), Headers: driver.Headers{{Name: driver.HeaderEventType, Value: long}}},
		"too many headers":    {Body: []byte(envelope(`{"number":1}`)), Headers: make(driver.Headers, 300)},
	}
	synctest.Test(t, func(t *testing.T) {
		d := newQueue(true)
		b := tidings.New(d, &tidings.Options{Logger: discard()})
		handled := 0
		subscribe(t, b, "watch", &tidings.SubscribeOptions{MaxAttempts: 1}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			handled++
			return nil
		})
		for name, m := range records {
			m.ID, m.Key, m.Channel = name, "a", numberChosen.Channel()
			d.messages = append(d.messages, &queued{Message: m})
		}
		stop := start(t, b)
		if err := b.Publish(t.Context(), numbered("a", 1)); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		stop()
		if handled != 1 || len(d.letters) != len(records) || d.left() != 0 {
			t.Errorf("handled %d, %d dead letters of %d, %d left", handled, len(d.letters), len(records), d.left())
		}
		for _, letter := range d.letters {
			if letter.Reason != "undecodable" || letter.ID == "" || string(letter.Body) != string(records[letter.Position].Body) {
				t.Errorf("%s: reason %s, id %q, %d bytes", letter.Position, letter.Reason, letter.ID, len(letter.Body))
			}
			for _, text := range []string{letter.ID, letter.AggregateID, letter.Type} {
				if len(text) > 256 || !utf8.ValidString(text) || strings.Contains(text, "\x00") {
					t.Errorf("%s: it says %.80q of itself", letter.Position, text)
				}
			}
			if len(letter.Err) > 2048 {
				t.Errorf("%s: an error of %d bytes", letter.Position, len(letter.Err))
			}
		}
	})
}

// However many headers observers add, a record has no more than a reader takes.
type manyHeaders struct{}

func (manyHeaders) Observe(context.Context, tidings.Observation) {}

func (manyHeaders) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	for n := range 1000 {
		p.SetHeader(0, fmt.Sprint("x-", n), "1")
	}
	return ctx, nil
}

func TestNoMoreHeadersThanAReaderTakes(t *testing.T) {
	d := newQueue(true)
	b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{manyHeaders{}}})
	if err := b.Publish(t.Context(), numbered("a", 1)); err != nil {
		t.Fatal(err)
	}
	if n := len(d.messages[0].Headers); n != codec.MaxHeaders {
		t.Errorf("%d headers were written, at most %d are read", n, codec.MaxHeaders)
	}
	if _, err := codec.Decode(&driver.Delivery{Message: d.messages[0].Message, Ref: d.messages[0]}); err != nil {
		t.Error(err)
	}
}

// What is remembered of events that are handled does not grow with their number, be
// they of one aggregate or of one each: four times as many leave no more behind.
func TestMemoryDoesNotGrowWithTheNumberOfEvents(t *testing.T) {
	for name, aggregates := range map[string]int{"one aggregate": 1, "an aggregate each": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			d := memory.New(&memory.Options{Async: true, MaxEvents: 2_000})
			b := tidings.New(d, &tidings.Options{Logger: discard(), LocalClaims: 2_000})
			subscribe(t, b, "watch", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error { return nil })
			stop := start(t, b)
			left := func(events int) int64 {
				for n := range events {
					if err := b.Publish(t.Context(), numberChosen.New(fmt.Sprint("number-", n%aggregates), numberPayload{n})); err != nil {
						t.Fatal(err)
					}
				}
				waitFor(t, func() bool { unfinished, _ := d.Usage(); return unfinished == 0 })
				return heapInUse()
			}
			first := left(10_000)
			goroutines := runtime.NumGoroutine()
			second := left(40_000)
			t.Logf("after 10 000 events %d KiB, after 50 000 %d KiB", first>>10, second>>10)
			if second > first+1<<20 || runtime.NumGoroutine() > goroutines+20 {
				t.Errorf("the heap grew from %d to %d KiB, goroutines from %d to %d", first>>10, second>>10, goroutines, runtime.NumGoroutine())
			}
			stop()
		})
	}
}
