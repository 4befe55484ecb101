package main

import (
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// park puts events of one aggregate into the store, as the engine does.
func (a application) park(t testing.TB, subscription, aggregate string, ids ...string) driver.Ownership {
	t.Helper()
	lanes := a.database.Lanes()
	owner, _, err := lanes.Own(t.Context(), subscription, "events.x/0")
	if err != nil {
		t.Fatal(err)
	}
	lane := driver.Lane{Channel: "billing.booking", Key: aggregate}
	var events []driver.Parked
	for _, id := range ids {
		events = append(events, driver.Parked{
			Lane: lane, Source: "events.x/0", ID: id, Attempts: 10, Reason: "exhausted", Err: "ledger: account is locked", ParkedAt: time.Now(), Time: time.Now(),
			Message: driver.Message{Channel: lane.Channel, Key: aggregate, Type: "billing.booking.made", Body: []byte(`{"payload":{"iban":"DE02"}}`)},
		})
	}
	if err := lanes.Park(t.Context(), owner, events); err != nil {
		t.Fatal(err)
	}
	return owner
}

func TestLanes(t *testing.T) {
	databases(t, func(t *testing.T, app application) {
		tool(t, app.environment, "lanes", "ls").want(t, exitOK, "No lane is parked.")
		owner := app.park(t, "billing.ledger", "customer-17", "e1", "e2")
		app.park(t, "billing.other", "customer-18", "e3")

		tool(t, app.environment, "lanes", "ls").want(t, exitOK, "billing.ledger", "customer-17", "account is locked", "billing.other")
		tool(t, app.environment, "lanes", "ls", "--limit", "1").want(t, exitOK, "There are more")
		var list struct {
			Lanes []parkedLane
			More  bool
		}
		tool(t, app.environment, "lanes", "ls", "billing.ledger", "--json").want(t, exitOK).decode(t, &list)
		if len(list.Lanes) != 1 || list.More || list.Lanes[0].Events != 2 || list.Lanes[0].Head.ID != "e1" || list.Lanes[0].Head.Attempts != 10 {
			t.Errorf("%+v", list)
		}

		var show struct{ Events []parkedEvent }
		lane := []string{"billing.ledger", "billing.booking", "customer-17"}
		tool(t, app.environment, append([]string{"lanes", "show", "--json"}, lane...)...).want(t, exitOK).decode(t, &show)
		if len(show.Events) != 2 || show.Events[1].ID != "e2" || show.Events[0].Body != nil {
			t.Errorf("%+v", show)
		}
		tool(t, app.environment, append([]string{"lanes", "show", "--payload"}, lane...)...).want(t, exitOK, "DE02", "billing.booking.made")
		tool(t, app.environment, "lanes", "show", "billing.ledger", "billing.booking", "nobody").want(t, exitFailure, "this lane holds nothing")

		for verb, want := range map[string]driver.LaneVerb{"retry-head": driver.RetryHead, "skip-head": driver.SkipHead, "skip-lane": driver.SkipLane} {
			tool(t, app.environment, append([]string{"lanes", verb, "--reason", "by hand"}, lane...)...).want(t, exitOK, "Asked for: "+want.String())
			orders, err := app.database.Lanes().Orders(t.Context(), owner)
			if err != nil || len(orders) != 1 || orders[0].Verb != want || orders[0].Reason != "by hand" || orders[0].Lane.Key != "customer-17" {
				t.Errorf("%s: %+v, %v", verb, orders, err)
			}
			tool(t, app.environment, "lanes", verb, "billing.ledger", "billing.booking", "nobody", "--reason", "x").want(t, exitFailure, "this lane holds nothing")
		}
	})
}
