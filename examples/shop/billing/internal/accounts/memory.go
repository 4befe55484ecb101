package accounts

import (
	"context"
	"slices"
	"sync"

	"github.com/tidings-go/tidings"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
)

// Memory is a [Storage] that is lost with the process.
type Memory struct {
	mu            sync.Mutex
	profiles      []Profile
	subscriptions []Subscription
}

// NewMemory returns no account yet.
func NewMemory() *Memory { return &Memory{} }

// Transact implements [Storage]. It publishes at once: there is no transaction
// to wait for, and a subscription whose event could not be published stays.
func (m *Memory) Transact(_ context.Context, face *tidings.Module, fn func(Rows, tidings.Publisher) error) error {
	return fn(m, face)
}

// OnUserCreated implements [Storage].
func (m *Memory) OnUserCreated(react func(context.Context, Rows, tidings.Event[identityevents.UserCreatedPayload]) error) tidings.Reaction {
	return identityevents.UserCreated.On(func(ctx context.Context, e tidings.Event[identityevents.UserCreatedPayload]) error {
		return react(ctx, m, e)
	})
}

// AddProfile implements [Rows]. It first looks whether there is one: the engine
// recognises duplicates, but without a transaction it may forget them.
func (m *Memory) AddProfile(_ context.Context, profile Profile) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.ContainsFunc(m.profiles, func(p Profile) bool { return p.UserID == profile.UserID }) {
		m.profiles = append(m.profiles, profile)
	}
	return nil
}

// AddSubscription implements [Rows].
func (m *Memory) AddSubscription(_ context.Context, subscription Subscription) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subscriptions = append(m.subscriptions, subscription)
	return nil
}

// Profiles implements [Storage].
func (m *Memory) Profiles(context.Context) ([]Profile, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Profile{}, m.profiles...), nil
}

// Subscriptions implements [Storage].
func (m *Memory) Subscriptions(context.Context) ([]Subscription, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Subscription{}, m.subscriptions...), nil
}
