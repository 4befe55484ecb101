// Package mail is the inside of module notifications: what was sent to whom. Its
// gateway is simulated, with two moods that real ones have.
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

// Box sends and remembers. It may be used from any goroutine.
type Box struct {
	mu    sync.Mutex
	sent  []Notification
	told  map[string]bool // by event id
	tried map[string]bool // by address
}

// New returns an empty box.
func New() *Box { return &Box{told: make(map[string]bool), tried: make(map[string]bool)} }

var (
	errLater   = errors.New("451 try again later")
	errNoHost  = errors.New("550 there is no such host")
	errAddress = errors.New("notifications: there is no address to write to")
)

// deliver simulates a mail server: one at slow.example turns the first try of an
// address away, and nowhere.invalid does not exist.
func (b *Box) deliver(address string) error {
	_, host, ok := strings.Cut(address, "@")
	switch {
	case !ok:
		return tidings.Permanent(errAddress)
	case host == "nowhere.invalid":
		return tidings.Permanent(fmt.Errorf("notifications: mail to %s: %w", host, errNoHost))
	case host == "slow.example" && !b.tried[address]:
		b.tried[address] = true
		return fmt.Errorf("notifications: mail to %s: %w", host, errLater)
	}
	return nil
}

// Welcome reacts to a new user.
func (b *Box) Welcome(_ context.Context, e tidings.Event[identityevents.UserCreatedPayload]) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.told[e.ID()] {
		return nil
	}
	if err := b.deliver(e.Payload().Email); err != nil {
		return err
	}
	b.note(Notification{UserID: e.Payload().UserID, Kind: "welcome", EventID: e.ID()})
	return nil
}

// Subscription reacts to a subscription that has begun.
func (b *Box) Subscription(_ context.Context, e tidings.Event[billingevents.SubscriptionActivatedPayload]) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.told[e.ID()] {
		return nil
	}
	b.note(Notification{UserID: e.Payload().UserID, Kind: "subscription", EventID: e.ID()})
	return nil
}

// note remembers what was sent: an event that comes again, after the engine has
// forgotten it, is not written about twice.
func (b *Box) note(n Notification) {
	b.told[n.EventID] = true
	b.sent = append(b.sent, n)
}

// Sent returns what was sent, oldest first.
func (b *Box) Sent() []Notification {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Notification{}, b.sent...)
}
