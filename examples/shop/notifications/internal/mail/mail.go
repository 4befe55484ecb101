// Package mail is the inside of module notifications: what was sent to whom. Its
// mail server is simulated, with two moods that real ones have.
package mail

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/tidings-go/tidings"
	billingevents "github.com/tidings-go/tidings/examples/shop/billing/events"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
)

// Notification is one message to a user.
type Notification struct {
	UserID string `json:"userId"`
	// Kind is "welcome" or "subscription".
	Kind string `json:"kind"`
	// EventID is the event that the message is about.
	EventID string `json:"eventId"`
}

// Storage keeps what was sent. It may be used from any goroutine. Its reactions
// add their rows once for each event, however often it comes.
type Storage interface {
	OnUserCreated(react func(context.Context, Rows, tidings.Event[identityevents.UserCreatedPayload]) error) tidings.Reaction
	OnSubscriptionActivated(react func(context.Context, Rows, tidings.Event[billingevents.SubscriptionActivatedPayload]) error) tidings.Reaction
	// Sent returns everything, oldest first.
	Sent(ctx context.Context) ([]Notification, error)
}

// Rows is the storage within a transaction.
type Rows interface {
	Add(ctx context.Context, sent Notification) error
}

// Server simulates a mail server: one at slow.example turns the first try of an
// address away, and nowhere.invalid does not exist. It may be used from any
// goroutine.
type Server struct {
	mu    sync.Mutex
	tried map[string]bool // by address
}

// NewServer returns a server that has seen no address.
func NewServer() *Server { return &Server{tried: make(map[string]bool)} }

var (
	errLater   = errors.New("451 try again later")
	errNoHost  = errors.New("550 there is no such host")
	errAddress = errors.New("notifications: there is no address to write to")
)

func (s *Server) deliver(address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, host, ok := strings.Cut(address, "@")
	switch {
	case !ok:
		return tidings.Permanent(errAddress)
	case host == "nowhere.invalid":
		return tidings.Permanent(fmt.Errorf("notifications: mail to %s: %w", host, errNoHost))
	case host == "slow.example" && !s.tried[address]:
		s.tried[address] = true
		return fmt.Errorf("notifications: mail to %s: %w", host, errLater)
	}
	return nil
}

// Welcome reacts to a new user.
func (s *Server) Welcome(ctx context.Context, rows Rows, e tidings.Event[identityevents.UserCreatedPayload]) error {
	if err := s.deliver(e.Payload().Email); err != nil {
		return err
	}
	return rows.Add(ctx, Notification{UserID: e.Payload().UserID, Kind: "welcome", EventID: e.ID()})
}

// Subscription reacts to a subscription that has begun.
func (s *Server) Subscription(ctx context.Context, rows Rows, e tidings.Event[billingevents.SubscriptionActivatedPayload]) error {
	return rows.Add(ctx, Notification{UserID: e.Payload().UserID, Kind: "subscription", EventID: e.ID()})
}
