// Package billing is the module that takes money. It makes a default profile for
// each new user, publishes billing.subscription.activated, and knows identity by
// its events only.
//
// # Delivery, order, duplicates
//
// The driver's. A profile is made once per user, however often the event comes:
// in a database by the inbox, in memory because the module looks first.
package billing

import (
	"context"
	"database/sql"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/billing/internal/accounts"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
)

// Profile is what billing knows of a user.
type Profile = accounts.Profile

// Subscription is what a user pays for.
type Subscription = accounts.Subscription

// Storage is where the module keeps profiles and subscriptions.
type Storage = accounts.Storage

// InMemory keeps them until the process ends.
func InMemory() Storage { return accounts.NewMemory() }

// InDatabase keeps them as rows (see [Schema]): a subscription in one transaction
// with its event in the outbox, a profile in one with the inbox's record of the
// event that it was made for.
func InDatabase(db *sql.DB, box *outbox.Box[*sql.Tx], store inbox.Store[*sql.Tx]) Storage {
	return accounts.NewSQL(db, box, store)
}

// Schema makes the module's tables, on SQLite and PostgreSQL.
const Schema = accounts.Schema

// Billing is the module. It may be used from any goroutine.
type Billing struct {
	accounts *accounts.Accounts
	storage  Storage
}

// New gives the module its face of the bus and a place for its rows, and
// subscribes.
func New(face *tidings.Module, storage Storage) *Billing {
	face.Subscribe("create-default-profile", nil, storage.OnUserCreated(accounts.CreateDefaultProfile))
	return &Billing{accounts.New(face, storage), storage}
}

// Activate begins a subscription of a user to a plan and returns its id.
func (b *Billing) Activate(ctx context.Context, userID, planID string) (subscriptionID string, err error) {
	return b.accounts.Activate(ctx, userID, planID)
}

// Profiles returns every profile, in the order in which they were made.
func (b *Billing) Profiles(ctx context.Context) ([]Profile, error) { return b.storage.Profiles(ctx) }
