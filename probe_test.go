package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// askedClaims are claims that can be asked whether they answer.
type askedClaims struct {
	flakyClaims
	refuses bool // quickly, and not only after a while
	mu      sync.Mutex
	away    bool
	asked   int
}

func (c *askedClaims) Durable() bool { return true }

func (c *askedClaims) Check(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.away {
		return errors.New("refused")
	}
	return nil
}

func (c *askedClaims) set(away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = away
}

func (c *askedClaims) Claim(ctx context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	c.mu.Lock()
	away := c.away
	c.mu.Unlock()
	if away && c.refuses {
		return driver.ClaimAnswer{}, fmt.Errorf("claim: %w", &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")})
	}
	if away {
		<-ctx.Done() // as over a connection that has died without a word
		return driver.ClaimAnswer{}, ctx.Err()
	}
	return c.flakyClaims.Claim(ctx, r)
}

// tellingDriver remembers what a subscription was described as.
type tellingDriver struct {
	*randomDriver
	told driver.Subscription
}

func (d *tellingDriver) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	d.told = s
	return d.randomDriver.Subscribe(ctx, s, sink)
}

// A bus whose store has never answered is not ready; and while a store does not answer,
// it is asked, the driver is told for how long, and both end when the store is back
// although nothing else asks it.
func TestAStoreThatDoesNotAnswerIsAskedUntilItDoes(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		t.Run(fmt.Sprint("refuses ", refuses), func(t *testing.T) { storeIsAsked(t, refuses) })
	}
}

func storeIsAsked(t *testing.T, refuses bool) {
	synctest.Test(t, func(t *testing.T) {
		broker, claims := newRandomBroker(), &askedClaims{away: true, refuses: refuses}
		d := &tellingDriver{randomDriver: &randomDriver{broker}}
		b := tidings.New(d, &tidings.Options{Logger: discard(), Claims: claims, RedeliveryHorizon: time.Hour, StoreTimeout: 4 * time.Second})
		subscribe(t, b, "reader", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error { return nil })
		start(t, b)
		unable := func() time.Duration { return d.told.Unable() }
		if h := b.Health(); h.Ready || unable() == 0 {
			t.Errorf("before the store has answered: ready %t, unable for %v", h.Ready, unable())
		}
		claims.set(false)
		pass(5 * time.Second)
		if h := b.Health(); !h.Ready || unable() != 0 {
			t.Errorf("when it has: ready %t, unable for %v", h.Ready, unable())
		}

		claims.set(true)
		broker.move(broker.partitions[0], tidings.ConsumerOf(b).(*randomConsumer), true)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if h := b.Health(); h.Ready || unable() < 8*time.Second {
			t.Errorf("ten seconds without an answer: ready %t, unable for %v", h.Ready, unable())
		}
		claims.set(false)
		pass(10 * time.Second)
		if h := b.Health(); !h.Ready || unable() != 0 || broker.unfinished() != 0 {
			t.Errorf("when it is back: ready %t, unable for %v, %d events unfinished", h.Ready, unable(), broker.unfinished())
		}
	})
}
