package main

import (
	"context"
	"errors"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/billing"
	billingevents "github.com/tidings-go/tidings/examples/shop/billing/events"
	"github.com/tidings-go/tidings/examples/shop/identity"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
	"github.com/tidings-go/tidings/examples/shop/notifications"
	"github.com/tidings-go/tidings/tidingstest"
)

func TestAProfileIsMadeOncePerUser(t *testing.T) {
	bus := tidingstest.NewBus(t)
	users := identity.New(bus.Module("identity"), identity.InMemory())
	accounts := billing.New(bus.Module("billing"), billing.InMemory())
	ada, err := users.SignUp(t.Context(), "ada@example.com", "Ada")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := users.Announce(t.Context(), ada); err != nil {
			t.Fatal(err)
		}
	}
	// Even an event with an id of its own, as a careless publisher makes it.
	careless := identityevents.UserCreated.New(ada, identityevents.UserCreatedPayload{UserID: ada, Email: "ada@example.com", Name: "Ada"})
	if err := bus.Publish(t.Context(), careless); err != nil {
		t.Fatal(err)
	}
	e := tidingstest.Expect(t, bus, identityevents.UserCreated)[0]
	profiles := all(t, accounts.Profiles)
	if len(profiles) != 1 || profiles[0] != (billing.Profile{UserID: ada, Email: "ada@example.com", EventID: e.ID()}) {
		t.Errorf("profiles %+v\n%s", profiles, bus.Story())
	}
}

func TestASubscriptionIsAnnounced(t *testing.T) {
	bus := tidingstest.NewBus(t)
	accounts := billing.New(bus.Module("billing"), billing.InMemory())
	sent := notifications.New(bus.Module("notifications"), notifications.InMemory())
	signUp(t, bus, "u-1")
	bus.Settle()
	id, err := accounts.Activate(t.Context(), "u-1", "pro")
	if err != nil {
		t.Fatal(err)
	}
	e := tidingstest.Expect(t, bus, billingevents.SubscriptionActivated, func(e tidings.Event[billingevents.SubscriptionActivatedPayload]) bool {
		return e.AggregateID() == id && e.Payload().PlanID == "pro"
	})[0]
	if got := all(t, sent.Sent); len(got) != 2 || got[0].Kind != "welcome" || got[1] != (notifications.Notification{UserID: "u-1", Kind: "subscription", EventID: e.ID()}) {
		t.Errorf("sent %+v\n%s", got, bus.Story())
	}
}

// all is what a module has.
func all[T any](t *testing.T, get func(context.Context) ([]T, error)) []T {
	t.Helper()
	found, err := get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// signUp tells that a user has signed up, as identity does.
func signUp(t *testing.T, publisher tidings.Publisher, userID string) {
	t.Helper()
	payload := identityevents.UserCreatedPayload{UserID: userID, Email: userID + "@example.com", Name: "Somebody"}
	if err := publisher.Publish(t.Context(), identityevents.UserCreated.New(userID, payload)); err != nil {
		t.Fatal(err)
	}
}

// What comes again after the engine has forgotten it changes nothing.
func TestHandlersLookBeforeTheyAct(t *testing.T) {
	forgetful := tidingstest.Configure(func(o *tidings.Options) { o.WithoutDedup = true })
	bus := tidingstest.NewBus(t, forgetful)
	accounts := billing.New(bus.Module("billing"), billing.InMemory())
	sent := notifications.New(bus.Module("notifications"), notifications.InMemory())
	payload := identityevents.UserCreatedPayload{UserID: "u-1", Email: "ada@example.com", Name: "Ada"}
	e := identityevents.UserCreated.New("u-1", payload)
	if err := bus.Publish(t.Context(), e, e, e); err != nil {
		t.Fatal(err)
	}
	if n := len(bus.Handled("billing.create-default-profile")); n != 3 {
		t.Errorf("billing handled it %d times, want 3", n)
	}
	if len(all(t, accounts.Profiles)) != 1 || len(all(t, sent.Sent)) != 1 {
		t.Errorf("profiles %+v, sent %+v", all(t, accounts.Profiles), all(t, sent.Sent))
	}
}

// A module publishes what it owns.
func TestIdentityTellsOfEachUserOnce(t *testing.T) {
	bus := tidingstest.NewBus(t)
	users := identity.New(bus.Module("identity"), identity.InMemory())
	ada, err := users.SignUp(t.Context(), "ada@example.com", "Ada")
	if err != nil {
		t.Fatal(err)
	}
	events := tidingstest.Expect(t, bus, identityevents.UserCreated)
	want := identityevents.UserCreatedPayload{UserID: ada, Email: "ada@example.com", Name: "Ada"}
	if len(events) != 1 || events[0].AggregateID() != ada || events[0].Payload() != want {
		t.Errorf("%v", events)
	}
	if err := users.Announce(t.Context(), "nobody"); !errors.Is(err, identity.ErrUnknown) {
		t.Errorf("error %v", err)
	}
}

func TestMailThatFails(t *testing.T) {
	bus := tidingstest.NewBus(t)
	users := identity.New(bus.Module("identity"), identity.InMemory())
	sent := notifications.New(bus.Module("notifications"), notifications.InMemory())
	for _, email := range []string{"grace@slow.example", "edsger@nowhere.invalid", "no address"} {
		if _, err := users.SignUp(t.Context(), email, "Somebody"); err != nil {
			t.Fatal(err)
		}
	}
	bus.Settle()
	if got := all(t, sent.Sent); len(got) != 1 || got[0].Kind != "welcome" {
		t.Errorf("sent %+v\n%s", got, bus.Story())
	}
	for _, letter := range bus.DeadLetters() {
		if letter.Reason != "permanent" || letter.Attempts != 1 || letter.Subscription != "notifications.welcome" {
			t.Errorf("dead letter %+v", letter)
		}
	}
	if len(bus.DeadLetters()) != 2 {
		t.Errorf("%d dead letters", len(bus.DeadLetters()))
	}
}
