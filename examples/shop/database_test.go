package main

import (
	"errors"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/billing"
	"github.com/tidings-go/tidings/examples/shop/identity"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/setup"
)

// A user whose event cannot be stored has not signed up.
func TestNoUserWithoutTheEvent(t *testing.T) {
	bus, db, err := setup.NewSQL(t.Context(), setup.Config{Driver: "sqlite", SQLitePath: file(t)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	defer func() { _ = bus.Close(t.Context()) }()
	if err := makeTables(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	box, err := outbox.New(bus, db.Store, nil)
	if err != nil {
		t.Fatal(err)
	}
	storage := identity.InDatabase(db.DB, box)
	// A face of another module may not tell identity's events.
	users := identity.New(bus.Module("warehouse"), storage)
	if _, err := users.SignUp(t.Context(), "ada@example.com", "Ada"); !errors.Is(err, tidings.ErrForeignEvent) {
		t.Errorf("the event was not refused: %v", err)
	}
	if found, err := storage.Users(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("users %+v, %v", found, err)
	}
	users = identity.New(bus.Module("identity"), storage)
	if _, err := users.SignUp(t.Context(), "grace@example.com", "Grace"); err != nil {
		t.Fatal(err)
	}
	found, err := storage.Users(t.Context())
	if status, statusErr := box.Status(t.Context()); err != nil || statusErr != nil || len(found) != 1 || status.Backlog != 1 {
		t.Errorf("%d users and %d events in the outbox: %v, %v", len(found), status.Backlog, err, statusErr)
	}
}

// A chapter that has begun is found although something of an earlier one waits.
func TestTheStoryIsFound(t *testing.T) {
	people := func(chapter, count int) (all []identity.User) {
		s := story{chapter: chapter}
		for _, email := range []string{s.adas(), s.graces(), s.edsgers()}[:count] {
			all = append(all, identity.User{ID: email, Email: email, EventID: email})
		}
		return all
	}
	subscription := func(chapter int) ledger {
		s := story{chapter: chapter}
		return ledger{users: people(chapter, 3), subscriptions: []billing.Subscription{{UserID: s.adas()}}}
	}
	whole, begun := subscription(1), subscription(1)
	begun.users = append(begun.users, people(2, 2)...)
	for name, test := range map[string]struct {
		ledger          ledger
		chapter, played int
	}{
		"nobody":                   {ledger{}, 1, 0},
		"Ada":                      {ledger{users: people(1, 1)}, 1, 1},
		"Ada and Grace":            {ledger{users: people(1, 2)}, 1, 3},
		"all, not handled":         {whole, 1, 5},
		"all, and two of the next": {begun, 2, 3},
	} {
		var s story
		s.find(&test.ledger)
		if s.chapter != test.chapter || s.played != test.played {
			t.Errorf("%s: chapter %d, %d scenes; want %d, %d", name, s.chapter, s.played, test.chapter, test.played)
		}
	}
}
