package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/jackc/pgx/v5"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/store/postgres"
)

// latency compares the time from a commit until a handler runs, one event at a
// time: outbox, relay, a broker within the process, handler.
func latency(ctx context.Context, out io.Writer, d *database, w workload) (below int, err error) {
	p, err := newPublisher(ctx, d, false, postgres.Options{})
	if err != nil {
		return 0, err
	}
	defer p.pool.Close()
	event, err := model(ctx, p)
	if err != nil {
		return 0, err
	}
	ours, stop, err := oneByOne(ctx, p)
	if err != nil {
		return 0, err
	}
	defer stop()
	theirs, end, err := rivalOneByOne(ctx, d, event)
	if err != nil {
		return 0, err
	}
	defer end()
	var our, their []float64
	for range w.rounds {
		a, err := times(ctx, w.commits, ours)
		if err != nil {
			return 0, fmt.Errorf("tidings: %w", err)
		}
		b, err := times(ctx, w.rivalCommits, theirs)
		if err != nil {
			return 0, fmt.Errorf("watermill: %w", err)
		}
		our, their = append(our, a...), append(their, b...)
	}
	verdict := ""
	if median(our) > 10 {
		below++
		verdict = " MISSED"
	}
	fmt.Fprintln(out, "| Commit to handler, idle | p50 | p99 | bound of p50 | commits |")
	fmt.Fprintln(out, "| --- | ---: | ---: | ---: | ---: |")
	fmt.Fprintf(out, "| Tidings | %.2f ms | %.2f ms | ≤ 10 ms%s | %d |\n", median(our), quantile(our, 0.99), verdict, len(our))
	fmt.Fprintf(out, "| Watermill | %.2f ms | %.2f ms | | %d |\n", median(their), quantile(their, 0.99), len(their))
	return below, nil
}

// times runs one sample after the other, with a pause of a random length before
// each: a poll comes at no time in particular.
func times(ctx context.Context, count int, sample func(context.Context) (time.Duration, error)) (milliseconds []float64, err error) {
	for range count {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5*time.Millisecond + rand.N(15*time.Millisecond)):
		}
		took, err := sample(ctx)
		if err != nil {
			return nil, err
		}
		milliseconds = append(milliseconds, float64(took.Microseconds())/1000)
	}
	return milliseconds, nil
}

// timed commits and waits for the handler.
func timed(ctx context.Context, handled <-chan time.Time, commit func(context.Context) error) (time.Duration, error) {
	if err := commit(ctx); err != nil {
		return 0, err
	}
	committed := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case at := <-handled:
		return max(0, at.Sub(committed)), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("the event was not handled: %w", ctx.Err())
	}
}

// oneByOne runs a bus with its relay and a handler.
func oneByOne(ctx context.Context, p *publisher) (one func(context.Context) (time.Duration, error), stop func(), err error) {
	handled := make(chan time.Time, 1)
	p.bus.Module("billing").Subscribe("create-default-profile", nil, created.On(func(context.Context, tidings.Event[userCreated]) error {
		handled <- time.Now()
		return nil
	}))
	running, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() { _ = p.bus.Run(running) })
	stop = func() { cancel(); all.Wait() }
	if err := p.bus.Ready(ctx); err != nil {
		stop()
		return nil, nil, err
	}
	if err := p.settled(ctx, "relay", 1); err != nil {
		stop()
		return nil, nil, err
	}
	return func(ctx context.Context) (time.Duration, error) {
		return timed(ctx, handled, func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
				return p.users.Through(p.box.In(tx)).Publish(ctx, created.New("a1", sample))
			})
		})
	}, stop, nil
}

// rivalOneByOne is the same with Watermill's forwarder and in-process broker.
func rivalOneByOne(ctx context.Context, d *database, event driver.Message) (one func(context.Context) (time.Duration, error), stop func(), err error) {
	r, err := newRival(ctx, d, event)
	if err != nil {
		return nil, nil, err
	}
	inProcess := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return nil, nil, err
	}
	handled := make(chan time.Time, 1)
	router.AddConsumerHandler("create-default-profile", "events", inProcess, func(*message.Message) error {
		handled <- time.Now()
		return nil
	})
	var all sync.WaitGroup
	all.Go(func() { _ = router.Run(ctx) })
	<-router.Running()
	end, err := r.forwarders(ctx, d, 1, inProcess)
	stop = func() { _ = end(); _ = router.Close(); _ = inProcess.Close(); all.Wait(); r.pool.Close() }
	if err != nil {
		stop()
		return nil, nil, err
	}
	return func(ctx context.Context) (time.Duration, error) {
		return timed(ctx, handled, func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error { return r.publish(tx, r.message(watermill.NewUUID())) })
		})
	}, stop, nil
}
