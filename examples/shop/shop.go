package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/examples/shop/billing"
	"github.com/tidings-go/tidings/examples/shop/identity"
	"github.com/tidings-go/tidings/examples/shop/notifications"
	"github.com/tidings-go/tidings/setup"
)

// shop is the modules of this process on one bus. A module that runs elsewhere
// is nil.
type shop struct {
	bus           *tidings.Bus
	counts        *stats
	identity      *identity.Identity
	billing       *billing.Billing
	notifications *notifications.Notifications

	alive context.Context // ends with open's context, and when the bus has stopped
	stop  context.CancelFunc
	done  chan error
}

// open wires the modules and runs the bus. It is all that knows the driver, and
// it knows it by name only.
func open(ctx context.Context, getenv func(string) string, modules []string, log *slog.Logger, observers ...tidings.Observer) (*shop, error) {
	s := &shop{counts: &stats{}, done: make(chan error, 1)}
	bus, err := setup.New(ctx, setup.Read(getenv), &setup.Options{Bus: tidings.Options{
		// Counts come first: what the story has told is counted.
		Logger: log, Source: "shop", Observers: append([]tidings.Observer{s.counts}, observers...),
	}})
	if err != nil {
		return nil, err
	}
	s.bus = bus
	if slices.Contains(modules, "identity") {
		s.identity = identity.New(bus.Module("identity"))
	}
	if slices.Contains(modules, "billing") {
		s.billing = billing.New(bus.Module("billing"))
	}
	if slices.Contains(modules, "notifications") {
		s.notifications = notifications.New(bus.Module("notifications"))
	}
	alive, stopped := context.WithCancelCause(ctx)
	s.alive = alive
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	go func() {
		err := bus.Run(running)
		stopped(errors.Join(errors.New("the bus has stopped"), err))
		s.done <- err
	}()
	joining, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := bus.Ready(joining); err != nil {
		if runErr := s.close(); runErr != nil {
			return nil, runErr // it is the reason
		}
		return nil, fmt.Errorf("the bus is not ready: %w", err)
	}
	return s, nil
}

// close lets the bus finish what is in hand and returns its error.
func (s *shop) close() error {
	s.stop()
	return <-s.done
}

// summary is the stats of the bus and what the modules of this process have.
func (s *shop) summary() summary {
	sum := s.counts.summary()
	if s.billing != nil {
		sum.Profiles = len(s.billing.Profiles())
	}
	if s.notifications != nil {
		sum.Notifications = len(s.notifications.Sent())
	}
	return sum
}
