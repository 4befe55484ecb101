// Package accounts is the inside of module billing: profiles and subscriptions.
package accounts

import (
	"context"
	"fmt"

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

// Subscription is what a user pays for.
type Subscription struct {
	ID     string
	UserID string
	PlanID string
	// EventID is the id of the event that told of it.
	EventID string
}

// Storage keeps profiles and subscriptions. It may be used from any goroutine.
type Storage interface {
	// Transact runs fn. What fn adds and what it publishes is kept when it returns
	// nil, and nothing of it otherwise.
	Transact(ctx context.Context, face *tidings.Module, fn func(rows Rows, publisher tidings.Publisher) error) error
	// OnUserCreated makes a reaction of a function, which adds its rows once for
	// each user, however often the event comes.
	OnUserCreated(react func(context.Context, Rows, tidings.Event[identityevents.UserCreatedPayload]) error) tidings.Reaction
	// Profiles and Subscriptions return all, in the order in which they were made.
	Profiles(ctx context.Context) ([]Profile, error)
	Subscriptions(ctx context.Context) ([]Subscription, error)
}

// Rows is the storage within a transaction.
type Rows interface {
	AddProfile(ctx context.Context, profile Profile) error
	AddSubscription(ctx context.Context, subscription Subscription) error
}

// Accounts begins subscriptions. It may be used from any goroutine.
type Accounts struct {
	face    *tidings.Module
	storage Storage
}

// New returns the accounts of a storage.
func New(face *tidings.Module, storage Storage) *Accounts { return &Accounts{face, storage} }

// CreateDefaultProfile reacts to a new user.
func CreateDefaultProfile(ctx context.Context, rows Rows, e tidings.Event[identityevents.UserCreatedPayload]) error {
	return rows.AddProfile(ctx, Profile{UserID: e.Payload().UserID, Email: e.Payload().Email, EventID: e.ID()})
}

// Activate begins a subscription and tells the other modules. It asks for no
// profile: that of a user who signed up a moment ago may still be on its way.
func (a *Accounts) Activate(ctx context.Context, userID, planID string) (subscriptionID string, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("billing: activate: %w", err)
	}
	subscriptionID = id.String()
	activated := billingevents.SubscriptionActivated.New(subscriptionID,
		billingevents.SubscriptionActivatedPayload{SubscriptionID: subscriptionID, PlanID: planID, UserID: userID})
	err = a.storage.Transact(ctx, a.face, func(rows Rows, publisher tidings.Publisher) error {
		if err := rows.AddSubscription(ctx, Subscription{ID: subscriptionID, UserID: userID, PlanID: planID, EventID: activated.ID()}); err != nil {
			return err
		}
		return publisher.Publish(ctx, activated)
	})
	if err != nil {
		return "", fmt.Errorf("billing: activate: %w", err)
	}
	return subscriptionID, nil
}
