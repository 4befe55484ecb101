package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

func TestDead(t *testing.T) {
	databases(t, func(t *testing.T, app application) {
		tool(t, app.environment, "dead", "ls").want(t, exitOK, "There is no such dead letter.")
		store := app.database.DeadLetters()
		for n := range 5 {
			err := store.PutDeadLetter(t.Context(), driver.DeadLetter{
				Subscription: "billing.ledger", Channel: "billing.booking", Type: "billing.booking.made", ID: fmt.Sprint("e", n), AggregateID: "customer-17", Reason: "exhausted",
				Err: fmt.Sprintf("ledger: account %d is locked", n), Stack: "goroutine 1", Attempts: 10, FailedAt: time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC),
				Headers: driver.Headers{{Name: "eventType", Value: "billing.booking.made"}},
				Body:    fmt.Appendf(nil, `{"id":"e%d","aggregateId":"customer-17","eventType":"billing.booking.made","occurredAt":"2026-01-02T03:04:05.000Z","version":3,"payload":{"iban":"DE02"}}`, n),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		fingerprint := driver.Fingerprint("ledger: account 1 is locked")
		tool(t, app.environment, "dead", "ls", "--limit", "2").want(t, exitOK, "billing.booking.made/e4", "account 3 is locked", fingerprint, "There are more")
		tool(t, app.environment, "dead", "ls", "--groups").want(t, exitOK, "5  ", fingerprint)
		var list struct {
			Letters []deadLetter
			Next    string
		}
		tool(t, app.environment, "dead", "ls", "--json", "--since", "2026-01-02T03:04:02Z", "--state", "open", "--type", "billing.booking.made", "--fingerprint", fingerprint).want(t, exitOK).decode(t, &list)
		if len(list.Letters) != 3 || list.Next != "" || list.Letters[0].Attempts != 10 || list.Letters[0].Times != 1 {
			t.Errorf("%+v", list)
		}
		show := []string{"dead", "show", "billing.ledger", "billing.booking.made/e1"}
		tool(t, app.environment, show...).want(t, exitOK, "DE02", "version 3", "goroutine 1", "account 1 is locked", "eventType: billing.booking.made", "open exhausted")
		if out := tool(t, app.environment, append(show, "--without-body")...).want(t, exitOK); strings.Contains(out.out, "DE02") {
			t.Error("the body is shown")
		}

		// A filter only shows what matches, until it is confirmed.
		tool(t, app.environment, "dead", "retry", "--fingerprint", fingerprint).want(t, exitOK, "5 letters match", "--yes")
		if l, err := store.GetDeadLetter(t.Context(), "billing.ledger", "billing.booking.made/e1"); err != nil || l.State != driver.DeadLetterOpen {
			t.Errorf("%s, %v", l.State, err)
		}
		tool(t, app.environment, "dead", "discard", "--subscription", "billing.ledger", "billing.booking.made/e0").want(t, exitUsage, "--reason")
		tool(t, app.environment, "dead", "discard", "--subscription", "billing.ledger", "--reason", "test data", "billing.booking.made/e0").want(t, exitOK, "discarded  1")
		tool(t, app.environment, "dead", "retry", "--fingerprint", fingerprint, "--yes", "--note", "fixed").want(t, exitOK, "marked  4")
		tool(t, app.environment, "dead", "retry", "--subscription", "billing.ledger", "billing.booking.made/e0", "none").want(t, exitFindings, "changed", "not found")
		if l, err := store.GetDeadLetter(t.Context(), "billing.ledger", "billing.booking.made/e1"); err != nil || l.State != driver.DeadLetterRetry || !strings.Contains(l.Note, "fixed") {
			t.Errorf("%s %q, %v", l.State, l.Note, err)
		}
		for _, wrong := range [][]string{{"ls", "--state", "odd"}, {"ls", "--since", "yesterday"}, {"ls", "--limit", "0"}, {"retry"}, {"retry", "some-key"}, {"discard", "--reason", "x"}, {"prune", "--state", "open", "--older-than", "1h"}, {"prune", "--state", "resolved"}} {
			tool(t, app.environment, append([]string{"dead"}, wrong...)...).want(t, exitUsage)
		}
		tool(t, app.environment, "dead", "prune", "--state", "discarded", "--older-than", "1h").want(t, exitOK, "0 letters deleted")
	})
}
