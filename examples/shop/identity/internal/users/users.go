// Package users is the inside of module identity: who has signed up.
package users

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
)

// ErrUnknown is returned for a user who has not signed up.
var ErrUnknown = errors.New("identity: no such user")

// User is somebody who has signed up.
type User struct {
	ID    string
	Email string
	Name  string
	// EventID is the id of the event that told of it, and SignedUp its time.
	EventID  string
	SignedUp time.Time
}

// created is what the other modules are told: the same value, however often.
func (u User) created() tidings.Event[identityevents.UserCreatedPayload] {
	payload := identityevents.UserCreatedPayload{UserID: u.ID, Email: u.Email, Name: u.Name}
	return identityevents.UserCreated.New(u.ID, payload, tidings.WithID(u.EventID), tidings.At(u.SignedUp))
}

// Storage keeps users. It may be used from any goroutine.
type Storage interface {
	// Transact runs fn. What fn adds and what it publishes is kept when it returns
	// nil, and nothing of it otherwise.
	Transact(ctx context.Context, face *tidings.Module, fn func(rows Rows, publisher tidings.Publisher) error) error
	// User returns one, or ErrUnknown.
	User(ctx context.Context, id string) (User, error)
	// Users returns everybody, in the order in which they signed up.
	Users(ctx context.Context) ([]User, error)
}

// Rows is the storage within a transaction.
type Rows interface {
	Add(ctx context.Context, user User) error
}

// Users signs people up. It may be used from any goroutine.
type Users struct {
	face    *tidings.Module
	storage Storage
}

// New returns the users of a storage.
func New(face *tidings.Module, storage Storage) *Users { return &Users{face, storage} }

// SignUp makes a user and tells the other modules.
func (u *Users) SignUp(ctx context.Context, email, name string) (userID string, err error) {
	id, idErr := uuid.NewV7()
	eventID, err := uuid.NewV7()
	if err = errors.Join(idErr, err); err != nil {
		return "", fmt.Errorf("identity: sign up: %w", err)
	}
	user := User{ID: id.String(), Email: email, Name: name, EventID: eventID.String(), SignedUp: time.Now()}
	err = u.storage.Transact(ctx, u.face, func(rows Rows, publisher tidings.Publisher) error {
		if err := rows.Add(ctx, user); err != nil {
			return err
		}
		return publisher.Publish(ctx, user.created())
	})
	if err != nil {
		return "", fmt.Errorf("identity: sign up: %w", err)
	}
	return user.ID, nil
}

// Announce publishes a user's event again, the same value, as a caller does who
// did not hear the first answer. It is safe: whoever has handled it recognises it.
func (u *Users) Announce(ctx context.Context, userID string) error {
	user, err := u.storage.User(ctx, userID)
	if errors.Is(err, ErrUnknown) {
		return fmt.Errorf("%w: %s", err, userID)
	}
	if err == nil {
		err = u.storage.Transact(ctx, u.face, func(_ Rows, publisher tidings.Publisher) error {
			return publisher.Publish(ctx, user.created())
		})
	}
	if err != nil {
		return fmt.Errorf("identity: announce: %w", err)
	}
	return nil
}
