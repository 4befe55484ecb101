package mail

import (
	"context"
	"slices"
	"sync"

	"github.com/tidings-go/tidings"
	billingevents "github.com/tidings-go/tidings/examples/shop/billing/events"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
)

// Memory is a [Storage] that is lost with the process.
type Memory struct {
	mu   sync.Mutex
	sent []Notification
}

// NewMemory returns one in which nothing was sent yet.
func NewMemory() *Memory { return &Memory{} }

// OnUserCreated implements [Storage].
func (m *Memory) OnUserCreated(react func(context.Context, Rows, tidings.Event[identityevents.UserCreatedPayload]) error) tidings.Reaction {
	return reaction(m, identityevents.UserCreated, react)
}

// OnSubscriptionActivated implements [Storage].
func (m *Memory) OnSubscriptionActivated(react func(context.Context, Rows, tidings.Event[billingevents.SubscriptionActivatedPayload]) error) tidings.Reaction {
	return reaction(m, billingevents.SubscriptionActivated, react)
}

// reaction first looks whether the event was written about: the engine recognises
// duplicates, but without a transaction it may forget them.
func reaction[P any](m *Memory, contract tidings.Contract[P], react func(context.Context, Rows, tidings.Event[P]) error) tidings.Reaction {
	return contract.On(func(ctx context.Context, e tidings.Event[P]) error {
		if m.has(e.ID()) {
			return nil
		}
		return react(ctx, m, e)
	})
}

func (m *Memory) has(eventID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.sent, func(n Notification) bool { return n.EventID == eventID })
}

// Add implements [Rows].
func (m *Memory) Add(_ context.Context, sent Notification) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent = append(m.sent, sent)
	return nil
}

// Sent implements [Storage].
func (m *Memory) Sent(context.Context) ([]Notification, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Notification{}, m.sent...), nil
}
