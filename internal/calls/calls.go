// Package calls counts the calls that are under way in a driver, so that Close can
// wait for them.
package calls

import (
	"context"
	"fmt"
	"sync"
)

// Gate lets calls in until it is closed. The zero value is open. All methods may be
// called at once.
type Gate struct {
	mu     sync.Mutex
	closed bool
	under  sync.WaitGroup
}

// Enter begins a call; false says that the gate is closed. After true the caller
// calls Leave.
func (g *Gate) Enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.under.Add(1)
	return true
}

// Leave ends a call.
func (g *Gate) Leave() { g.under.Done() }

// Hold begins work on behalf of a call that is under way, and may outlast it. Leave
// ends it.
func (g *Gate) Hold() { g.under.Add(1) }

// Go runs f in a goroutine that is held.
func (g *Gate) Go(f func()) { g.under.Go(f) }

// Close lets nobody in any more. It reports whether the gate was open.
func (g *Gate) Close() (wasOpen bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wasOpen = !g.closed
	g.closed = true
	return wasOpen
}

// Wait returns when nothing is under way any more. When ctx ends first it calls cut,
// which has to end what is left, and waits on; without cut it returns an error.
func (g *Gate) Wait(ctx context.Context, cut func()) error {
	idle := make(chan struct{})
	go func() {
		g.under.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	if cut == nil {
		return fmt.Errorf("calls are still under way: %w", context.Cause(ctx))
	}
	cut()
	<-idle
	return nil
}
