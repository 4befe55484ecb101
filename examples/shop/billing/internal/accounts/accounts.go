// Package accounts is the inside of module billing: profiles and subscriptions,
// in memory; a shop would have tables.
package accounts

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	billingevents "github.com/tidings-go/tidings/examples/shop/billing/events"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
)

// Profile is what billing knows of a user.
type Profile struct {
	UserID string `json:"userId"`
	Email  string `json:"email"`
	// EventID is the event that the profile was made for.
	EventID string `json:"eventId"`
}

// Accounts keeps profiles and subscriptions. It may be used from any goroutine.
type Accounts struct {
	publisher tidings.Publisher

	mu       sync.Mutex
	profiles []Profile
	known    map[string]bool
}

// New returns no account yet.
func New(publisher tidings.Publisher) *Accounts {
	return &Accounts{publisher: publisher, known: make(map[string]bool)}
}

// CreateDefaultProfile reacts to a new user. It first looks whether that was
// done before: the engine recognises duplicates, but a process that died between
// the profile and the engine's note would come here twice.
func (a *Accounts) CreateDefaultProfile(_ context.Context, e tidings.Event[identityevents.UserCreatedPayload]) error {
	p := e.Payload()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known[p.UserID] {
		return nil
	}
	a.known[p.UserID] = true
	a.profiles = append(a.profiles, Profile{UserID: p.UserID, Email: p.Email, EventID: e.ID()})
	return nil
}

// Activate begins a subscription and tells the other modules. It asks for no
// profile: that of a user who signed up a moment ago may still be on its way, and
// these profiles do not outlive the process.
func (a *Accounts) Activate(ctx context.Context, userID, planID string) (subscriptionID string, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("billing: activate: %w", err)
	}
	subscriptionID = id.String()
	err = a.publisher.Publish(ctx, billingevents.SubscriptionActivated.New(subscriptionID,
		billingevents.SubscriptionActivatedPayload{SubscriptionID: subscriptionID, PlanID: planID, UserID: userID}))
	if err != nil {
		return "", fmt.Errorf("billing: activate: %w", err)
	}
	return subscriptionID, nil
}

// Profiles returns every profile, in the order in which they were made.
func (a *Accounts) Profiles() []Profile {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Profile{}, a.profiles...)
}
