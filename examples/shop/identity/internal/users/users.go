// Package users is the inside of module identity: who has signed up. It keeps
// everything in memory; a shop would have a table.
package users

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
)

// ErrUnknown is returned for a user who has not signed up.
var ErrUnknown = errors.New("identity: no such user")

// Users signs people up. It may be used from any goroutine.
type Users struct {
	publisher tidings.Publisher

	mu      sync.Mutex
	created map[string]tidings.Event[identityevents.UserCreatedPayload]
}

// New returns nobody yet.
func New(publisher tidings.Publisher) *Users {
	return &Users{publisher: publisher, created: make(map[string]tidings.Event[identityevents.UserCreatedPayload])}
}

// SignUp makes a user and tells the other modules.
func (u *Users) SignUp(ctx context.Context, email, name string) (userID string, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("identity: sign up: %w", err)
	}
	userID = id.String()
	e := identityevents.UserCreated.New(userID, identityevents.UserCreatedPayload{UserID: userID, Email: email, Name: name})
	u.mu.Lock()
	u.created[userID] = e
	u.mu.Unlock()
	if err := u.publisher.Publish(ctx, e); err != nil {
		return "", fmt.Errorf("identity: sign up: %w", err)
	}
	return userID, nil
}

// Announce publishes a user's event again, the same value, as a caller does who
// did not hear the first answer. It is safe: whoever has handled it recognises it.
func (u *Users) Announce(ctx context.Context, userID string) error {
	u.mu.Lock()
	e, known := u.created[userID]
	u.mu.Unlock()
	if !known {
		return fmt.Errorf("%w: %s", ErrUnknown, userID)
	}
	if err := u.publisher.Publish(ctx, e); err != nil {
		return fmt.Errorf("identity: announce: %w", err)
	}
	return nil
}
