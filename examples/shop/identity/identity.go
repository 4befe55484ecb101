// Package identity is the module that knows who the shop's users are. It
// publishes identity.user.created and reacts to nothing.
//
// # Delivery, order, duplicates
//
// The driver's. In a database a user and the event of that are stored in one
// transaction: there is no user whom nobody hears of, and nobody hears of one who
// is not there. In memory the user is announced before SignUp returns nil.
package identity

import (
	"context"
	"database/sql"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/identity/internal/users"
	"github.com/tidings-go/tidings/outbox"
)

// ErrUnknown is returned for a user who has not signed up.
var ErrUnknown = users.ErrUnknown

// User is somebody who has signed up.
type User = users.User

// Storage is where the module keeps its users.
type Storage = users.Storage

// InMemory keeps users until the process ends.
func InMemory() Storage { return users.NewMemory() }

// InDatabase keeps users as rows (see [Schema]), and their events in the outbox
// of the same transaction.
func InDatabase(db *sql.DB, box *outbox.Box[*sql.Tx]) Storage { return users.NewSQL(db, box) }

// Schema makes the module's tables, on SQLite and PostgreSQL.
const Schema = users.Schema

// Identity is the module. It may be used from any goroutine.
type Identity struct{ users *users.Users }

// New gives the module its face of the bus and a place for its users.
func New(face *tidings.Module, storage Storage) *Identity {
	return &Identity{users: users.New(face, storage)}
}

// SignUp makes a user and returns the id.
func (i *Identity) SignUp(ctx context.Context, email, name string) (userID string, err error) {
	return i.users.SignUp(ctx, email, name)
}

// Announce publishes a user's event again. ErrUnknown when there is no such
// user.
func (i *Identity) Announce(ctx context.Context, userID string) error {
	return i.users.Announce(ctx, userID)
}
