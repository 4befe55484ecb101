package calls_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings/internal/calls"
)

func TestWithinEndsThoughTheCallDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		began := time.Now()
		_, err := calls.Within(t.Context(), time.Second, func(context.Context) (int, error) { <-release; return 1, nil })
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 2*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		close(release)
		synctest.Wait()
	})
}

func TestWithinHasTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own := errors.New("its own words")
		n, err := calls.Within(t.Context(), time.Second, func(ctx context.Context) (int, error) { <-ctx.Done(); return 7, own })
		if n != 7 || !errors.Is(err, own) {
			t.Errorf("%d, %v", n, err)
		}
	})
}
