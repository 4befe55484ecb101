package main

import (
	"context"
	"errors"
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

	stop context.CancelFunc
	done chan error
}

// open wires the modules and runs the bus. It is all that knows the driver, and
// it knows it by name only.
func open(ctx context.Context, getenv func(string) string, modules []string, log *slog.Logger, observers ...tidings.Observer) (*shop, error) {
	s := &shop{counts: &stats{}, done: make(chan error, 1)}
	bus, err := setup.New(ctx, setup.Read(getenv), &setup.Options{Bus: tidings.Options{
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
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	go func() { s.done <- bus.Run(running) }()
	joined, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := bus.Ready(joined); err != nil {
		return nil, errors.Join(err, s.close())
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
