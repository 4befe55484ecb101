package main

import (
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

func TestForget(t *testing.T) {
	databases(t, func(t *testing.T, app application) {
		tool(t, app.environment, "forget", "ada").want(t, exitOK, "Nothing is stored of this aggregate", "Outside its reach")
		letter := driver.DeadLetter{Subscription: "mail.confirm", Channel: "shop.order.placed", Type: "shop.order.placed", ID: "1", AggregateID: "ada", FailedAt: time.Now(), Body: []byte(`{}`)}
		if err := app.database.DeadLetters().PutDeadLetter(t.Context(), letter); err != nil {
			t.Fatal(err)
		}
		claim := driver.ClaimRequest{Subscription: "mail.confirm", Key: "shop.order.placed\nada", Owner: "o", Lease: time.Minute}
		if _, err := app.database.Claims().Claim(t.Context(), claim); err != nil {
			t.Fatal(err)
		}
		if err := app.database.Claims().Finish(t.Context(), claim); err != nil {
			t.Fatal(err)
		}
		var value struct {
			DryRun  bool
			Places  []driver.Forgotten
			Outside []string
		}
		tool(t, app.environment.with(environment{"EVENT_DRIVER": "kafka"}), "forget", "ada", "--json").want(t, exitOK).decode(t, &value)
		if !value.DryRun || len(value.Places) != 3 || len(value.Outside) != 3 || !strings.Contains(value.Outside[0], "Kafka") {
			t.Errorf("%+v", value)
		}
		tool(t, app.environment, "forget", "ada").want(t, exitOK, "dead_letters", "kept for dedup", "Nothing was changed")

		app.add(t, row("ada", 1))
		tool(t, app.environment, "forget", "ada", "--yes").want(t, exitFailure, "never sent", "Nothing was changed", "--unfinished")
		tool(t, app.environment, "outbox", "status", "--every", "1ms").want(t, exitOK, "backlog 1")
		tool(t, app.environment, "forget", "ada", "--yes", "--unfinished", "--keys").want(t, exitOK, "dead_letters", "handled again")
		tool(t, app.environment, "outbox", "status", "--every", "1ms").want(t, exitOK, "backlog 0")
		tool(t, app.environment, "forget", "ada").want(t, exitOK, "Nothing is stored of this aggregate")
	})
	tool(t, onSQLite(t), "forget", "").want(t, exitUsage, "the id of the aggregate is empty")
}
