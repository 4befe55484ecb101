// Package identityevents is what other modules may know of identity: its events.
//
// # Delivery, order, duplicates
//
// The driver's. Events of one user keep their order; UserCreated happens once in
// the life of a user.
package identityevents

import "github.com/tidings-go/tidings"

// UserCreatedPayload is what happened when a user signed up.
type UserCreatedPayload struct {
	UserID string `json:"userId"`
	Email  string `json:"email"`
	Name   string `json:"name"`
}

// UserCreated is published when a user has signed up. Its aggregate is the user.
var UserCreated = tidings.Define[UserCreatedPayload]("identity.user.created", 1, tidings.Once,
	tidings.AggregateFrom(func(p UserCreatedPayload) string { return p.UserID }))
