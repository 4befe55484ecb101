package deadletter_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/store/memory"
)

// What subscriptions gave up on is looked at, and what is not needed is given up.
func Example() {
	ctx := context.Background()
	store := &memory.DeadLetters{} // a database in production
	for n, failure := range []string{"bank: timed out after 3 s", "bank: timed out after 5 s", "no such account"} {
		err := store.PutDeadLetter(ctx, driver.DeadLetter{
			Subscription: "billing.ledger", Type: "billing.invoice.issued", ID: fmt.Sprint("i-", n), Reason: "exhausted", Err: failure, FailedAt: time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC),
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	letters, err := deadletter.New(store, &deadletter.Options{By: "ada"})
	if err != nil {
		log.Fatal(err)
	}
	groups, err := letters.Groups(ctx, deadletter.Filter{}, 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, g := range groups {
		fmt.Println(g.Count, "x", g.Err)
	}
	chosen, err := letters.Select(ctx, deadletter.Filter{Fingerprint: groups[1].Fingerprint}, 100)
	if err != nil {
		log.Fatal(err)
	}
	result, err := chosen.Discard(ctx, "the account was closed", nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Items[0].Key, result.Items[0].Outcome)
	// Output:
	// 2 x bank: timed out after 3 s
	// 1 x no such account
	// billing.invoice.issued/i-2 discarded
}

func ExampleSelection_Retry() {
	ctx := context.Background()
	store := &memory.DeadLetters{}
	err := store.PutDeadLetter(ctx, driver.DeadLetter{Subscription: "billing.ledger", Type: "billing.invoice.issued", ID: "i-1", Reason: "exhausted", Err: "bank: timed out", FailedAt: time.Now()})
	if err != nil {
		log.Fatal(err)
	}
	letters, err := deadletter.New(store, nil)
	if err != nil {
		log.Fatal(err)
	}
	chosen, err := letters.Select(ctx, deadletter.Filter{Subscription: "billing.ledger"}, 10_000)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(chosen.Count(), "selected, such as", chosen.Sample(1)[0].Key)
	// The subscription's engine finds the mark and handles the event in its lane.
	// With Wait, Retry returns when it has.
	result, err := chosen.Retry(ctx, "the bank answers again", &deadletter.ActOptions{PerSecond: 100})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Count(deadletter.Marked), "marked")
	// Output:
	// 1 selected, such as billing.invoice.issued/i-1
	// 1 marked
}
