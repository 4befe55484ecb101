// Package identity is the module that knows who the shop's users are. It
// publishes identity.user.created and reacts to nothing.
//
// # Delivery, order, duplicates
//
// The driver's. A user who signed up is announced before SignUp returns nil.
package identity

import (
	"context"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/identity/internal/users"
)

// ErrUnknown is returned for a user who has not signed up.
var ErrUnknown = users.ErrUnknown

// Identity is the module. It may be used from any goroutine.
type Identity struct{ users *users.Users }

// New gives the module its face of the bus.
func New(face *tidings.Module) *Identity { return &Identity{users: users.New(face)} }

// SignUp makes a user and returns the id.
func (i *Identity) SignUp(ctx context.Context, email, name string) (userID string, err error) {
	return i.users.SignUp(ctx, email, name)
}

// Announce publishes a user's event again. ErrUnknown when there is no such user
// in this process.
func (i *Identity) Announce(ctx context.Context, userID string) error {
	return i.users.Announce(ctx, userID)
}
