package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings/driver"
)

// rival is Watermill's outbox: its SQL publisher behind its forwarder's, and
// forwarders on its SQL subscriber, all at their default settings.
type rival struct {
	pool  *pgxpool.Pool
	topic string
	model driver.Message // the same event that Tidings stores
}

var rivals int

func newRival(ctx context.Context, d *database, model driver.Message) (*rival, error) {
	pool, err := d.pool(ctx)
	if err != nil {
		return nil, err
	}
	rivals++
	r := &rival{pool, fmt.Sprintf("outbox_%d", rivals), model}
	subscriber, err := r.subscriber(pool)
	if err != nil {
		return nil, err
	}
	if err := subscriber.SubscribeInitialize(r.topic); err != nil {
		return nil, fmt.Errorf("watermill: %w", err)
	}
	return r, subscriber.Close()
}

func (r *rival) subscriber(pool *pgxpool.Pool) (*wsql.Subscriber, error) {
	return wsql.NewSubscriber(wsql.BeginnerFromPgx(pool), wsql.SubscriberConfig{
		ConsumerGroup: "relay", SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{},
	}, watermill.NopLogger{})
}

func (r *rival) publish(tx pgx.Tx, messages ...*message.Message) error {
	inner, err := wsql.NewPublisher(wsql.TxFromPgx(tx), wsql.PublisherConfig{SchemaAdapter: wsql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	return forwarder.NewPublisher(inner, forwarder.PublisherConfig{ForwarderTopic: r.topic}).Publish("events", messages...)
}

// message is the event with the bytes and metadata that Tidings stores.
func (r *rival) message(id string) *message.Message {
	m := message.NewMessage(id, r.model.Body)
	for _, h := range r.model.Headers {
		m.Metadata.Set(h.Name, h.Value)
	}
	return m
}

func (r *rival) fill(ctx context.Context, n int) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		for from := 0; from < n; from += fillBatch {
			var messages []*message.Message
			for k := from; k < min(n, from+fillBatch); k++ {
				_, id := nameOf(k)
				messages = append(messages, r.message(id))
			}
			if err := r.publish(tx, messages...); err != nil {
				return err
			}
		}
		return nil
	})
}

// to is a Watermill publisher of a broker.
type to struct{ broker *broker }

func (t to) Publish(_ string, messages ...*message.Message) error {
	ids := make([]string, len(messages))
	for n, m := range messages {
		ids[n] = m.UUID
	}
	return t.broker.take(ids...)
}
func (to) Close() error { return nil }

// forwarders starts some, each with a pool of its own, and returns what ends them.
func (r *rival) forwarders(ctx context.Context, d *database, count int, out message.Publisher) (end func() error, err error) {
	var all sync.WaitGroup
	var closers []func() error
	end = func() error {
		var errs []error
		for _, c := range closers {
			errs = append(errs, c())
		}
		all.Wait()
		return errors.Join(errs...)
	}
	for range count {
		pool, err := d.pool(ctx)
		if err != nil {
			return end, err
		}
		subscriber, err := r.subscriber(pool)
		if err != nil {
			return end, err
		}
		f, err := forwarder.NewForwarder(subscriber, out, watermill.NopLogger{}, forwarder.Config{ForwarderTopic: r.topic})
		if err != nil {
			return end, err
		}
		failed := make(chan error, 1)
		all.Go(func() { failed <- f.Run(ctx) })
		closers = append(closers, func() error {
			err := errors.Join(f.Close(), subscriber.Close())
			pool.Close()
			return err
		})
		select {
		case <-f.Running():
		case err := <-failed:
			return end, errors.Join(errors.New("watermill: the forwarder does not run"), err)
		}
	}
	return end, nil
}

func watermillRelays(ctx context.Context, d *database, model driver.Message, count, events int, takes time.Duration) (rate float64, seen trouble, err error) {
	r, err := newRival(ctx, d, model)
	if err != nil {
		return 0, seen, err
	}
	defer r.pool.Close()
	b := newBroker(takes, events)
	end, err := r.forwarders(ctx, d, count, to{b})
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return 0, seen, err
	}
	if err := r.fill(ctx, events); err != nil {
		return 0, seen, err
	}
	return b.wait(ctx)
}

// model is an event as Tidings stores it.
func model(ctx context.Context, p *publisher) (driver.Message, error) {
	messages, err := p.bus.Encode(ctx, created.New("a1", sample))
	if err != nil {
		return driver.Message{}, err
	}
	if !json.Valid(messages[0].Body) {
		return driver.Message{}, errors.New("the body is no JSON")
	}
	return messages[0], nil
}
