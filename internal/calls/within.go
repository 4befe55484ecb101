package calls

import (
	"context"
	"fmt"
	"time"
)

// late is how long after the end of its context a call is waited for: one that
// obeys it says more than that its time is over.
const late = 100 * time.Millisecond

// Within calls f with a context that ends after d, and returns then at the latest:
// what is called may wait for a connection that died without a word, whatever its
// context says. A call that does not return goes on by itself, nobody can wait for
// it, and its answer is lost.
func Within[T any](ctx context.Context, d time.Duration, f func(ctx context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return Until(limited, f)
}

// Until is Within with a context that ends by itself.
func Until[T any](ctx context.Context, f func(ctx context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		value, err := f(ctx)
		answered <- answer{value, err}
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(late)
	defer timer.Stop()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-timer.C:
		var none T
		return none, fmt.Errorf("there was no answer: %w", context.Cause(ctx))
	}
}

// Do is Until for what has no answer but an error.
func Do(ctx context.Context, f func(ctx context.Context) error) error {
	_, err := Until(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// DoWithin is Within for what has no answer but an error.
func DoWithin(ctx context.Context, d time.Duration, f func(ctx context.Context) error) error {
	_, err := Within(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}
