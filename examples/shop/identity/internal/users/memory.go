package users

import (
	"context"
	"slices"
	"sync"

	"github.com/tidings-go/tidings"
)

// Memory is a [Storage] that is lost with the process.
type Memory struct {
	mu    sync.Mutex
	users []User
}

// NewMemory returns nobody yet.
func NewMemory() *Memory { return &Memory{} }

// Transact implements [Storage]. It publishes at once: there is no transaction
// to wait for, and a user whose event could not be published stays.
func (m *Memory) Transact(_ context.Context, face *tidings.Module, fn func(Rows, tidings.Publisher) error) error {
	return fn(m, face)
}

// Add implements [Rows].
func (m *Memory) Add(_ context.Context, user User) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users = append(m.users, user)
	return nil
}

// User implements [Storage].
func (m *Memory) User(_ context.Context, id string) (User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := slices.IndexFunc(m.users, func(u User) bool { return u.ID == id })
	if n < 0 {
		return User{}, ErrUnknown
	}
	return m.users[n], nil
}

// Users implements [Storage].
func (m *Memory) Users(context.Context) ([]User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.users), nil
}
