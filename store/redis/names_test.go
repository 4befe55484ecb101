package redis_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/store/redis"
)

func state(t *testing.T, c driver.Claims, subscription, key string) driver.ClaimState {
	t.Helper()
	answer, err := c.Claim(t.Context(), driver.ClaimRequest{Subscription: subscription, Key: key, Owner: "asks", Lease: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return answer.State
}

func TestClaimsAreRenamed(t *testing.T) {
	each(t, func(t *testing.T, servers []string) {
		client := client(t, servers...)
		c := redis.NewClaims(client, namespace(t, client, servers))
		const keys = 50
		for n := range keys {
			r := driver.ClaimRequest{Subscription: "x.old", Key: fmt.Sprintf("a.b.c\n%d*[1]", n), Owner: "o", Lease: time.Minute, Digest: 7}
			if n%2 == 0 {
				r.Keep = time.Hour
			}
			if _, err := c.Claim(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if err := c.Finish(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		other := driver.ClaimRequest{Subscription: "x.older", Key: "a.b.c\n1", Owner: "o", Lease: time.Minute}
		if _, err := c.Claim(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		moved, err := c.Rename(t.Context(), "x.old", driver.Subscription{Name: "x.new"})
		if err != nil || moved != keys {
			t.Errorf("%d, %v", moved, err)
		}
		if moved, err := c.Rename(t.Context(), "x.old", driver.Subscription{Name: "x.new"}); err != nil || moved != 0 {
			t.Errorf("again: %d, %v", moved, err)
		}
		all, err := c.StoredSubscriptions(t.Context(), driver.StoredOptions{Count: true})
		if err != nil || len(all) != 2 || all[0].Name != "x.new" || all[0].Keys != keys || all[1].Name != "x.older" {
			t.Errorf("%+v, %v", all, err)
		}
		for _, n := range []int{0, 1} {
			if got := state(t, c, "x.new", fmt.Sprintf("a.b.c\n%d*[1]", n)); got != driver.ClaimDone {
				t.Errorf("key %d under the new name: %v", n, got)
			}
		}
		deleted, err := c.DeleteSubscription(t.Context(), "x.new")
		if err != nil || !slices.Equal(deleted, []string{"50 claims"}) {
			t.Errorf("%v, %v", deleted, err)
		}
		if got := state(t, c, "x.new", "a.b.c\n0*[1]"); got != driver.ClaimFresh {
			t.Errorf("deleted: %v", got)
		}
	})
}

func TestDeadLettersAreRenamed(t *testing.T) {
	each(t, func(t *testing.T, servers []string) {
		client := client(t, servers...)
		d := redis.NewDeadLetters(client, namespace(t, client, servers))
		put := func(subscription, id string) string {
			t.Helper()
			l := driver.DeadLetter{Subscription: subscription, Type: "a.b.c", ID: id, Err: "of " + subscription, Body: []byte("{}"), FailedAt: time.Now()}
			if err := d.PutDeadLetter(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			return l.Key()
		}
		marked, both := put("x.old", "1"), put("x.old", "2")
		put("x.new", "2")
		if done, err := d.MarkDeadLetters(t.Context(), "x.old", []driver.DeadLetterMark{{Key: marked}}, driver.DeadLetterRetry, "again"); err != nil || len(done) != 1 {
			t.Fatalf("%v, %v", done, err)
		}
		moved, err := d.Rename(t.Context(), "x.old", driver.Subscription{Name: "x.new"})
		if err != nil || moved != 1 {
			t.Errorf("%d, %v", moved, err)
		}
		letter, err := d.GetDeadLetter(t.Context(), "x.new", marked)
		if err != nil || letter.Subscription != "x.new" || letter.State != driver.DeadLetterRetry || letter.Note != "again" {
			t.Errorf("%+v, %v", letter, err)
		}
		changes, err := d.DeadLetterChanges(t.Context(), "x.new", marked)
		if err != nil || len(changes) != 2 {
			t.Errorf("its history: %+v, %v", changes, err)
		}
		given, err := d.TakeDeadLetters(t.Context(), "x.new", nil, 10, time.Minute)
		if err != nil || len(given) != 1 {
			t.Errorf("what is marked: %+v, %v", given, err)
		}
		for _, subscription := range []string{"x.old", "x.new"} {
			if letter, err := d.GetDeadLetter(t.Context(), subscription, both); err != nil || letter.Err != "of "+subscription {
				t.Errorf("%s: %+v, %v", subscription, letter, err)
			}
		}
		stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{Count: true})
		if err != nil || len(stored) != 2 || stored[0].DeadLetters != 2 || stored[1].DeadLetters != 1 {
			t.Errorf("%+v, %v", stored, err)
		}
		if deleted, err := d.DeleteSubscription(t.Context(), "x.new"); err != nil || len(deleted) != 1 {
			t.Errorf("%v, %v", deleted, err)
		}
		if _, err := d.GetDeadLetter(t.Context(), "x.new", marked); !errors.Is(err, driver.ErrNoDeadLetter) {
			t.Errorf("deleted: %v", err)
		}
	})
}
