package tidings_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

func TestADeadLetterIsAnnounced(t *testing.T) {
	for _, async := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d := memory.New(&memory.Options{Async: async})
			b := tidings.New(d, &tidings.Options{Logger: discard(), AnnounceFailures: true})
			fails := &tidings.SubscribeOptions{MaxAttempts: 1}
			subscribe(t, b, "failing", fails, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
				return errors.New("\xff" + strings.Repeat("é", 2000))
			})
			told := &diary{}
			subscribe(t, b, "listening", fails, tidings.HandlerFailed, func(_ context.Context, e tidings.Event[tidings.HandlerFailedPayload]) error {
				p := e.Payload()
				told.add("%s %s %s %s %d %d %s", p.Subscription, p.EventType, p.EventID, p.Reason, p.Attempts, len(p.Error), e.CausationID())
				return errors.New("and this fails too")
			})
			stop := start(t, b)
			if err := b.Publish(t.Context(), numbered("a", 1)); err != nil {
				t.Fatal(err)
			}
			pass(time.Minute)
			synctest.Wait()
			if want := "numbers.failing numbers.number.chosen a1 exhausted 1 999 a1"; told.String() != want {
				t.Errorf("told %q, want %q", told, want)
			}
			if letters := d.DeadLetters(); len(letters) != 2 {
				t.Errorf("%d dead letters", len(letters))
			}
			// What is announced while the bus drains is heard too.
			if err := b.Publish(t.Context(), numbered("b", 1)); err != nil {
				t.Fatal(err)
			}
			stop()
			if !strings.Contains(told.String(), "b1") {
				t.Errorf("told %q", told)
			}
		})
	}
}

// An announcement that cannot be made holds the lane, as a dead letter does.
func TestAnAnnouncementIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newQueue(true)
		b := tidings.New(&failingPublish{queueDriver: d, failures: 3}, &tidings.Options{Logger: discard(), AnnounceFailures: true})
		subscribe(t, b, "failing", &tidings.SubscribeOptions{MaxAttempts: 1}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			return errors.New("no")
		})
		start(t, b)
		if err := b.Publish(t.Context(), numbered("a", 1)); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		synctest.Wait()
		if len(d.letters) != 1 || len(d.messages) != 2 || !d.messages[0].finished {
			t.Errorf("%d dead letters, %d messages, the first finished: %v", len(d.letters), len(d.messages), d.messages[0].finished)
		}
	})
}
