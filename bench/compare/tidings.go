package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
)

// userCreated has the payload of the guide, about 120 bytes as JSON.
type userCreated struct {
	UserID string `json:"userId"`
	Email  string `json:"email"`
	Name   string `json:"name"`
}

var (
	created = tidings.Define[userCreated]("identity.user.created", 1, tidings.Repeatable)
	sample  = userCreated{UserID: "0190f5c2-7c1e-7e39-9c0a-5d0f6a3d9b11", Email: "ada.lovelace@example.com", Name: "Ada Lovelace"}
)

// quiet is a logger that has nothing to say.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// direct is a driver that hands what is published to its subscriptions at once.
type direct struct {
	mu    sync.Mutex
	sinks []driver.Sink
}

func (*direct) Name() string { return "direct" }
func (*direct) Features() driver.Features {
	return driver.Features{Durable: true, Ordered: true, Headers: true, FanOut: true}
}
func (*direct) Close(context.Context) error { return nil }

func (d *direct) Publish(ctx context.Context, messages []driver.Message) error {
	deliveries := make([]driver.Delivery, len(messages))
	for n, m := range messages {
		deliveries[n] = driver.Delivery{Message: m, Ref: nowhere{}, Source: driver.Source{Name: "direct"}}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sinks {
		s.Deliver(ctx, deliveries)
	}
	return nil
}

func (d *direct) Subscribe(_ context.Context, _ driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	return &directConsumer{d, sink}, nil
}

type nowhere struct{}

func (nowhere) Position() string { return "" }

type directConsumer struct {
	driver *direct
	sink   driver.Sink
}

func (c *directConsumer) Run(ctx context.Context) error {
	c.driver.mu.Lock()
	c.driver.sinks = append(c.driver.sinks, c.sink)
	c.driver.mu.Unlock()
	c.sink.Joined()
	<-ctx.Done()
	return nil
}
func (*directConsumer) Settle(context.Context, []driver.Settlement) error { return nil }
func (*directConsumer) Close(context.Context) error                       { return nil }

// publisher is an application with an outbox, as its modules see it.
type publisher struct {
	pool *pgxpool.Pool
	// options are those of the store.
	options postgres.Options
	store   *postgres.Store[pgx.Tx]
	bus     *tidings.Bus
	box     *outbox.Box[pgx.Tx]
	users   *tidings.Module
}

// newPublisher makes one; its bus does not run.
func newPublisher(ctx context.Context, d *database, withoutRelay bool, options postgres.Options) (*publisher, error) {
	p := &publisher{options: options}
	var err error
	if p.pool, err = d.pool(ctx); err != nil {
		return nil, err
	}
	if p.store, err = postgres.New(p.pool, &options); err != nil {
		return nil, err
	}
	if err := p.store.Migrate(ctx); err != nil {
		return nil, err
	}
	p.bus = tidings.New(&direct{}, &tidings.Options{Logger: quiet(), WithoutDedup: true, DeadLetters: p.store.DeadLetters()})
	if p.box, err = outbox.New(p.bus, p.store, &outbox.Options{WithoutRelay: withoutRelay, Logger: quiet()}); err != nil {
		return nil, err
	}
	p.users = p.bus.Module("identity")
	return p, nil
}

// fill commits n events in one transaction.
func (p *publisher) fill(ctx context.Context, n int) error {
	return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		for from := 0; from < n; from += fillBatch {
			var events []tidings.DomainEvent
			for k := from; k < min(n, from+fillBatch); k++ {
				aggregate, id := nameOf(k)
				events = append(events, created.New(aggregate, sample, tidings.WithID(id)))
			}
			if err := p.users.Through(p.box.In(tx)).Publish(ctx, events...); err != nil {
				return err
			}
		}
		return nil
	})
}

const fillBatch = 500

// tidingsRelays measures relays on one outbox, each with a pool of its own, as
// processes have.
func tidingsRelays(ctx context.Context, d *database, p *publisher, count, events int, takes time.Duration) (rate float64, seen trouble, err error) {
	b := newBroker(takes, events)
	running, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer func() { stop(); all.Wait() }()
	group := fmt.Sprintf("relay %d", time.Now().UnixNano())
	for range count {
		pool, err := d.pool(ctx)
		if err != nil {
			return 0, seen, err
		}
		store, err := postgres.New(pool, &p.options)
		if err != nil {
			return 0, seen, err
		}
		relay, err := outbox.NewRelay(store, func(_ context.Context, messages []driver.Message) error {
			ids := make([]string, len(messages))
			for n, m := range messages {
				ids[n] = m.ID
			}
			return b.take(ids...)
		}, &outbox.Options{Group: group, Logger: quiet()})
		if err != nil {
			return 0, seen, err
		}
		all.Go(func() { _ = relay.Run(running); pool.Close() })
	}
	if err := p.settled(ctx, group, count); err != nil {
		return 0, seen, err
	}
	if err := p.fill(ctx, events); err != nil {
		return 0, seen, err
	}
	return b.wait(ctx)
}

// settled waits until the slots are divided.
func (p *publisher) settled(ctx context.Context, group string, count int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		var most, least, holders int
		err := p.pool.QueryRow(ctx, `SELECT coalesce(max(n), 0), coalesce(min(n), 0), count(*) FROM
			(SELECT count(*) AS n FROM `+cmp.Or(p.options.Prefix, "tidings_")+`leases WHERE group_name = $1 AND holder <> '' GROUP BY holder) held`, group).Scan(&most, &least, &holders)
		if err != nil {
			return err
		}
		if holders == count && most-least <= 1 && most*count >= outbox.Slots {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("the relays do not divide the slots"), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
