package sqlstore

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// database/sql commits without a context: the network may keep it for ever.
func TestACommitEndsAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), answerTime)
		defer cancel()
		ever := make(chan struct{})
		interrupted := false
		began := time.Now()
		ended := make(chan error, 1)
		go func() {
			ended <- bounded(ctx, func() { interrupted = true }, func() error { <-ever; return nil })
		}()
		select {
		case err := <-ended:
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 2*answerTime || !interrupted {
				t.Errorf("after %v, interrupted %v: %v", took, interrupted, err)
			}
		case <-time.After(time.Hour):
			t.Error("it did not end")
		}
		close(ever)
	})
}
