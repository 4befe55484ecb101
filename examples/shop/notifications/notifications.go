// Package notifications is the module that writes to users. It reacts to events
// of identity and billing, publishes nothing, and knows both by their events only.
//
// # Delivery, order, duplicates
//
// The driver's. A message is noted once per event; a mail server that asks for
// patience is tried again, an address that cannot exist becomes a dead letter.
package notifications

import (
	"context"
	"database/sql"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/notifications/internal/mail"
	"github.com/tidings-go/tidings/inbox"
)

// Notification is one message to a user.
type Notification = mail.Notification

// Storage is where the module keeps what it sent.
type Storage = mail.Storage

// InMemory keeps it until the process ends.
func InMemory() Storage { return mail.NewMemory() }

// InDatabase keeps it as rows (see [Schema]), each in one transaction with the
// inbox's record of the event that it is about.
func InDatabase(db *sql.DB, store inbox.Store[*sql.Tx]) Storage { return mail.NewSQL(db, store) }

// Schema makes the module's tables, on SQLite and PostgreSQL.
const Schema = mail.Schema

// Notifications is the module. It may be used from any goroutine.
type Notifications struct{ storage Storage }

// New gives the module its face of the bus and a place for its rows, and
// subscribes.
func New(face *tidings.Module, storage Storage) *Notifications {
	server := mail.NewServer()
	face.Subscribe("welcome", nil, storage.OnUserCreated(server.Welcome))
	face.Subscribe("subscription", nil, storage.OnSubscriptionActivated(server.Subscription))
	return &Notifications{storage}
}

// Sent returns what was sent, oldest first.
func (n *Notifications) Sent(ctx context.Context) ([]Notification, error) { return n.storage.Sent(ctx) }
