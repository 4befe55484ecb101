// Package billing is the module that takes money. It makes a default profile for
// each new user, publishes billing.subscription.activated, and knows identity by
// its events only.
//
// # Delivery, order, duplicates
//
// The driver's. A profile is made once per user, however often the event comes.
package billing

import (
	"context"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/billing/internal/accounts"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
)

// Profile is what billing knows of a user.
type Profile = accounts.Profile

// Billing is the module. It may be used from any goroutine.
type Billing struct{ accounts *accounts.Accounts }

// New gives the module its face of the bus and subscribes. The bus says at Run
// what is wrong with that.
func New(face *tidings.Module) *Billing {
	b := &Billing{accounts: accounts.New(face)}
	face.Subscribe("create-default-profile", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning},
		identityevents.UserCreated.On(b.accounts.CreateDefaultProfile))
	return b
}

// Activate begins a subscription of a user to a plan and returns its id.
func (b *Billing) Activate(ctx context.Context, userID, planID string) (subscriptionID string, err error) {
	return b.accounts.Activate(ctx, userID, planID)
}

// Profiles returns every profile, in the order in which they were made.
func (b *Billing) Profiles() []Profile { return b.accounts.Profiles() }
